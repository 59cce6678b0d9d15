//! Entries that peers need and that memory no longer holds: what is asked of the WAL, and what has come from it.
//!
//! raft-rs asks for entries when it sends to a follower (`want`), and is told that they are not there yet. The driver
//! has them read (`next`, `fetched`), and tells raft-rs to ask again, for each context that waits.
//!
//! Invariants:
//! - At most `AT_ONCE_MAX` fetches are under way, and what `WINDOWS_MAX` of them brought is kept: the oldest goes
//!   first, and is read again if somebody still needs it.
//! - What waits for one place is at most `CONTEXTS_MAX` contexts. One that is dropped is a follower that is sent to
//!   again at its next answer to a heartbeat.
//! - An entry that was lost on the disk, and all before it, cannot be sent any more (`lost_to`).

use std::{cell::RefCell, collections::VecDeque};

use engine::wal;
use raft::{GetEntriesContext, eraftpb};

use crate::entry::{EntryKind, raft_entry};

/// Fetches under way at once.
const AT_ONCE_MAX: usize = 4;
/// Fetched pieces that are kept for those who need them.
const WINDOWS_MAX: usize = 4;
/// Contexts that wait for the same entries.
const CONTEXTS_MAX: usize = 16;

/// A place from which entries are needed, and who waits.
#[derive(Debug)]
struct Want {
    from: u64,
    is_under_way: bool,
    contexts: Vec<GetEntriesContext>,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Fetching {
    /// raft-rs asks through a shared reference.
    wants: RefCell<Vec<Want>>,
    windows: VecDeque<Vec<wal::Entry>>,
    lost_to: u64,
}

impl Fetching {
    /// Entries from `low` on are needed by the follower that `context` names.
    pub(crate) fn want(&self, low: u64, context: GetEntriesContext) {
        let mut wants = self.wants.borrow_mut();
        match wants.iter_mut().find(|want| want.from == low) {
            Some(want) if want.contexts.len() < CONTEXTS_MAX => want.contexts.push(context),
            Some(_) => {}
            None => wants.push(Want { from: low, is_under_way: false, contexts: vec![context] }),
        }
    }

    /// The place from which to fetch next.
    pub(crate) fn next(&mut self) -> Option<u64> {
        let wants = self.wants.get_mut();
        if wants.iter().filter(|want| want.is_under_way).count() >= AT_ONCE_MAX {
            return None;
        }
        let want = wants.iter_mut().find(|want| !want.is_under_way)?;
        want.is_under_way = true;
        Some(want.from)
    }

    /// A fetch from `from` on has brought `entries`, or nothing. Returns who waited for it.
    pub(crate) fn fetched(&mut self, from: u64, entries: Vec<wal::Entry>) -> Vec<GetEntriesContext> {
        if !entries.is_empty() {
            self.windows.truncate(WINDOWS_MAX - 1);
            self.windows.push_front(entries);
        }
        let wants = self.wants.get_mut();
        let position = wants.iter().position(|want| want.from == from);
        position.map(|position| wants.swap_remove(position).contexts).unwrap_or_default()
    }

    /// The entry at `from` cannot be read any more.
    pub(crate) fn lost(&mut self, from: u64) {
        self.lost_to = self.lost_to.max(from);
    }

    pub(crate) fn is_lost(&self, index: u64) -> bool {
        index <= self.lost_to
    }

    /// What was fetched of the entries in `low..high`, from `low` on.
    pub(crate) fn entries_from(&self, low: u64, high: u64) -> Option<impl Iterator<Item = eraftpb::Entry>> {
        let window = self.windows.iter().find(|window| {
            let last = window.last().expect("a window is not empty").index;
            (window[0].index..=last).contains(&low)
        })?;
        let skipped = usize::try_from(low - window[0].index).expect("inside the window");
        let entries = window[skipped..].iter().take_while(move |entry| entry.index < high);
        Some(entries.map(|entry| {
            let kind = EntryKind::from_number(entry.kind.into()).expect("it was appended with a kind");
            raft_entry(entry.index, entry.term, kind, entry.data.clone())
        }))
    }

    /// What was fetched is not needed any more.
    pub(crate) fn forget(&mut self) {
        self.windows.clear();
        self.wants.get_mut().retain(|want| want.is_under_way);
        self.wants.get_mut().iter_mut().for_each(|want| want.contexts.clear());
    }
}
