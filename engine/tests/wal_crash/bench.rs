//! The log at work on a simulated disk, and `History`, the checker: it knows every record that was ever handed to the
//! log and how far the log acknowledged it. A recovered log has to equal the state after some prefix of those records,
//! at least the acknowledged one.

use std::path::Path;

use bytes::Bytes;
use engine::{
    Error,
    disk::{
        Completion, Disk,
        sim::{Faults, Order, Random, SimDisk, SimStorage},
    },
    wal::{Entry, HardState, Known, Options, Recovered, Wal},
};

pub(crate) const DIR: &str = "data/wal";

/// Seeds that failed once.
pub(crate) const KEPT_SEEDS: [u64; 1] = [345];

pub(crate) fn options(segment_blocks: u32, writes_in_flight_max: usize) -> Options {
    Options {
        segment_bytes: segment_blocks * 4096,
        group_bytes_max: 6000,
        writes_in_flight_max,
        spare_segments_max: 2,
        fresh_id: 0x0123_4567_89ab_cdef,
    }
}

/// What a log holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) mark: (u64, u64),
    pub(crate) entries: Vec<Entry>,
    pub(crate) hard_state: HardState,
}

impl State {
    pub(crate) fn new() -> Self {
        Self { mark: (0, 0), entries: Vec::new(), hard_state: HardState::default() }
    }

    pub(crate) fn of(recovered: &Recovered) -> Self {
        Self { mark: recovered.mark, entries: recovered.entries.clone(), hard_state: recovered.hard_state }
    }

    pub(crate) fn last_index(&self) -> u64 {
        self.mark.0 + self.entries.len() as u64
    }

    pub(crate) fn last_term(&self) -> u64 {
        self.entries.last().map_or(self.mark.1, |entry| entry.term)
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        match change {
            Change::Put(entry) => {
                self.entries.truncate(usize::try_from(entry.index - self.mark.0 - 1).expect("small"));
                self.entries.push(entry.clone());
            }
            Change::Vote(state) => self.hard_state = *state,
            Change::Mark(index, term) => {
                let is_held = self.entries.iter().any(|entry| (entry.index, entry.term) == (*index, *term));
                self.entries.retain(|entry| is_held && entry.index > *index);
                self.mark = (*index, *term);
            }
        }
    }

    /// Equal but for the commit, which may be lost; it never runs ahead of the log. Once cut, a log stays cut: nothing
    /// here makes up for what may be missing.
    pub(crate) fn is_like(&self, recovered: &Self) -> bool {
        let (mine, theirs) = (self.hard_state, recovered.hard_state);
        (self.mark, &self.entries, mine.term, mine.vote)
            == (recovered.mark, &recovered.entries, theirs.term, theirs.vote)
            && (!mine.is_cut || theirs.is_cut)
            && theirs.commit >= recovered.mark.0
            && theirs.commit <= recovered.last_index()
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(Entry),
    Vote(HardState),
    Mark(u64, u64),
}

/// Every change handed to the log since it was opened with `base`, and the ticket each belongs to.
pub(crate) struct History {
    pub(crate) base: State,
    pub(crate) now: State,
    pub(crate) changes: Vec<(u64, Change)>,
    pub(crate) ticket: u64,
}

impl History {
    pub(crate) fn starting_at(base: State) -> Self {
        Self { now: base.clone(), base, changes: Vec::new(), ticket: 0 }
    }

    pub(crate) fn add(&mut self, change: Change) {
        self.now.apply(&change);
        self.changes.push((self.ticket, change));
    }

    /// Whether `recovered` is the state after a prefix that covers everything up to ticket `durable`.
    pub(crate) fn allows(&self, recovered: &State, durable: u64) -> bool {
        let mut state = self.base.clone();
        let acknowledged = self.changes.iter().take_while(|(ticket, _)| *ticket <= durable).count();
        for (position, (_, change)) in self.changes.iter().enumerate() {
            if position >= acknowledged && state.is_like(recovered) {
                return true;
            }
            state.apply(change);
        }
        state.is_like(recovered)
    }

    /// Panics unless it [`History::allows`] `recovered`.
    pub(crate) fn check(&self, recovered: &State, durable: u64, context: &str) {
        let brief = |state: &State| {
            let of_entry = |entry: &Entry| (entry.index, entry.term, entry.data.len());
            (state.mark, state.hard_state, state.entries.iter().map(of_entry).collect::<Vec<_>>())
        };
        assert!(
            self.allows(recovered, durable),
            "{context}: no prefix with all of ticket {durable} gives {:?}, the whole gives {:?}",
            brief(recovered),
            brief(&self.now)
        );
    }
}

/// A log at work on a simulated disk.
pub(crate) struct Bench {
    pub(crate) disk: SimDisk,
    pub(crate) wal: Wal,
    pub(crate) history: History,
    pub(crate) ended: Vec<Completion>,
}

impl Bench {
    pub(crate) fn open(storage: &SimStorage, options: Options) -> Result<(Self, Recovered), Error> {
        let mut disk = storage.disk();
        // Told that all of it could have been trimmed, it finds what was, and no less.
        let known = Known { trimmable: 1 << 40, ..Known::default() };
        let (wal, recovered) = Wal::open(&mut disk, Path::new(DIR), options, known)?;
        let history = History::starting_at(State::of(&recovered));
        Ok((Self { disk, wal, history, ended: Vec::new() }, recovered))
    }

    pub(crate) fn pump(&mut self) -> Result<(), Error> {
        self.wal.step(&mut self.disk)?;
        self.disk.kick()?;
        self.disk.completions(&mut self.ended);
        for completion in self.ended.drain(..) {
            self.wal.on_completion(completion, &mut self.disk)?;
        }
        Ok(())
    }

    pub(crate) fn settle(&mut self) -> Result<(), Error> {
        while self.wal.durable() < self.history.ticket {
            self.pump()?;
        }
        Ok(())
    }

    /// Entries that are read back from `from` on.
    pub(crate) fn fetch(&mut self, from: u64, bytes_max: usize) -> Vec<Entry> {
        assert!(self.wal.fetch(&mut self.disk, from, bytes_max), "entry {from} is durable");
        loop {
            self.pump().expect("the log runs");
            if let Some(fetched) = self.wal.take_fetched().pop() {
                assert_eq!(fetched.from, from);
                return fetched.entries.expect("it is all there");
            }
        }
    }

    pub(crate) fn append(&mut self, entries: Vec<Entry>, hard_state: Option<HardState>) -> Result<(), Error> {
        self.history.ticket += 1;
        self.wal.append(&entries, hard_state, self.history.ticket)?;
        for entry in entries {
            self.history.add(Change::Put(entry));
        }
        let former = self.history.now.hard_state;
        if let Some(state) = hard_state {
            if (state.term, state.vote) == (former.term, former.vote) {
                self.history.now.hard_state.commit = state.commit;
            } else {
                self.history.add(Change::Vote(state));
            }
        }
        assert_eq!(self.wal.last_index(), self.history.now.last_index());
        Ok(())
    }

    pub(crate) fn trim(&mut self, index: u64, term: u64) -> Result<(), Error> {
        self.wal.trim(index, term)?;
        self.marked(index, term)
    }

    pub(crate) fn restart_after(&mut self, index: u64, term: u64) -> Result<(), Error> {
        self.wal.restart_after(index, term)?;
        self.marked(index, term)
    }

    pub(crate) fn marked(&mut self, index: u64, term: u64) -> Result<(), Error> {
        self.history.ticket += 1;
        self.history.add(Change::Mark(index, term));
        // The mark has the ticket of what was appended before it; an empty append makes it visible to `settle`.
        self.wal.append(&[], None, self.history.ticket)
    }

    /// One random action.
    pub(crate) fn act(&mut self, random: &mut Random, entry_len_max: u64) -> Result<(), Error> {
        let now = self.history.now.clone();
        let term = now.last_term().max(now.hard_state.term).max(1);
        match random.below(20) {
            0..=10 => {
                let count = random.below(3) + 1;
                let entries = fresh_entries(random, now.last_index() + 1, term, count, entry_len_max);
                let commit = now.hard_state.commit.max(now.last_index());
                let state = HardState { commit, ..now.hard_state };
                self.append(entries, random.chance(1, 2).then_some(state))
            }
            11..=12 if now.last_index() > now.hard_state.commit => {
                let room = now.last_index() - now.hard_state.commit;
                let from = now.hard_state.commit.max(now.mark.0) + 1 + random.below(room);
                let count = random.below(2) + 1;
                let entries = fresh_entries(random, from, term + 1, count, entry_len_max);
                let state = HardState { term: term + 1, vote: random.below(3) + 1, ..now.hard_state };
                self.append(entries, Some(state))
            }
            13 => {
                let state = HardState { term: term + 1, vote: random.below(3), ..now.hard_state };
                self.append(Vec::new(), Some(state))
            }
            14..=15 if now.hard_state.commit > now.mark.0 => {
                let span = now.hard_state.commit - now.mark.0;
                let kept = usize::try_from(random.below(span)).expect("small");
                let entry = now.entries[kept].clone();
                self.trim(entry.index, entry.term)
            }
            16 if random.chance(1, 6) => {
                self.restart_after(now.last_index() + 1 + random.below(20), term + 1)?;
                let mark = self.history.now.mark;
                let state = HardState { term: mark.1, vote: 0, commit: mark.0, ..now.hard_state };
                self.append(Vec::new(), Some(state))
            }
            17 => self.settle(),
            18 if random.chance(1, 2) => {
                self.settle()?;
                self.wal.state_end();
                Ok(())
            }
            _ => self.pump(),
        }
    }

    pub(crate) fn work(&mut self, random: &mut Random, actions: usize, entry_len_max: u64) -> Result<(), Error> {
        for _ in 0..actions {
            self.act(random, entry_len_max)?;
            if random.chance(1, 2) {
                self.pump()?;
            }
        }
        self.settle()
    }
}

pub(crate) fn fresh_entries(random: &mut Random, from: u64, term: u64, count: u64, len_max: u64) -> Vec<Entry> {
    let entry = |index| {
        let len = usize::try_from(random.below(len_max + 1)).expect("small");
        // Half of the payloads are zeros: they look like what was never written.
        let byte = if random.chance(1, 2) { 0 } else { u8::try_from(random.below(256)).expect("a byte") };
        Entry { index, term, kind: u8::try_from(index % 3).expect("small"), data: Bytes::from(vec![byte; len]) }
    };
    (from..from + count).map(entry).collect()
}

/// Opens the log in `image` while some reads fail. What cannot be read where it is needed is refused; then it is opened
/// once more.
pub(crate) fn opened(image: &SimStorage, options: Options, context: &str) -> (Bench, Recovered) {
    image.set_faults(Faults { read_error: 30, ..Faults::default() });
    loop {
        let failed = image.injected().len();
        match Bench::open(image, options) {
            Ok(opened) => {
                image.set_faults(Faults::default());
                return opened;
            }
            Err(error) => assert!(image.injected().len() > failed, "{context}: refused: {error}"),
        }
    }
}

/// Opens `image`, checks it against `history`, appends, and crashes again.
pub(crate) fn check_image(image: &SimStorage, options: Options, history: &History, durable: u64, context: &str) {
    let (mut bench, recovered) = opened(image, options, context);
    let first = State::of(&recovered);
    history.check(&first, durable, context);
    // What was recovered counts as acknowledged from now on; what was lost is appended once more, and must not bring
    // back what stood behind it.
    for again in image.crash_images(2) {
        let (_, recovered) = opened(&again, options, context);
        assert!(State::of(&recovered) == first, "{context}: what was recovered is durable");
    }
    let lost = history.changes.iter().filter_map(|(_, change)| match change {
        Change::Put(entry) if entry.index == first.last_index() + 1 && entry.term >= first.last_term() => Some(entry),
        _ => None,
    });
    if let Some(entry) = lost.last() {
        bench.append(vec![entry.clone()], None).expect("the log runs");
    }
    let term = bench.history.now.last_term().max(bench.history.now.hard_state.term) + 1;
    let next = bench.history.now.last_index() + 1;
    let entry = Entry { index: next, term, kind: 7, data: Bytes::from_static(b"after the crash") };
    bench
        .append(vec![entry], Some(HardState { term, vote: 2, commit: next - 1, is_cut: false, concerned: 0 }))
        .expect("the log runs");
    bench.settle().unwrap_or_else(|error| panic!("{context}: {error}"));
    let expected = &bench.history.now;
    for again in image.crash_images(2) {
        let (_, recovered) = opened(&again, options, context);
        let found = State::of(&recovered);
        assert!(
            expected.is_like(&found),
            "{context}: {} entries became {}",
            expected.entries.len(),
            found.entries.len()
        );
    }
}

/// Runs a workload of `actions`, stopped after `steps`, and checks what every image (at most `images`) recovers to.
/// Returns whether the workload ended by itself.
pub(crate) fn stop_and_check(
    seed: u64,
    steps: u64,
    options: Options,
    actions: usize,
    len_max: u64,
    images: usize,
) -> bool {
    let storage = SimStorage::new(seed);
    storage.set_order(Order::Seeded);
    storage.stop_after(steps);
    let mut random = Random::new(seed);
    let (history, durable) = match Bench::open(&storage, options) {
        Ok((mut bench, _)) => {
            let result = bench.work(&mut random, actions, len_max);
            assert!(result.is_ok() || storage.is_stopped(), "seed {seed}: {result:?}");
            (bench.history, bench.wal.durable())
        }
        Err(error) => {
            assert!(storage.is_stopped(), "seed {seed}: {error}");
            (History::starting_at(State::new()), 0)
        }
    };
    let is_whole = !storage.is_stopped();
    for (number, image) in storage.crash_images(images).into_iter().enumerate() {
        let context = format!("seed {seed}, stopped after {steps}, image {number}");
        check_image(&image, options, &history, durable, &context);
    }
    let killed = storage.kill();
    check_image(&killed, options, &history, durable, &format!("seed {seed}, killed after {steps}"));
    is_whole
}
