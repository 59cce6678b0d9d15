//! Runs on: threads of its own, behind a start.
//!
//! Brings in the pages that the entries behind the last checkpoint will need, ahead of apply: reading and checking pages is most of what
//! applying entries anew costs, and any thread may do it.
//!
//! Invariants:
//! - Only ever a help: what cannot be read here is left for apply to meet.
//! - Nothing is brought in for entries that are more than `ahead_max` behind the one that was applied last, so that the cache holds it
//!   until apply comes.
//! - No view is held but for a look: what apply replaces is not kept.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use engine::{Error, Loaded, PageReader, Published, disk::Disk};

use crate::apply::prefetch;

/// Entries whose pages are being read, each perhaps of another file: core 0 must not find the process out of files.
pub const READS_MAX: usize = 64;
/// Looks at one entry: one for each level of the tree, and some for what apply changes meanwhile.
const LOOKS_MAX: u32 = 16;
/// Between two looks at how far apply is.
const PAUSE: Duration = Duration::from_millis(1);

/// An entry that waits for pages.
struct Waiting {
    entry: Bytes,
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
    waiting: HashMap<u64, Waiting>,
}

impl Warmer {
    /// Brings in what `entries`, with their indexes in order, need of the states in `view`.
    pub fn new(
        view: Published,
        disk: Box<dyn Disk>,
        reader: PageReader,
        entries: VecDeque<(u64, Bytes)>,
        ahead_max: u64,
    ) -> Self {
        Self { view, disk, reader, entries, ahead_max, waiting: HashMap::new() }
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

    /// Takes up entries as far as the bounds allow.
    fn begin(&mut self) {
        let applied = self.view.load().applied_index();
        while self.waiting.len() < READS_MAX
            && let Some((index, entry)) = self.entries.pop_front_if(|(index, _)| *index <= applied + self.ahead_max)
        {
            if index > applied {
                self.look(index, Waiting { entry, pages: 0, looks: 0 });
            }
        }
    }

    /// Asks for what an entry needs now, and has it wait for that, if there is anything.
    fn look(&mut self, index: u64, mut waiting: Waiting) {
        let faults = prefetch::faults_of(&self.view.load(), waiting.entry.clone());
        waiting.looks += 1;
        if faults.is_empty() || waiting.looks > LOOKS_MAX {
            return;
        }
        waiting.pages = faults.len();
        self.waiting.insert(index, waiting);
        for fault in faults {
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
        for index in tickets {
            let waiting = self.waiting.get_mut(&index).expect("waits for this page");
            waiting.pages -= 1;
            if result.is_err() {
                waiting.looks = LOOKS_MAX;
            }
            if waiting.pages == 0 {
                let waiting = self.waiting.remove(&index).expect("found above");
                self.look(index, waiting);
            }
        }
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
            let mut entry = Vec::new();
            let put = pb::PutRequest { key: key(number), ..Default::default() };
            internal::encode(&RequestHeader::default(), Kind::Put, &put.encode_to_vec(), &mut entry);
            entry.into()
        };
        (0..KEYS).rev().map(|number| (2 + u64::from(KEYS - number), entry(number))).collect()
    }

    fn warm(storage: &SimStorage, dir: &Path, store: &Store, entries: VecDeque<(u64, Bytes)>) {
        let reader = PageReader::new(dir, 8, READS_MAX);
        let published = store.mvcc().published();
        Warmer::new(published, Box::new(storage.disk()), reader, entries, u64::MAX / 2).run().unwrap();
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
    fn entries_that_cannot_be_read_or_understood_are_left_alone() {
        let (storage, dir) = (SimStorage::new(1), Path::new("data"));
        let store = cold(&storage, dir);
        warm(&storage, dir, &store, (2..9).map(|index| (index, Bytes::from_static(b"\xff\xff"))).collect());
        storage.paths().iter().for_each(|path| storage.replace(path, None));
        warm(&storage, dir, &store, entries());
    }
}
