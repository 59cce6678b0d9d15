//! Runs on: connection core.
//!
//! The calls of one core that wait and have a deadline.
//!
//! No call has a timer. Housekeeping wakes the calls whose time is over, at most `EXPIRE_EVERY` late.
//!
//! Invariant: `earliest` is at most every deadline in `waiting`.

use std::{
    cell::{Cell, RefCell},
    task::Waker,
    time::Duration,
};

use slab::Slab;

/// No deadline.
pub const NEVER: Duration = Duration::MAX;

/// See the head of this file.
#[derive(Debug)]
pub struct Deadlines {
    waiting: RefCell<Slab<(Duration, Waker)>>,
    earliest: Cell<Duration>,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { waiting: RefCell::default(), earliest: Cell::new(NEVER) }
    }
}

impl Deadlines {
    /// Adds a call that waits. Returns its place.
    ///
    /// **Bounds** a call is here once, and once for each member that it asks, so the streams of all connections bound
    /// the places.
    pub fn add(&self, deadline: Duration, waker: Waker) -> usize {
        self.earliest.set(self.earliest.get().min(deadline));
        self.waiting.borrow_mut().insert((deadline, waker))
    }

    /// Says who is to be woken for the call at `place`.
    pub fn renew(&self, place: usize, waker: &Waker) {
        self.waiting.borrow_mut()[place].1.clone_from(waker);
    }

    /// Removes the call at `place`.
    pub fn remove(&self, place: usize) {
        let (_, waker) = self.waiting.borrow_mut().remove(place);
        drop(waker);
    }

    /// Wakes the calls whose time is over at `now`.
    ///
    /// **Bounds** it looks at every call, but only if one that waits or has waited is due.
    pub fn wake_due(&self, now: Duration) {
        if now < self.earliest.get() {
            return;
        }
        let mut earliest = NEVER;
        for (_, (deadline, waker)) in &*self.waiting.borrow() {
            if *deadline <= now {
                waker.wake_by_ref();
            } else {
                earliest = earliest.min(*deadline);
            }
        }
        self.earliest.set(earliest);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        task::Wake,
    };

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn calls_are_woken_once_their_time_is_over() {
        let (deadlines, second) = (Deadlines::default(), Duration::from_secs(1));
        let woken: Vec<Arc<Woken>> = (0..3).map(|_| Arc::default()).collect();
        let add = |at: usize, seconds: u32| deadlines.add(second * seconds, Waker::from(Arc::clone(&woken[at])));
        let (first, second_place) = (add(0, 3), add(1, 5));
        let counts = || [0, 1, 2].map(|at: usize| woken[at].0.load(Ordering::Relaxed));
        deadlines.wake_due(2 * second);
        assert_eq!(counts(), [0, 0, 0]);
        deadlines.wake_due(3 * second);
        assert_eq!(counts(), [1, 0, 0]);
        deadlines.remove(first);
        // It was answered, and the one that takes its place waits for longer.
        add(2, 9);
        deadlines.remove(second_place);
        deadlines.wake_due(6 * second);
        assert_eq!((counts(), deadlines.earliest.get()), ([1, 0, 0], 9 * second));
        deadlines.wake_due(9 * second);
        assert_eq!(counts(), [1, 0, 1]);
    }
}
