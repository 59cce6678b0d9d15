//! Runs on: warm threads, for a while after a start.
//!
//! Loads the pages that the entries after the last checkpoint will need, ahead of apply. Reading and checking pages is
//! most of the cost of applying these entries again, and any thread can do it.
//!
//! Invariants:
//! - This only helps. Apply itself loads what could not be read here.
//! - No page is loaded for an entry that is more than `ahead_max` after the last applied one. So the cache still holds
//!   the page when apply comes to the entry.
//! - A view is held only during a look, so that what apply replaces is not kept in memory.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use engine::{Error, Fault, Loaded, PageReader, Published, disk::Disk};
use proto::internal::{self, Request};
use tokio::sync::oneshot;

use crate::apply::prefetch;

/// Reads in flight. Each may be of another file, and core 0 must not run out of file descriptors.
pub const READS_MAX: usize = 64;
/// Looks at one entry at most: one for each level of the tree, and some more for what apply changes meanwhile.
const LOOKS_MAX: u32 = 16;
/// Pause between two looks at how far apply is.
const PAUSE: Duration = Duration::from_millis(1);
/// Entries in the first batch, and the growth of each next batch. A few entries load the path to the leaves, which all
/// others share.
const BATCH_MIN: u64 = 64;
const BATCH_GROWTH: u64 = 8;
/// A later batch is `ahead_max` divided by this. In a larger batch, more pages lie side by side.
const BATCH_SHARE: u64 = 2;

/// An entry that waits for pages.
struct Waiting {
    request: Request,
    pages: usize,
    looks: u32,
}

/// One thread's share of the entries.
pub struct Warmer {
    view: Published,
    disk: Box<dyn Disk>,
    reader: PageReader,
    entries: VecDeque<(u64, Bytes)>,
    ahead_max: u64,
    /// The index up to which entries were taken up.
    taken: u64,
    /// The applied index at the beginning.
    began: u64,
    batch: u64,
    waiting: HashMap<u64, Waiting>,
    /// Receives a signal when the pages of the first entries were read.
    first: Option<oneshot::Sender<()>>,
}

impl Warmer {
    /// Loads the pages that `entries` need from the states in `view`. The entries come with their indexes, in order.
    /// `first` is sent to when the pages of the first entries are there, or it is dropped.
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

    /// Returns when apply or this thread has passed the last entry.
    ///
    /// **Errors** the disk takes no operations. Apply will meet the same error when it needs the pages.
    #[expect(clippy::disallowed_methods, reason = "its thread serves nobody who would wait")]
    pub fn run(mut self) -> Result<(), Error> {
        let mut completions = Vec::new();
        loop {
            self.begin();
            if self.waiting.is_empty() {
                // No more entries may be taken up before apply advances.
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

    /// Signals that the pages of the first entries are there.
    fn tell_first(&mut self) {
        if let Some(first) = self.first.take()
            && first.send(()).is_err()
        {
            tracing::debug!("nobody waits for the pages any more");
        }
    }

    /// Takes up the next entries, a whole batch at once, as far as the bound allows.
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
            // Only the last batch is smaller.
            let to = (self.taken.max(applied) + batch).min(last);
            if to > until {
                return;
            }
            self.batch = batch * BATCH_GROWTH;
            self.take(applied, to);
        }
    }

    /// Takes up the entries after `applied`, up to `to`.
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

    /// Asks for the pages that entries need now. Entries that need some then wait for them.
    fn look(&mut self, entries: Vec<(u64, Waiting)>) {
        let view = self.view.load();
        let mut wanted: Vec<(Fault, u64)> = Vec::new();
        for (index, mut waiting) in entries {
            let faults = prefetch::faults_of(&view, self.view.unreadable(), &waiting.request);
            waiting.looks += 1;
            if faults.is_empty() || waiting.looks > LOOKS_MAX {
                continue;
            }
            waiting.pages = faults.len();
            self.waiting.insert(index, waiting);
            wanted.extend(faults.into_iter().map(|fault| (fault, index)));
        }
        drop(view);
        // The reader joins reads that are asked for in the order of their places.
        wanted.sort_unstable_by_key(|(fault, _)| fault.place());
        for (fault, index) in wanted {
            self.reader.read(fault, index);
        }
    }

    /// Hands the reads to the disk.
    fn submit(&mut self) {
        loop {
            let failed = self.reader.step(self.disk.as_mut());
            if failed.is_empty() {
                return;
            }
            failed.into_iter().for_each(|failed| self.end(failed));
        }
    }

    fn end(&mut self, Loaded { tickets, result, .. }: Loaded) {
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
    use std::{path::Path, sync::Arc};

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

    /// A store of `KEYS` keys. None of them is in memory.
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
        let reader = PageReader::new(dir, 8, READS_MAX, Arc::clone(store.unreadable()));
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
            let reader = PageReader::new(dir, 8, READS_MAX, Arc::clone(store.unreadable()));
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
