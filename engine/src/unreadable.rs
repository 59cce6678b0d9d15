//! The pages that could not be read: what upkeep goes round, and what operators are told.
//!
//! Invariants:
//! - A page is noted by the first byte of it that cannot be trusted, when a read of it fails. It is forgotten when a
//!   later read of it succeeds, when nothing reaches it any more, or when its segment is gone.
//! - A page that upkeep has met once, it does not ask for again (`is_avoided`). A read that the system refused may
//!   succeed later, so such a page is tried again after [`Unreadable::retry`]. A damaged page stays damaged.
//! - A page is *lost* if it is damaged, or if the system has refused it, and again after a retry.
//! - At most [`NOTED_MAX`] pages are noted. Beyond that the medium is failing as a whole: upkeep then avoids every page
//!   that is not in memory.
//!
//! It is shared by all readers of a store, and touched only after a miss. It reads nothing and repairs nothing.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{Error, Place, disk::FileOp};

/// Pages that are noted, at most.
const NOTED_MAX: usize = 1 << 16;

#[derive(Clone, Copy, Debug)]
struct Noted {
    /// The bytes are not as they were written. Else the system refused to read them.
    is_damaged: bool,
    is_avoided: bool,
    is_lost: bool,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Unreadable {
    /// By segment and offset.
    noted: Mutex<BTreeMap<(u32, u32), Noted>>,
    count: AtomicUsize,
}

impl Unreadable {
    /// The number of pages that could not be read, as far as is known.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Whether there are pages that no later read will find as they were written, as far as is known.
    pub fn has_lost(&self) -> bool {
        self.count() > 0 && self.noted().values().any(|noted| noted.is_lost)
    }

    /// Whether the page at `place` could not be read when it was tried last, and should not be asked for.
    pub fn avoids(&self, place: Place) -> bool {
        let count = self.count();
        if count == 0 {
            return false;
        }
        count >= NOTED_MAX || self.noted().range(span(place)).any(|(_, noted)| noted.is_avoided)
    }

    /// Lets pages be asked for again that the system refused to read. It should be called now and then.
    pub fn retry(&self) {
        if self.count() > 0 {
            self.noted().values_mut().for_each(|noted| noted.is_avoided &= noted.is_damaged);
        }
    }

    /// Takes in the result of a read of `place`. Returns true if it is the first of this page that failed.
    pub(crate) fn note(&self, place: Place, result: &Result<(), Error>) -> bool {
        let (offset, is_damaged) = match result {
            Ok(()) => {
                self.forget(place);
                return false;
            }
            Err(Error::Corrupt { offset, .. }) => (u32::try_from(*offset).unwrap_or(place.offset), true),
            Err(Error::Io { op: FileOp::Read | FileOp::Open, .. }) => (place.offset, false),
            Err(_) => return false,
        };
        let offset = if (place.offset..place.end()).contains(&offset) { offset } else { place.offset };
        let mut noted = self.noted();
        let is_full = noted.len() >= NOTED_MAX;
        let is_new = match noted.entry((place.segment, offset)) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                let is_lost = is_damaged || known.is_lost || !known.is_avoided;
                *known = Noted { is_damaged, is_avoided: true, is_lost };
                false
            }
            Entry::Vacant(_) if is_full => false,
            Entry::Vacant(free) => {
                free.insert(Noted { is_damaged, is_avoided: true, is_lost: is_damaged });
                true
            }
        };
        self.count.store(noted.len(), Ordering::Relaxed);
        is_new
    }

    /// Forgets the page at `place`: it was read, or nothing reaches it any more.
    pub(crate) fn forget(&self, place: Place) {
        if self.count() == 0 {
            return;
        }
        let mut noted = self.noted();
        let known: Vec<_> = noted.range(span(place)).map(|(at, _)| *at).collect();
        known.iter().for_each(|at| {
            noted.remove(at);
        });
        self.count.store(noted.len(), Ordering::Relaxed);
    }

    /// Forgets the pages of segments that are gone.
    pub(crate) fn keep(&self, is_there: impl Fn(u32) -> bool) {
        if self.count() == 0 {
            return;
        }
        let mut noted = self.noted();
        noted.retain(|(segment, _), _| is_there(*segment));
        self.count.store(noted.len(), Ordering::Relaxed);
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<(u32, u32), Noted>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn span(place: Place) -> Range<(u32, u32)> {
    (place.segment, place.offset)..(place.segment, place.end())
}

#[cfg(test)]
mod tests {
    use std::{io, path::Path};

    use super::*;

    fn place(offset: u32) -> Place {
        Place { segment: 3, offset, len: 100 }
    }

    fn damaged(offset: u64) -> Result<(), Error> {
        Err(Error::corrupt(Path::new("p"), offset, "tree page"))
    }

    #[test]
    fn a_page_is_noted_once_and_avoided_until_it_is_read_or_gone() {
        let unreadable = Unreadable::default();
        assert!(!unreadable.avoids(place(0)));
        assert!(unreadable.note(place(0), &damaged(0)) && !unreadable.note(place(0), &damaged(0)));
        assert!(unreadable.note(place(100), &damaged(100)));
        let whole = Place { len: 300, ..place(0) };
        assert!(!unreadable.note(whole, &damaged(100)), "an extent names the block");
        assert!(unreadable.avoids(whole) && unreadable.avoids(place(99)) && !unreadable.avoids(place(200)));
        assert_eq!(unreadable.count(), 2);
        assert!(!unreadable.note(place(0), &Ok(())));
        assert!(!unreadable.avoids(place(0)) && unreadable.avoids(place(100)));
        assert!(unreadable.has_lost());
        unreadable.keep(|segment| segment != 3);
        assert!(unreadable.count() == 0 && !unreadable.has_lost());
    }

    #[test]
    fn what_the_system_refused_is_tried_again_and_what_is_damaged_is_not() {
        let unreadable = Unreadable::default();
        let refused = || Err(Error::io(Path::new("p"), FileOp::Read, io::Error::from_raw_os_error(5)));
        assert!(unreadable.note(place(0), &refused()) && !unreadable.note(place(0), &refused()));
        assert!(!unreadable.has_lost(), "it may pass");
        assert!(unreadable.note(place(100), &damaged(100)));
        unreadable.retry();
        assert!(!unreadable.avoids(place(0)) && unreadable.avoids(place(100)));
        assert!(!unreadable.note(place(0), &refused()), "it was told before");
        unreadable.forget(place(100));
        assert!(unreadable.has_lost(), "it was refused again");
        assert!(unreadable.note(place(100), &damaged(100)));
        assert!(unreadable.avoids(place(0)));
        assert!(!unreadable.note(place(200), &Err(Error::Stopped)));
        assert_eq!(unreadable.count(), 2);
    }

    #[test]
    fn a_medium_that_fails_as_a_whole_is_avoided_as_a_whole() {
        let unreadable = Unreadable::default();
        for offset in 0..=u32::try_from(NOTED_MAX).unwrap() {
            unreadable.note(place(offset), &damaged(offset.into()));
        }
        assert_eq!(unreadable.count(), NOTED_MAX);
        assert!(unreadable.avoids(Place { segment: 9, ..place(0) }));
    }
}
