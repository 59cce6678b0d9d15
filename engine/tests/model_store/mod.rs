//! The store under test beside its model, and the pages of its checkpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use engine::{
    Count, Cursor, Fault, HashKv, KeyRange, Mvcc, Place, PutPlain, RangeEnd, ReadView, Record, Revision, Roots, Sealed,
    Version, Write,
    test_support::{BlockCache, Directory, Kind, Slot, seal},
};
use rand::{Rng, rngs::SmallRng};

/// Everything that ever happened, and what compaction says of it.
#[derive(Clone, Default)]
pub(crate) struct Model {
    keys: BTreeMap<Vec<u8>, Vec<Record>>,
    log: Vec<Record>,
    meta: BTreeMap<Vec<u8>, Vec<u8>>,
    revision: i64,
    compact_revision: i64,
}

impl Model {
    fn newest(&self, key: &[u8], at: i64) -> Option<&Record> {
        self.keys.get(key)?.iter().rev().find(|record| record.revision.main <= at)
    }

    fn get(&self, key: &[u8], at: i64) -> Option<&Record> {
        self.newest(key, at).filter(|record| !record.is_tombstone)
    }

    fn range(&self, range: &KeyRange, at: i64) -> Vec<&Record> {
        self.keys.keys().filter(|key| range.contains(key)).filter_map(|key| self.get(key, at)).collect()
    }

    fn is_stored(&self, record: &Record) -> bool {
        let is_newest = self.newest(&record.key, self.compact_revision).is_some_and(|newest| newest == record);
        record.revision.main > self.compact_revision
            || (is_newest && !(record.is_tombstone && record.revision.main < self.compact_revision))
    }

    /// etcd's definition, with the keep set spelled out. The hash of a compaction is taken with the compact revision
    /// before.
    fn hash_kv(&self, revision: i64, is_compaction: bool) -> u32 {
        let is_kept = |record: &&Record| !record.is_tombstone || (is_compaction && record.revision.main == revision);
        let newest = self.keys.keys().filter_map(|key| self.newest(key, revision));
        let keep: BTreeSet<Revision> = newest.filter(is_kept).map(|record| record.revision).collect();
        let mut bytes = b"key".to_vec();
        for record in self.log.iter().filter(|record| record.revision.main <= revision && self.is_stored(record)) {
            let main = record.revision.main;
            let is_kept = keep.is_empty() || keep.contains(&record.revision);
            let is_last_tombstone = main == self.compact_revision && record.is_tombstone;
            if (main <= self.compact_revision && !is_kept) || is_last_tombstone {
                continue;
            }
            bytes.extend(main.to_be_bytes());
            bytes.push(b'_');
            bytes.extend(record.revision.sub.to_be_bytes());
            if record.is_tombstone {
                bytes.push(b't');
            }
            bytes.extend(key_value(record));
        }
        crc32c::crc32c(&bytes)
    }
}

/// The canonical `mvccpb.KeyValue`.
fn key_value(record: &Record) -> Vec<u8> {
    fn varint(out: &mut Vec<u8>, mut number: u64) {
        loop {
            let byte = number.to_le_bytes()[0] & 127;
            number /= 128;
            out.push(if number == 0 { byte } else { byte + 128 });
            if number == 0 {
                return;
            }
        }
    }
    let mut out = vec![1 << 3 | 2];
    varint(&mut out, record.key.len() as u64);
    out.extend(&record.key[..]);
    if record.is_tombstone {
        return out;
    }
    for (field, number) in [(2, record.create_revision), (3, record.revision.main), (4, record.version)] {
        out.push(field << 3);
        varint(&mut out, number.cast_unsigned());
    }
    if !record.value.is_empty() {
        out.push(5 << 3 | 2);
        varint(&mut out, record.value.len() as u64);
        out.extend(&record.value[..]);
    }
    if record.lease != 0 {
        out.push(6 << 3);
        varint(&mut out, record.lease.cast_unsigned());
    }
    out
}

pub(crate) struct Store {
    pub(crate) mvcc: Mvcc,
    pub(crate) pages: HashMap<Place, Vec<u8>>,
    pub(crate) model: Model,
    directory: Arc<Directory>,
    applied_index: u64,
    sealed: Option<(Sealed, Model)>,
    durable: Option<(Sealed, Model)>,
    /// Pages written and not reported dead.
    allocated: BTreeSet<Place>,
    /// Whether records of before a reopening are gone: no extents here.
    is_tree_only: bool,
    pub(crate) evicted: usize,
    walks: Vec<LongWalk>,
    seed: u64,
}

/// A read that outlives its view.
struct LongWalk {
    at: i64,
    cursor: Cursor,
    count: Count,
    counted: Option<u64>,
    seen: usize,
    expected: Vec<Record>,
}

/// Tries an operation until no page is missing.
pub(crate) fn faulting<T>(pages: &HashMap<Place, Vec<u8>>, mut operation: impl FnMut() -> Result<T, Fault>) -> T {
    let mut last = None;
    loop {
        match operation() {
            Ok(done) => return done,
            Err(fault) => {
                let place = fault.place();
                assert_ne!(last, Some(place), "a resolved page is there");
                last = Some(place);
                fault.resolve(&pages[&place]).unwrap();
            }
        }
    }
}

impl Store {
    pub(crate) fn new(seed: u64) -> Self {
        let directory = Directory::empty(BlockCache::new(1 << 20));
        let mvcc = Mvcc::new(Roots::fresh(Arc::clone(&directory)));
        let model = Model { revision: 1, compact_revision: -1, ..Model::default() };
        Self {
            mvcc,
            pages: HashMap::new(),
            model,
            directory,
            applied_index: 0,
            sealed: None,
            durable: None,
            allocated: BTreeSet::new(),
            is_tree_only: false,
            evicted: 0,
            walks: Vec::new(),
            seed,
        }
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.request(&[Op::Put(key.to_vec(), value.to_vec(), 0)]);
    }

    pub(crate) fn delete_range(&mut self, range: &KeyRange) {
        self.request(&[Op::Delete(range.clone())]);
    }

    pub(crate) fn random_request(&mut self, rng: &mut SmallRng) {
        if rng.random_bool(0.2) {
            self.plain_put(rng);
        }
        let ops: Vec<Op> = (0..rng.random_range(1..6))
            .map(|_| match rng.random_range(0..12) {
                0..6 => {
                    let lease = if rng.random_bool(0.2) { rng.random_range(1..i64::MAX) } else { 0 };
                    Op::Put(some_key(rng), vec![rng.random(); rng.random_range(0..40)], lease)
                }
                6 | 7 => Op::Delete(KeyRange::single(some_key(rng).into())),
                8 if rng.random_bool(0.2) => Op::Delete(range_strategy(rng)),
                8 | 9 => Op::MetaPut(some_key(rng), vec![rng.random(); rng.random_range(0..200)]),
                10 => Op::MetaDelete(some_key(rng)),
                _ => Op::Read(range_strategy(rng), rng.random_range(0..3)),
            })
            .collect();
        self.request(&ops);
    }

    /// A put in one descent, which is done or leaves everything as it was.
    fn plain_put(&mut self, rng: &mut SmallRng) {
        let (key, value) = (Bytes::from(some_key(rng)), Bytes::from(vec![rng.random(); rng.random_range(0..40)]));
        let before = self.model.get(&key, i64::MAX).cloned();
        let is_fit = before.as_ref().is_none_or(|before| before.lease == 0);
        let put = faulting(&self.pages, || self.mvcc.put_plain(key.clone(), value.clone()));
        let PutPlain::Done { record, previous } = put else {
            assert!(!is_fit, "seed {}: it could be put", self.seed);
            return assert_eq!(self.mvcc.live().revision(), self.model.revision);
        };
        assert!(is_fit, "seed {}: the live version stays", self.seed);
        assert_eq!(previous, before.as_ref().map(|before| before.revision));
        self.model.revision += 1;
        let revision = Revision::new(self.model.revision, 0);
        let (create_revision, version) = before.map_or((revision.main, 1), |it| (it.create_revision, it.version + 1));
        assert_eq!(
            record,
            Record { key, value, create_revision, revision, version, lease: 0, is_tombstone: false },
            "seed {}",
            self.seed
        );
        self.model.push(record);
    }

    fn request(&mut self, ops: &[Op]) {
        let mut revision = Revision::new(self.model.revision + 1, 0);
        let mut changed = Vec::new();
        let (mut told, mut paused) = (Vec::new(), Vec::new());
        let Self { mvcc, model, pages, .. } = self;
        let mut write = mvcc.begin();
        for (number, op) in ops.iter().enumerate() {
            if (model.log.len() + number) % 5 == 0 {
                told.extend(write.pause().records);
                mvcc.evict(10);
                let view = mvcc.publish(self.applied_index, u64::from(self.applied_index > 0));
                assert_eq!((view.revision(), mvcc.is_unfinished()), (model.revision, !changed.is_empty()));
                paused.push(view);
                write = mvcc.begin();
            }
            match op {
                Op::Put(key, value, lease) => {
                    let (record, before) = put_once(model, pages, &mut write, (key, value, *lease), revision);
                    revision.sub += 1;
                    changed.push((record.clone(), before));
                    model.push(record);
                }
                Op::Delete(range) => {
                    let mut ended = VecDeque::new();
                    let is_by_leaf = (range.start.len() + changed.len()) % 2 == 0;
                    for before in live_before_delete(model, pages, &write, range) {
                        if is_by_leaf && ended.is_empty() {
                            let left = KeyRange { start: before.key.clone(), ..range.clone() };
                            ended.extend(faulting(pages, || write.delete_some(&left)));
                        }
                        let previous = ended.pop_front();
                        let previous = previous.or_else(|| faulting(pages, || write.delete(&before.key)));
                        assert_previous(previous.as_ref(), Some(&before));
                        let record = tombstone(before.key.clone(), revision);
                        revision.sub += 1;
                        changed.push((record.clone(), Some(before)));
                        model.push(record);
                    }
                    assert!(ended.is_empty(), "it ends nothing beyond the range");
                    assert!(!is_by_leaf || faulting(pages, || write.delete_some(range)).is_empty());
                }
                Op::MetaPut(key, value) => {
                    faulting(pages, || write.meta_put(key, value));
                    model.meta.insert(key.clone(), value.clone());
                }
                Op::MetaDelete(key) => {
                    delete_few(model, pages, &mut write, key);
                }
                Op::Read(range, back) => {
                    // The request's own changes are seen at its revision, and not below.
                    let at = (write.revision() - back).max(model.compact_revision);
                    let count = faulting(pages, || write.count(range, at));
                    assert_eq!(count, model.range(range, at).len() as u64);
                }
            }
        }
        let changes = write.finish();
        model.revision += i64::from(!changed.is_empty());
        assert_eq!(changes.revision, model.revision);
        told.extend(changes.records);
        assert_eq!(told.len(), changed.len());
        for (change, (record, before)) in told.iter().zip(&changed) {
            assert_eq!(change.record, *record);
            assert_previous(change.previous.as_ref(), before.as_ref());
        }
        for view in paused {
            self.check_paused(&view);
        }
    }

    /// Checks a view that was published in the middle of a request: it shows what was before it.
    fn check_paused(&self, view: &ReadView) {
        let at = view.revision();
        let low = self.model.compact_revision.max(at - 3).max(0);
        for at in [low, at] {
            self.check_range(view, &KeyRange::all(), at);
        }
        if !self.is_tree_only {
            self.check_records_from(view, Revision::new(low + 1, 0));
        }
    }

    pub(crate) fn publish(&mut self) -> Arc<ReadView> {
        self.applied_index += 1;
        self.mvcc.publish(self.applied_index, 1)
    }

    pub(crate) fn compact(&mut self, rng: &mut SmallRng) {
        let low = self.model.compact_revision + 1;
        if low <= self.model.revision {
            self.compact_at(rng.random_range(low..=self.model.revision));
        }
    }

    pub(crate) fn compact_at(&mut self, revision: i64) {
        let previous = self.model.compact_revision;
        self.mvcc.compact(revision);
        if !self.is_tree_only {
            let view = self.mvcc.live();
            let hash = finish(&self.pages, view.hash_compaction(previous, revision), view, 100);
            assert_eq!(hash, (self.model.hash_kv(revision, true), previous), "seed {} at {revision}", self.seed);
        }
        self.model.compact_revision = revision;
    }

    pub(crate) fn sweep(&mut self, budget: usize) {
        let (mvcc, pages) = (&mut self.mvcc, &self.pages);
        faulting(pages, || mvcc.sweep(budget));
        for (revision, bytes) in mvcc.take_dead_records() {
            let position = self.model.log.binary_search_by_key(&revision, |record| record.revision).unwrap();
            let record = &self.model.log[position];
            assert!(!self.model.is_stored(record), "only what compaction dropped is dropped");
            assert_eq!(bytes as usize, key_value(record).len());
        }
    }

    pub(crate) fn seal(&mut self) {
        if self.sealed.is_some() {
            return;
        }
        self.bury();
        let sealed = self.mvcc.seal_for_checkpoint();
        self.sealed = Some((sealed, self.model.clone()));
    }

    /// Gives back memory of what was not used lately.
    pub(crate) fn evict(&mut self, budget: usize) {
        self.evicted += self.mvcc.evict(budget).evicted;
    }

    fn bury(&mut self) {
        for place in self.mvcc.take_dead_places() {
            assert!(self.allocated.remove(&place), "a page dies once");
        }
    }

    /// Writes the dirty nodes of the sealed trees, children first.
    pub(crate) fn checkpoint_done(&mut self) {
        let Some((sealed, model)) = self.sealed.take() else { return };
        for root in [&sealed.roots.key_root, &sealed.roots.meta_root] {
            self.write(root);
        }
        self.mvcc.checkpoint_done(Arc::clone(&self.directory), Revision::MIN);
        self.bury();
        let live = self.mvcc.view();
        let mut reached = BTreeSet::new();
        for root in roots_of(&live, &mut self.mvcc) {
            reach(&self.pages, &root, &mut reached);
        }
        assert_eq!(reached, self.allocated, "what is not reached is reported dead, nothing else is");
        self.durable = Some((sealed, model));
    }

    fn write(&mut self, slot: &Arc<Slot>) {
        if !slot.is_dirty() {
            return;
        }
        let node = slot.node().unwrap();
        for child in node.children() {
            self.write(child);
        }
        let mut payload = Vec::new();
        node.encode(&mut payload);
        let mut page = Vec::new();
        let segment = u32::try_from(self.pages.len() + 1).unwrap();
        let place = seal(Kind::Node, segment, 0, &payload, &mut page);
        slot.set_place(place);
        self.pages.insert(place, page);
        self.allocated.insert(place);
    }

    /// Goes on from the last checkpoint with nothing in memory.
    pub(crate) fn reopen(&mut self) {
        let Some((sealed, model)) = self.durable.take() else { return };
        let roots = &sealed.roots;
        let residency = Arc::default();
        let cold = |slot: &Arc<Slot>| Slot::on_disk(slot.place().unwrap(), &residency);
        let (key_root, meta_root) = (cold(&roots.key_root), cold(&roots.meta_root));
        self.sealed = None;
        self.allocated.clear();
        for root in [&key_root, &meta_root] {
            reach(&self.pages, &cold(root), &mut self.allocated);
        }
        self.applied_index = roots.applied_index;
        self.mvcc = Mvcc::new(Roots { key_root, meta_root, ..roots.clone() });
        self.model = model;
        self.walks.clear();
        self.is_tree_only = true;
    }

    pub(crate) fn verify(&self) {
        let view = self.mvcc.view();
        faulting(&self.pages, || view.verify());
    }

    /// Random reads of the view published last.
    pub(crate) fn check(&self, rng: &mut SmallRng) {
        let view = self.mvcc.view();
        let low = self.model.compact_revision.max(0);
        for _ in 0..3 {
            let at = rng.random_range(low..=self.model.revision);
            let range = range_strategy(rng);
            self.check_range(&view, &range, at);
            self.check_range(&view, &range, self.model.revision + rng.random_range(0..2));
            let key = some_key(rng);
            let version = faulting(&self.pages, || view.version_of(&key, at));
            let expected = self.model.newest(&key, at).filter(|record| self.model.is_stored(record));
            assert_previous(version.as_ref(), expected);
            if !self.is_tree_only {
                let found = faulting(&self.pages, || view.get(&key, at));
                assert_eq!(found.as_ref(), self.model.get(&key, at), "seed {}", self.seed);
            }
            let value = faulting(&self.pages, || view.meta_get(&key));
            assert_eq!(value.as_deref(), self.model.meta.get(&key).map(|value| &value[..]));
        }
        if rng.random_bool(0.1) {
            self.check_meta(&view, rng);
        }
        if rng.random_bool(0.2) && !self.is_tree_only {
            self.check_records_from(&view, Revision::new(rng.random_range(low..=self.model.revision) + 1, 0));
            let at = rng.random_range(low..=self.model.revision);
            self.check_hash(at, rng.random_range(1..200));
        }
    }

    pub(crate) fn check_hash(&self, at: i64, budget: usize) {
        let view = self.mvcc.view();
        let hash = finish(&self.pages, view.hash_kv(at), &view, budget);
        assert_eq!(hash, (self.model.hash_kv(at, false), self.model.compact_revision), "seed {} at {at}", self.seed);
    }

    /// Begins a walk and a count that later states go on with; the sweep is held back for them.
    pub(crate) fn begin_walk(&mut self, rng: &mut SmallRng) {
        let view = self.mvcc.view();
        let at = rng.random_range(self.model.compact_revision.max(0)..=self.model.revision);
        let range = range_strategy(rng);
        let expected: Vec<Record> = self.model.range(&range, at).into_iter().cloned().collect();
        let (cursor, count) = (view.cursor(&range, at), view.counter(&range, at));
        self.walks.push(LongWalk { at, cursor, count, counted: None, seen: 0, expected });
    }

    /// Goes on with some of the walks in the newest view; those that end must have met what their revision shows.
    pub(crate) fn lead_walks(&mut self, rng: &mut SmallRng) {
        let view = self.mvcc.view();
        let mut walks = std::mem::take(&mut self.walks);
        for walk in &mut walks {
            view.lead(&mut walk.cursor);
            view.lead_count(&mut walk.count);
            for _ in 0..rng.random_range(0..20) {
                let version = faulting(&self.pages, || walk.cursor.next());
                assert_previous(version.as_ref(), walk.expected.get(walk.seen));
                walk.seen += 1;
            }
            if walk.counted.is_none() {
                walk.counted = faulting(&self.pages, || walk.count.step(20));
                assert!(walk.counted.is_none_or(|counted| counted == walk.expected.len() as u64), "seed {}", self.seed);
            }
        }
        walks.retain(|walk| walk.seen <= walk.expected.len() || walk.counted.is_none());
        self.mvcc.hold_sweep(walks.iter().map(|walk| walk.at).min());
        self.walks = walks;
    }

    /// The cursor, both counts and the sums of a range.
    pub(crate) fn check_range(&self, view: &ReadView, range: &KeyRange, at: i64) {
        let expected = self.model.range(range, at);
        let mut cursor = view.cursor(range, at);
        for record in &expected {
            let version = faulting(&self.pages, || cursor.next());
            assert_previous(version.as_ref(), Some(record));
        }
        assert_eq!(faulting(&self.pages, || cursor.next()), None, "seed {} at {at}", self.seed);
        assert_eq!(faulting(&self.pages, || cursor.next()), None);
        assert_eq!(faulting(&self.pages, || view.count(range, at)), expected.len() as u64);
        let mut counter = view.counter(range, at);
        let count = loop {
            if let Some(count) = faulting(&self.pages, || counter.step(7)) {
                break count;
            }
        };
        assert_eq!(count, expected.len() as u64);
        if view.is_newest(at) {
            // As fields of an answer: a tag, the length in groups of seven bits, the record.
            let shown = |record: &&Record| {
                let len = key_value(record).len();
                let groups = std::iter::successors(Some(len), |len| Some(len >> 7).filter(|rest| *rest > 0)).count();
                (1 + groups + len) as u64
            };
            let bytes = expected.iter().map(shown).sum::<u64>();
            for max in [0, 1, expected.len() / 2, expected.len().saturating_sub(1), expected.len(), usize::MAX] {
                let first = &expected[..expected.len().min(max)];
                let sums = faulting(&self.pages, || view.sums(range, max as u64));
                assert_eq!(
                    sums,
                    (first.len() as u64, first.iter().map(shown).sum::<u64>()),
                    "seed {}, {max} of {range:?}",
                    self.seed
                );
            }
            let usage = faulting(&self.pages, || view.usage(range));
            assert_eq!((usage.keys, usage.live_bytes), (expected.len() as u64, bytes));
            // What compaction makes droppable is there until the sweep comes by.
            let is_in = |record: &&Record| range.contains(&record.key) && record.revision.main <= view.revision();
            let records = self.model.log.iter().filter(is_in);
            let kept = records.clone().filter(|record| self.model.is_stored(record)).count() as u64;
            assert!((kept..=records.count() as u64).contains(&usage.versions), "{usage:?}, at least {kept}");
        }
        if let Some(middle) = expected.get(expected.len() / 2) {
            let mut cursor = view.cursor_after(range, at, &middle.key);
            for record in &expected[expected.len() / 2 + 1..] {
                assert_previous(faulting(&self.pages, || cursor.next()).as_ref(), Some(record));
            }
            assert_eq!(faulting(&self.pages, || cursor.next()), None);
        }
    }

    fn check_meta(&self, view: &ReadView, rng: &mut SmallRng) {
        let key = some_key(rng);
        let prefix = &key[..rng.random_range(0..=key.len().min(6))];
        let mut cursor = view.meta_cursor(prefix);
        for (key, value) in self.model.meta.iter().filter(|(key, _)| key.starts_with(prefix)) {
            let found = faulting(&self.pages, || cursor.next()).unwrap();
            assert_eq!((&found.0[..], &found.1[..]), (&key[..], &value[..]));
        }
        assert_eq!(faulting(&self.pages, || cursor.next()), None);
        let bytes: usize = self.model.meta.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert_eq!(faulting(&self.pages, || view.meta_sums()), (self.model.meta.len() as u64, bytes as u64));
    }

    pub(crate) fn check_records_from(&self, view: &ReadView, from: Revision) {
        let mut records = view.records_from(from);
        let is_in = |record: &&Record| record.revision >= from && record.revision.main <= view.revision();
        for record in self.model.log.iter().filter(is_in) {
            assert_eq!(records.next().unwrap().as_ref(), Some(record));
        }
        assert_eq!(records.next().unwrap(), None);
    }
}

enum Op {
    Put(Vec<u8>, Vec<u8>, i64),
    Delete(KeyRange),
    MetaPut(Vec<u8>, Vec<u8>),
    MetaDelete(Vec<u8>),
    Read(KeyRange, i64),
}

impl Model {
    fn push(&mut self, record: Record) {
        self.keys.entry(record.key.to_vec()).or_default().push(record.clone());
        self.log.push(record);
    }
}

fn finish(pages: &HashMap<Place, Vec<u8>>, mut hash: HashKv, view: &ReadView, budget: usize) -> (u32, i64) {
    loop {
        if let Some(done) = faulting(pages, || hash.step(view, budget)) {
            return done;
        }
    }
}

/// Removes `key` from the meta tree, and a few entries behind it.
fn delete_few(model: &mut Model, pages: &HashMap<Place, Vec<u8>>, write: &mut Write<'_>, key: &Vec<u8>) {
    let few: Vec<_> = model.meta.range(key.clone()..).take(4).map(|(key, _)| key.clone()).collect();
    let last = few.last().unwrap_or(key);
    let removed = faulting(pages, || write.meta_delete_some(key, last));
    assert!(removed <= few.len() && (removed > 0) == model.meta.contains_key(key));
    few[..removed].iter().for_each(|key| drop(model.meta.remove(key)));
    assert!(!faulting(pages, || write.meta_delete(key)));
}

/// Puts through `write`. Returns the record that must be written, and the one that it replaces.
fn put_once(
    model: &Model,
    pages: &HashMap<Place, Vec<u8>>,
    write: &mut Write<'_>,
    (key, value, lease): (&[u8], &[u8], i64),
    revision: Revision,
) -> (Record, Option<Record>) {
    let before = model.get(key, i64::MAX).cloned();
    let record = Record {
        key: Bytes::copy_from_slice(key),
        value: Bytes::copy_from_slice(value),
        create_revision: before.as_ref().map_or(revision.main, |before| before.create_revision),
        revision,
        version: before.as_ref().map_or(1, |before| before.version + 1),
        lease,
        is_tombstone: false,
    };
    let (key, value) = (record.key.clone(), record.value.clone());
    let previous = faulting(pages, || write.put(key.clone(), value.clone(), lease));
    assert_previous(previous.as_ref(), before.as_ref());
    (record, before)
}

/// What a request sees in a range that it is about to delete.
fn live_before_delete(
    model: &Model,
    pages: &HashMap<Place, Vec<u8>>,
    write: &Write<'_>,
    range: &KeyRange,
) -> Vec<Record> {
    let mut cursor = write.cursor(range, i64::MAX);
    let mut found = Vec::new();
    while let Some(version) = faulting(pages, || cursor.next()) {
        found.push(version.key);
    }
    let expected: Vec<Record> = model.range(range, i64::MAX).into_iter().cloned().collect();
    assert!(found.iter().eq(expected.iter().map(|record| &record.key)));
    expected
}

fn tombstone(key: Bytes, revision: Revision) -> Record {
    let (value, create_revision, version, lease) = (Bytes::new(), 0, 0, 0);
    Record { key, value, create_revision, revision, version, lease, is_tombstone: true }
}

fn assert_previous(version: Option<&Version>, record: Option<&Record>) {
    let expected = record.map(|record| Version {
        key: record.key.clone(),
        revision: record.revision,
        create_revision: record.create_revision,
        version: record.version,
        lease: record.lease,
        is_tombstone: record.is_tombstone,
        bytes: u32::try_from(key_value(record).len()).unwrap(),
    });
    assert_eq!(version, expected.as_ref());
}

/// The roots of the unpublished trees: sealed and let go again, which writes nothing.
fn roots_of(view: &ReadView, mvcc: &mut Mvcc) -> [Arc<Slot>; 2] {
    mvcc.publish(view.applied_index(), view.applied_term());
    let sealed = mvcc.seal_for_checkpoint();
    mvcc.checkpoint_failed();
    [sealed.roots.key_root, sealed.roots.meta_root]
}

fn reach(pages: &HashMap<Place, Vec<u8>>, slot: &Arc<Slot>, places: &mut BTreeSet<Place>) {
    if let Some(place) = slot.place() {
        assert!(places.insert(place), "a page has one parent");
    }
    let node = faulting(pages, || slot.node());
    for child in node.children() {
        reach(pages, child, places);
    }
}

/// Keys that share prefixes, are prefixes of each other, hold 0x00 and 0xff, or are long.
pub(crate) fn some_key(rng: &mut SmallRng) -> Vec<u8> {
    match rng.random_range(0..20) {
        0..8 => format!("/registry/pods/ns{}/pod-{}", rng.random_range(0..4), rng.random_range(0..150)).into_bytes(),
        8..12 => {
            let len = rng.random_range(1..5);
            (0..len).map(|_| [0x00, 0x01, b'a', 0xfe, 0xff][rng.random_range(0..5)]).collect()
        }
        12..15 => b"hot".to_vec(),
        15 => [vec![b'l'; 2000], vec![rng.random_range(0..5); rng.random_range(1..2000)]].concat(),
        16 => vec![b'm'; rng.random_range(1..6000)],
        _ => format!("{:04}", rng.random_range(0..3000)).into_bytes(),
    }
}

/// Single keys, open ranges, prefixes, pairs, empty ranges.
pub(crate) fn range_strategy(rng: &mut SmallRng) -> KeyRange {
    let start = some_key(rng);
    let end = match rng.random_range(0..6) {
        0 => RangeEnd::Single,
        1 => RangeEnd::Open,
        2 => return KeyRange::prefix(&start[..rng.random_range(0..=start.len().min(17))]),
        3 => return KeyRange::all(),
        _ => RangeEnd::Before(some_key(rng).into()),
    };
    KeyRange { start: start.into(), end }
}
