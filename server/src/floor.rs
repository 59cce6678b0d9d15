//! Runs on: connection core, apply core (`lowest_of`).
//!
//! Floors: the revisions that operations of this core read for longer than a view lives.
//!
//! An operation of many steps (a large answer, HashKV, a backup) reads each step on the newest view, so that it pins no
//! memory. It holds a floor to keep its revision readable. The sweep drops nothing that is visible at or above the
//! lowest floor of any core.
//!
//! Invariants:
//! - `told` has the lowest revision in `held`, or `i64::MAX`. The apply core reads it before each step of the sweep.
//! - [`Floors::hold`] publishes a floor first. Then it looks at the view that proves the revision uncompacted. The
//!   apply core looks at the floors after it has published a compaction. So one of the two sees the other.
//! - There are at most `held_max` floors, each for at most `age_max`, so a slow client costs no more. A floor that is
//!   too old holds nothing back any more. Its operation goes on as long as its revision is not compacted.
//! - A floor holds nothing in a state that comes in the place of the one in which it was taken: that one was swept
//!   elsewhere. Its operation goes on if the new state has not compacted its revision.
//!
//! A floor does not know what is read. The reader asks [`Floor::check`] before each step.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering, fence},
    },
    time::Duration,
};

use engine::ReadView;

use crate::error::Error;

/// A cell that one core writes and another one reads. A test puts another kind of memory in its place, which shows
/// every order in which the two can see each other.
trait Cell {
    fn set(&self, at: i64);
    fn get(&self) -> i64;
    fn fence();
}

impl Cell for AtomicI64 {
    fn set(&self, at: i64) {
        self.store(at, Ordering::Release);
    }

    fn get(&self) -> i64 {
        self.load(Ordering::Acquire)
    }

    fn fence() {
        fence(Ordering::SeqCst);
    }
}

/// Whether `at`, which is in a cell as a floor, can be read. `compacted` looks at the compacted revision.
fn is_kept<C: Cell>(at: i64, compacted: impl FnOnce() -> i64) -> bool {
    // This pairs with the fence in `lowest_in`. Either the sweep sees this floor, or we see the compaction for which it
    // sweeps.
    C::fence();
    at >= compacted()
}

/// The lowest floor in the cells; `i64::MAX` for none.
fn lowest_in<'a, C: Cell + 'a>(cells: impl Iterator<Item = &'a C>) -> i64 {
    C::fence();
    cells.map(C::get).min().unwrap_or(i64::MAX)
}

/// What the other cores see of the floors of one core.
#[derive(Debug)]
pub struct Told {
    /// The lowest floor; `i64::MAX` for none.
    pub lowest: AtomicI64,
    /// Number of floors.
    pub held: AtomicUsize,
}

impl Default for Told {
    fn default() -> Self {
        Self { lowest: AtomicI64::new(i64::MAX), held: AtomicUsize::new(0) }
    }
}

/// The floors of one core.
#[derive(Debug)]
pub struct Floors {
    held: RefCell<Held>,
    told: Arc<Told>,
    held_max: usize,
    age_max: Duration,
}

#[derive(Debug, Default)]
struct Held {
    /// Floors by id: the revision, and when it was taken. Ids ascend with time.
    by_id: BTreeMap<u64, (i64, Duration)>,
    by_revision: BTreeSet<(i64, u64)>,
    next_id: u64,
}

impl Held {
    fn remove(&mut self, id: u64) {
        if let Some((at, _)) = self.by_id.remove(&id) {
            self.by_revision.remove(&(at, id));
        }
    }
}

impl Floors {
    /// No floors yet. The apply core will look at `told`.
    pub fn new(told: Arc<Told>, held_max: usize, age_max: Duration) -> Rc<Self> {
        assert_eq!(told.lowest.load(Ordering::Relaxed), i64::MAX, "nothing is held at first");
        Rc::new(Self { held: RefCell::default(), told, held_max, age_max })
    }

    /// Holds revision `at`. `newest` gives the newest view; it is called only after the floor is published.
    ///
    /// **Errors** too many floors are held; the revision is compacted.
    pub fn hold(self: &Rc<Self>, at: i64, now: Duration, newest: impl Fn() -> Arc<ReadView>) -> Result<Floor, Error> {
        let id = {
            let held = &mut *self.held.borrow_mut();
            if held.by_id.len() >= self.held_max {
                return Err(Error::TooManyHeld);
            }
            let id = held.next_id;
            held.next_id += 1;
            held.by_id.insert(id, (at, now));
            held.by_revision.insert((at, id));
            id
        };
        self.publish();
        let mut floor = Floor { floors: Rc::clone(self), at, id, state: 0 };
        let compacted = || {
            let view = newest();
            floor.state = view.state();
            view.compact_revision()
        };
        if is_kept::<AtomicI64>(at, compacted) { Ok(floor) } else { Err(Error::Compacted) }
    }

    /// Releases floors that were held for too long.
    pub fn expire(&self, now: Duration) {
        let mut is_changed = false;
        {
            let held = &mut *self.held.borrow_mut();
            while let Some((&id, &(revision, since))) = held.by_id.first_key_value() {
                if now.saturating_sub(since) <= self.age_max {
                    break;
                }
                tracing::warn!(revision, "a revision has been read for too long and is held no more");
                held.remove(id);
                is_changed = true;
            }
        }
        if is_changed {
            self.publish();
        }
    }

    fn publish(&self) {
        let held = self.held.borrow();
        let lowest = held.by_revision.first().map_or(i64::MAX, |(at, _)| *at);
        self.told.lowest.set(lowest);
        self.told.held.store(held.by_id.len(), Ordering::Relaxed);
    }
}

/// A held revision. Dropping it releases the revision.
#[derive(Debug)]
pub struct Floor {
    floors: Rc<Floors>,
    at: i64,
    id: u64,
    /// The state in which it is held.
    state: u64,
}

impl Floor {
    /// The revision.
    pub fn at(&self) -> i64 {
        self.at
    }

    /// Checks that the revision can be read on `view`, the newest one.
    ///
    /// **Errors** it has been compacted meanwhile, and was held for too long, or a state of another member has come in
    /// the place of the one in which it was held.
    pub fn check(&self, view: &ReadView) -> Result<(), Error> {
        let is_held = self.state == view.state() && self.floors.held.borrow().by_id.contains_key(&self.id);
        if is_held || self.at >= view.compact_revision() { Ok(()) } else { Err(Error::Compacted) }
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        self.floors.held.borrow_mut().remove(self.id);
        self.floors.publish();
    }
}

/// The lowest of the cores' floors; `i64::MAX` for none. It is for the apply core, after it has published the
/// compaction for which it sweeps.
pub fn lowest_of(floors: &[Arc<Told>]) -> i64 {
    lowest_in(floors.iter().map(|told| &told.lowest))
}

#[cfg(test)]
mod tests {
    use engine::Mvcc;

    use super::*;
    use crate::error::Code;

    fn store() -> Mvcc {
        let mut mvcc = Mvcc::in_memory();
        for _ in 0..9 {
            let mut write = mvcc.begin();
            write.put("k".into(), "v".into(), 0).unwrap();
            drop(write.finish());
        }
        drop(mvcc.publish(9, 1));
        mvcc
    }

    /// Memory in which loom shows every order. `FENCED` tells whether there are fences.
    struct Loom<const FENCED: bool>(loom::sync::atomic::AtomicI64);

    impl<const FENCED: bool> Cell for Loom<FENCED> {
        fn set(&self, at: i64) {
            self.0.store(at, Ordering::Release);
        }

        fn get(&self) -> i64 {
            self.0.load(Ordering::Acquire)
        }

        fn fence() {
            if FENCED {
                loom::sync::atomic::fence(Ordering::SeqCst);
            }
        }
    }

    /// One core holds 5, while the other compacts at 9 and sweeps.
    fn hold_beside_a_sweep<const FENCED: bool>() {
        loom::model(|| {
            let cell = |at| Arc::new(Loom::<FENCED>(loom::sync::atomic::AtomicI64::new(at)));
            let (lowest, compacted) = (cell(i64::MAX), cell(-1));
            let (seen, view) = (Arc::clone(&lowest), Arc::clone(&compacted));
            let sweep = loom::thread::spawn(move || {
                view.set(9);
                lowest_in(std::iter::once(&*seen))
            });
            lowest.set(5);
            let is_kept = is_kept::<Loom<FENCED>>(5, || compacted.get());
            assert!(!is_kept || sweep.join().unwrap() <= 5, "what is held is swept");
        });
    }

    #[test]
    fn a_floor_and_a_sweep_see_each_other_in_every_order() {
        hold_beside_a_sweep::<true>();
    }

    #[test]
    fn without_fences_they_may_miss_each_other() {
        let missed = std::panic::catch_unwind(hold_beside_a_sweep::<false>).unwrap_err();
        assert_eq!(missed.downcast_ref(), Some(&"what is held is swept"));
    }

    #[test]
    fn the_lowest_floor_is_told_until_it_is_dropped_or_too_old() {
        let mvcc = store();
        let core = Arc::<Told>::default();
        let floors = Floors::new(Arc::clone(&core), 2, Duration::from_secs(10));
        let told = || lowest_of(&[Arc::default(), Arc::clone(&core)]);
        let held = || core.held.load(Ordering::Relaxed);
        let seven = floors.hold(7, Duration::ZERO, || mvcc.view()).unwrap();
        let five = floors.hold(5, Duration::from_secs(5), || mvcc.view()).unwrap();
        assert_eq!((told(), held()), (5, 2));
        assert_eq!(floors.hold(6, Duration::ZERO, || mvcc.view()).unwrap_err(), Error::TooManyHeld);
        assert_eq!(Error::TooManyHeld.code(), Code::Unavailable, "clients try again");
        floors.expire(Duration::from_secs(12));
        drop(five);
        assert_eq!((told(), held()), (i64::MAX, 0), "the one left has grown too old");
        assert_eq!(seven.check(&mvcc.view()), Ok(()), "and is not compacted");
    }

    #[test]
    fn a_compacted_revision_is_not_held_and_one_let_go_is_refused_once_compacted() {
        let mut mvcc = store();
        let floors = Floors::new(Arc::default(), 9, Duration::from_secs(10));
        let old = floors.hold(4, Duration::ZERO, || mvcc.view()).unwrap();
        let held = floors.hold(6, Duration::from_secs(9), || mvcc.view()).unwrap();
        mvcc.compact(8);
        drop(mvcc.publish(10, 1));
        assert_eq!(floors.hold(7, Duration::ZERO, || mvcc.view()).unwrap_err(), Error::Compacted);
        assert_eq!(old.check(&mvcc.view()), Ok(()), "still held");
        floors.expire(Duration::from_secs(11));
        assert_eq!(old.check(&mvcc.view()), Err(Error::Compacted));
        assert_eq!(held.check(&mvcc.view()), Ok(()));
    }

    #[test]
    fn a_floor_holds_nothing_in_a_state_that_comes_from_elsewhere() {
        let mut mvcc = store();
        let floors = Floors::new(Arc::default(), 9, Duration::from_secs(10));
        let [mut kept, mut lost] = [8, 6].map(|at| floors.hold(at, Duration::ZERO, || mvcc.view()).unwrap());
        mvcc.compact(8);
        drop(mvcc.publish(10, 1));
        // As if the state of another member had come in between, swept up to there.
        (kept.state, lost.state) = (kept.state + 1, lost.state + 1);
        assert_eq!((kept.check(&mvcc.view()), lost.check(&mvcc.view())), (Ok(()), Err(Error::Compacted)));
    }
}
