//! Runs on: threads of its own, behind a start.
//!
//! Brings in the pages that the entries behind the last checkpoint will need, ahead of apply: reading and checking
//! pages is most of what applying entries anew costs, and any thread may do it.
//!
//! Invariants:
//! - Only ever a help: what cannot be read here is left for apply to meet.
//! - Nothing is brought in for entries that are more than `ahead_max` behind the one that was applied last, so that the
//!   cache holds it until apply comes.
//! - No view is held but for a look: what apply replaces is not kept.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use engine::{Error, Fault, Loaded, PageReader, Published, disk::Disk};
use proto::internal::{self, Request};
use tokio::sync::oneshot;

use crate::apply::prefetch;

/// Reads in flight, each perhaps of another file: core 0 must not find the process out of files.
pub const READS_MAX: usize = 64;
/// Looks at one entry: one for each level of the tree, and some for what apply changes meanwhile.
const LOOKS_MAX: u32 = 16;
/// Between two looks at how far apply is.
const PAUSE: Duration = Duration::from_millis(1);
/// Entries that are taken up at first, and how much more each time: a few find the way to the leaves, which all others
/// go.
const BATCH_MIN: u64 = 64;
const BATCH_GROWTH: u64 = 8;
/// Of `ahead_max`, entries that are taken up at a time later on: the more, the more of their pages lie side by side.
const BATCH_SHARE: u64 = 2;

/// An entry that waits for pages.
struct Waiting {
    request: Request,
    pages: usize,
    looks: u32,
}

/// A thread's share of the entries.
pub struct Warmer {
    view: Published,
    disk: Box<dyn Disk>,
    reader: PageReader,
    entries: VecDeque<(u64, Bytes)>,
    ahead_max: u64,
    /// Entries up to this index were taken up.
    taken: u64,
    /// Applied when it began.
    began: u64,
    batch: u64,
    waiting: HashMap<u64, Waiting>,
    /// Is told when what the first entries need was read.
    first: Option<oneshot::Sender<()>>,
}

impl Warmer {
    /// Brings in what `entries`, with their indexes in order, need of the states in `view`. `first` is told, or
    /// dropped, when it has done so for the first of them.
    pub fn new(
        view: Published,
        disk: Box<dyn Disk>,
        reader: PageReader,
        entries: VecDeque<(u64, Bytes)>,
        ahead_max: u64,
        first: oneshot::Sender<()>,
    ) -> Self {
        let began = view.load().applied_index();
        let (waiting, first) = (HashMap::new(), Some(first));
        Self { view, disk, reader, entries, ahead_max, taken: began, began, batch: BATCH_MIN, waiting, first }
    }

    /// Returns when apply, or this, has passed the last entry.
    ///
    /// **Errors** the disk takes no operations: whoever needs it will find out.
    #[expect(clippy::disallowed_methods, reason = "its thread serves nobody who would wait")]
    pub fn run(mut self) -> Result<(), Error> {
        let mut completions = Vec::new();
        loop {
            self.begin();
            if self.waiting.is_empty() {
                // No more may be taken up before apply gets on.
                self.tell_first();
                if self.entries.is_empty() {
                    return Ok(());
                }
                std::thread::sleep(PAUSE);
                continue;
            }
            self.submit();
            if self.waiting.is_empty() {
                continue;
            }
            self.disk.wait()?;
            self.disk.completions(&mut completions);
            for completion in completions.drain(..) {
                for loaded in self.reader.on_completion(completion) {
                    self.end(loaded);
                }
            }
        }
    }

    /// Tells whoever waits for it that what the first entries need is there.
    fn tell_first(&mut self) {
        if let Some(first) = self.first.take()
            && first.send(()).is_err()
        {
            tracing::debug!("nobody waits for the pages any more");
        }
    }

    /// Takes up entries, many at once, as far as the bound allows.
    fn begin(&mut self) {
        let applied = self.view.load().applied_index();
        let until = applied + self.ahead_max;
        let last = self.entries.back().map_or(0, |(index, _)| *index);
        let share = (self.ahead_max / BATCH_SHARE).max(1);
        while self.waiting.is_empty() && self.taken < last {
            if self.taken - self.began >= share {
                self.tell_first();
            }
            let batch = self.batch.min(share);
            // Fewer only at the end.
            let to = (self.taken.max(applied) + batch).min(last);
            if to > until {
                return;
            }
            self.batch = batch * BATCH_GROWTH;
            self.take(applied, to);
        }
    }

    /// Takes up the entries behind `applied` up to `to`.
    fn take(&mut self, applied: u64, to: u64) {
        self.taken = to;
        let mut taken = Vec::new();
        while let Some((index, entry)) = self.entries.pop_front_if(|(index, _)| *index <= to) {
            if index > applied
                && !entry.is_empty()
                && let Ok((_, request)) = internal::decode(entry)
            {
                taken.push((index, Waiting { request, pages: 0, looks: 0 }));
            }
        }
        self.look(taken);
    }

    /// Asks for what entries need now, and has them wait for that, if there is anything.
    fn look(&mut self, entries: Vec<(u64, Waiting)>) {
        let view = self.view.load();
        let mut wanted: Vec<(Fault, u64)> = Vec::new();
        for (index, mut waiting) in entries {
            let faults = prefetch::faults_of(&view, &waiting.request);
            waiting.looks += 1;
            if faults.is_empty() || waiting.looks > LOOKS_MAX {
                continue;
            }
            waiting.pages = faults.len();
            self.waiting.insert(index, waiting);
            wanted.extend(faults.into_iter().map(|fault| (fault, index)));
        }
        drop(view);
        // The reader reads at once what is asked for in the order it lies in.
        wanted.sort_unstable_by_key(|(fault, _)| fault.place());
        for (fault, index) in wanted {
            self.reader.read(fault, index);
        }
    }

    /// Hands reads to the disk.
    fn submit(&mut self) {
        loop {
            let failed = self.reader.step(self.disk.as_mut());
            if failed.is_empty() {
                return;
            }
            failed.into_iter().for_each(|failed| self.end(failed));
        }
    }

    fn end(&mut self, Loaded { tickets, result }: Loaded) {
        let mut ready = Vec::new();
        for index in tickets {
            let waiting = self.waiting.get_mut(&index).expect("waits for this page");
            waiting.pages -= 1;
            if result.is_err() {
                waiting.looks = LOOKS_MAX;
            }
            if waiting.pages == 0 {
                ready.push((index, self.waiting.remove(&index).expect("found above")));
            }
        }
        self.look(ready);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use engine::{Store, disk::sim::SimStorage, store};
    use prost::Message;
    use proto::{
        etcdserverpb as pb,
        internal::{self, Kind, RequestHeader},
    };

    use super::*;

    const KEYS: u32 = 3000;

    fn key(number: u32) -> Bytes {
        format!("key-{number:05}").into()
    }

    /// A store of `KEYS` keys, none of them in memory.
    fn cold(storage: &SimStorage, dir: &Path) -> Store {
        let mut disk = storage.disk();
        let mut store = Store::open(&mut disk, dir, store::Options::default()).unwrap();
        for number in 0..KEYS {
            let mut write = store.mvcc_mut().begin();
            write.put(key(number), Bytes::from_static(b"value"), 0).expect("all is in memory");
            drop(write.finish());
        }
        drop(store.mvcc_mut().publish(1, 1));
        let done = store.checkpoint_begin().run(&mut disk).unwrap();
        store.checkpoint_end(done);
        drop(store);
        Store::open(&mut disk, dir, store::Options::default()).unwrap()
    }

    fn entries() -> VecDeque<(u64, Bytes)> {
        let entry = |number| {
            let put = pb::PutRequest { key: key(number), ..Default::default() };
            internal::encode(&RequestHeader::default(), Kind::Put, &put.encode_to_vec()).entry
        };
        (0..KEYS).rev().map(|number| (2 + u64::from(KEYS - number), entry(number))).collect()
    }

    fn warm(storage: &SimStorage, dir: &Path, store: &Store, entries: VecDeque<(u64, Bytes)>) {
        let reader = PageReader::new(dir, 8, READS_MAX);
        let published = store.mvcc().published();
        let (first, mut is_told) = oneshot::channel();
        Warmer::new(published, Box::new(storage.disk()), reader, entries, u64::MAX / 2, first).run().unwrap();
        is_told.try_recv().unwrap();
    }

    #[test]
    fn what_entries_need_is_in_memory_before_they_are_applied() {
        let (storage, dir) = (SimStorage::new(1), Path::new("data"));
        let store = cold(&storage, dir);
        let is_resident = |number| store.mvcc().touch(&key(number)).is_ok();
        assert!(!(0..KEYS).any(is_resident), "nothing was read yet");
        warm(&storage, dir, &store, entries());
        assert!((0..KEYS).all(is_resident));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "it waits for apply, which is played here")]
    fn whoever_waits_for_the_first_pages_is_told_though_apply_has_not_begun() {
        let (storage, dir) = (SimStorage::new(2), Path::new("data"));
        let mut store = cold(&storage, dir);
        for ahead_max in [1, 8, 100] {
            let reader = PageReader::new(dir, 8, READS_MAX);
            let (first, is_first) = oneshot::channel();
            let published = store.mvcc().published();
            let begun = store.mvcc().view().applied_index();
            let entries = entries().into_iter().map(|(index, entry)| (begun + index, entry)).collect();
            let warmer = Warmer::new(published, Box::new(storage.disk()), reader, entries, ahead_max, first);
            let thread = std::thread::spawn(move || warmer.run());
            is_first.blocking_recv().expect("it is told");
            let last = begun + u64::from(KEYS) + 2;
            drop(store.mvcc_mut().publish(last, 1));
            thread.join().unwrap().unwrap();
        }
    }

    #[test]
    fn entries_that_cannot_be_read_or_understood_are_left_alone() {
        let (storage, dir) = (SimStorage::new(1), Path::new("data"));
        let store = cold(&storage, dir);
        warm(&storage, dir, &store, (2..9).map(|index| (index, Bytes::from_static(b"\xff\xff"))).collect());
        storage.paths().iter().for_each(|path| storage.replace(path, None));
        warm(&storage, dir, &store, entries());
    }
}
