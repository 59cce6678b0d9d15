//! The simulated disk of one machine, as a test holds it.
//!
//! Invariants: clones are handles on the same state. Images after a crash share nothing with it. This file changes
//! nothing by itself; everything happens in `state`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    crash::Crash,
    image::File,
    random::Random,
    state::{Faults, Full, InFlight, Injected, Order, Pending, State},
};
use crate::disk::SECTOR;

/// The simulated disk of one machine. Clones are handles on the same disk.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

impl SimStorage {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self::with(State::new(seed))
    }

    fn with(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that took effect so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Lets `steps` changes happen (counted from the beginning), and none after them.
    pub fn stop_after(&self, steps: u64) {
        self.state().steps_max = Some(steps);
    }

    /// Whether `stop_after` has stopped the storage: one change more than allowed was tried.
    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    /// Sets the order of completions.
    pub fn set_order(&self, order: Order) {
        self.state().order = order;
    }

    /// Sets the likelihood of faults for later operations.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The faults that happened, oldest first.
    pub fn injected(&self) -> Vec<Injected> {
        self.state().injected.clone()
    }

    /// Bounds the sum of all file sizes. A file that would exceed it cannot be created.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Makes the disk full from step `steps` on (counted from the beginning), until this is called again.
    pub fn set_full(&self, full: Option<(u64, Full)>) {
        self.state().full = full;
    }

    /// The operations in flight, oldest first.
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.state().pending.iter().map(Pending::view).collect()
    }

    /// Completes one operation in flight. Nothing happens when the storage has stopped.
    pub fn complete(&self, number: u64) {
        let mut state = self.state();
        let position = state.pending.iter().position(|pending| pending.number == number);
        state.execute(position.expect("only what is in flight can complete"));
    }

    /// Fails one operation in flight. It leaves no trace on the medium.
    pub fn fail(&self, number: u64, kind: io::ErrorKind) {
        let mut state = self.state();
        let position = state.pending.iter().position(|pending| pending.number == number);
        let pending = state.pending.remove(position.expect("only what is in flight can fail"));
        state.finish(pending, Err(kind.into()));
    }

    /// The files, in order of their paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// The present content of a file.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let file = state.files.get(state.names.get(path)?)?;
        Some(file.read(0, usize::try_from(file.len).ok()?))
    }

    /// Damages the medium: the sector of `path` that holds `offset` is changed by `change`, durably.
    pub fn damage(&self, path: &Path, offset: u64, change: impl FnOnce(&mut [u8; SECTOR])) {
        let mut state = self.state();
        let number = *state.names.get(path).expect("only a file that exists can be damaged");
        let file = state.files.get_mut(&number).expect("every name has a file");
        let at = offset / SECTOR as u64;
        let mut sector = file.live.sector(at);
        change(&mut sector);
        file.damage(at, sector);
    }

    /// Damages the medium: the sector of `path` that holds `offset` cannot be read until it is written.
    pub fn make_unreadable(&self, path: &Path, offset: u64) {
        let mut state = self.state();
        let number = *state.names.get(path).expect("only a file that exists can be damaged");
        let file = state.files.get_mut(&number).expect("every name has a file");
        file.make_unreadable(offset / SECTOR as u64);
    }

    /// Damages the medium: from now on `path` durably holds exactly `content`. Without content there is no such file.
    pub fn replace(&self, path: &Path, content: Option<&[u8]>) {
        let mut state = self.state();
        if let Some(number) = state.names.remove(path) {
            state.names_durable.remove(path);
            state.files.remove(&number);
        }
        if let Some(content) = content {
            let number = state.next();
            state.files.insert(number, File::holding(content));
            state.names.insert(path.to_path_buf(), number);
            state.names_durable.insert(path.to_path_buf(), number);
        }
    }

    /// Plants a defect: whoever opens a file for writing does not wait for the writes of a killed process.
    pub fn unlock_files(&self) {
        self.state().is_unlocked = true;
    }

    /// The disk after the process was killed and the machine went on. Completed writes are there, still volatile. Each
    /// write in flight happened, or did not, or will happen later. Locks of directories are gone. `self` must not be
    /// used any more.
    pub fn kill(&self) -> Self {
        let mut state = self.state();
        let mut random = state.random.clone();
        random.bits();
        let sequence = state.sequence;
        // The kernel ends a process after its system calls: a change of names happened, or never will.
        for number in state
            .pending
            .iter()
            .filter(|pending| pending.changes_names())
            .map(|pending| pending.number)
            .collect::<Vec<_>>()
        {
            if random.chance(1, 2)
                && let Some(at) = state.pending.iter().position(|pending| pending.number == number)
            {
                state.execute(at);
            }
        }
        state.pending.retain(|pending| !pending.changes_names());
        let mut files = state.files.clone();
        let mut late = state.late.clone();
        for (number, written) in state.pending.iter().filter_map(Pending::written) {
            match random.below(3) {
                0 => late.push((number, written)),
                1 => files.get_mut(&number).expect("it is written").write(&written, sequence),
                _ => {}
            }
        }
        state.is_stopped = true;
        let mut fresh = state.reopened(random);
        fresh.files = files;
        fresh.late = late;
        fresh.names = state.names.clone();
        fresh.names_durable = state.names_durable.clone();
        fresh.names_volatile = state.names_volatile.clone();
        Self::with(fresh)
    }

    /// The images that power loss may leave now. If there are at most `count_max` legal images, it returns all.
    /// Otherwise it returns `count_max` of them. These are: nothing and everything that was not durable, each write in
    /// flight alone and missing alone, then samples.
    pub fn crash_images(&self, count_max: usize) -> Vec<Self> {
        let mut state = self.state();
        let crash = Crash::new(&state);
        let mut images = Vec::new();
        if crash.count() <= count_max as u64 {
            for ordinal in 0..crash.count() {
                let mut rest = ordinal;
                images.push(Self::with(crash.image(&state, |_, size| {
                    let pick = rest % size as u64;
                    rest /= size as u64;
                    usize::try_from(pick).expect("below `size`")
                })));
            }
            return images;
        }
        images.push(Self::with(crash.image(&state, |_, _| 0)));
        images.push(Self::with(crash.image(&state, |_, size| size - 1)));
        let mut random = Random::new(state.random.bits());
        for whole in [true, false] {
            for lone in 0..crash.writes() {
                if images.len() < count_max {
                    images.push(Self::with(crash.sample(&state, &mut random, Some((lone, whole)))));
                }
            }
        }
        while images.len() < count_max {
            images.push(Self::with(crash.sample(&state, &mut random, None)));
        }
        images
    }

    /// One image that power loss may leave now, drawn from the seed.
    pub fn crash(&self) -> Self {
        let mut state = self.state();
        let mut random = Random::new(state.random.bits());
        Self::with(Crash::new(&state).sample(&state, &mut random, None))
    }
}
