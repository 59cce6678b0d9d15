//! Runs on: connection core.
//!
//! Reply slots: a handler waits in a slot for the answer of another core.
//!
//! A slot is named by position and generation. So a late answer to a slot that was given up finds nobody, and not
//! another request. All slots have the one timeout of the server (etcd's proposal timeout). So they expire in the order
//! in which they were made, and no request needs a timer.
//!
//! Invariants: `deadlines` is ordered by time; a live slot appears in it exactly once.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;

/// Names a reply slot of one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotId {
    position: u32,
    generation: u32,
}

/// The slot to which an answer must go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyTo {
    /// Position of the core.
    pub core: usize,
    /// Slot on it.
    pub slot: SlotId,
}

impl ReplyTo {
    /// A slot of no core, for requests that have not been sent yet.
    pub const NOBODY: Self = Self { core: usize::MAX, slot: SlotId { position: u32::MAX, generation: 0 } };
}

enum State<T> {
    Waiting(Option<Waker>),
    Answered(T),
}

struct Slot<T> {
    generation: u32,
    state: State<T>,
}

struct Table<T> {
    slots: Slab<Slot<T>>,
    deadlines: VecDeque<(Duration, SlotId)>,
    generation: u32,
}

/// The reply slots of one core.
pub struct Slots<T> {
    table: Rc<RefCell<Table<T>>>,
    slots_max: usize,
}

impl<T> Slots<T> {
    /// A table of at most `slots_max` waiting requests.
    pub fn new(slots_max: usize) -> Self {
        let table = Table { slots: Slab::new(), deadlines: VecDeque::new(), generation: 0 };
        Self { table: Rc::new(RefCell::new(table)), slots_max }
    }

    /// Opens a slot that expires at `deadline`; `None` when all slots are taken.
    pub fn open(&self, deadline: Duration) -> Option<Waiting<T>> {
        let mut table = self.table.borrow_mut();
        if table.slots.len() >= self.slots_max {
            return None;
        }
        table.generation = table.generation.wrapping_add(1);
        let generation = table.generation;
        let position = table.slots.insert(Slot { generation, state: State::Waiting(None) });
        let id = SlotId { position: u32::try_from(position).expect("slots are bounded far below 2^32"), generation };
        debug_assert!(table.deadlines.back().is_none_or(|(last, _)| *last <= deadline), "one timeout, so in order");
        table.deadlines.push_back((deadline, id));
        Some(Waiting { id, table: Rc::clone(&self.table) })
    }

    /// Answers a slot. Does nothing if the slot is gone or already answered.
    pub fn answer(&self, id: SlotId, answer: T) {
        let mut table = self.table.borrow_mut();
        let Some(slot) = table.slots.get_mut(id.position as usize).filter(|s| s.generation == id.generation) else {
            return;
        };
        if let State::Waiting(waker) = &mut slot.state {
            let waker = waker.take();
            slot.state = State::Answered(answer);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Answers every slot whose deadline has passed.
    pub fn expire(&self, now: Duration, timeout: impl Fn() -> T) {
        loop {
            let due = {
                let mut table = self.table.borrow_mut();
                match table.deadlines.front() {
                    Some((deadline, _)) if *deadline <= now => table.deadlines.pop_front(),
                    _ => None,
                }
            };
            let Some((_, id)) = due else { return };
            self.answer(id, timeout());
        }
    }
}

/// One request's wait for its answer. Dropping it gives up the slot.
pub struct Waiting<T> {
    id: SlotId,
    table: Rc<RefCell<Table<T>>>,
}

impl<T> Waiting<T> {
    /// The slot's name, which is sent along with the request.
    pub fn id(&self) -> SlotId {
        self.id
    }
}

impl<T> Future for Waiting<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let mut table = self.table.borrow_mut();
        let slot = table.slots.get_mut(self.id.position as usize).expect("a slot lives as long as its wait");
        assert_eq!(slot.generation, self.id.generation, "a slot lives as long as its wait");
        if let State::Waiting(waker) = &mut slot.state {
            match waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match std::mem::replace(&mut slot.state, State::Waiting(None)) {
            State::Answered(answer) => Poll::Ready(answer),
            State::Waiting(_) => Poll::Pending,
        }
    }
}

impl<T> Drop for Waiting<T> {
    fn drop(&mut self) {
        let mut table = self.table.borrow_mut();
        let slot = table.slots.remove(self.id.position as usize);
        debug_assert_eq!(slot.generation, self.id.generation, "only its own wait removes a slot");
        // The deadline of a given-up slot stays queued and finds nobody. Trimming the front keeps the queue of a fast
        // server short.
        while let Some((_, id)) = table.deadlines.front().copied() {
            let live = table.slots.get(id.position as usize).is_some_and(|slot| slot.generation == id.generation);
            if live {
                break;
            }
            table.deadlines.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poll_once<T>(waiting: &mut Waiting<T>) -> Poll<T> {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn late_answer_to_a_given_up_slot_reaches_nobody() {
        let slots = Slots::new(2);
        let first = slots.open(Duration::from_secs(1)).unwrap();
        let old = first.id();
        drop(first);
        let mut second = slots.open(Duration::from_secs(2)).unwrap();
        assert_eq!(second.id().position, old.position);
        slots.answer(old, 1);
        assert_eq!(poll_once(&mut second), Poll::Pending);
        slots.answer(second.id(), 2);
        assert_eq!(poll_once(&mut second), Poll::Ready(2));
    }

    #[test]
    fn expiry_answers_in_order_and_only_what_is_due() {
        let slots = Slots::new(8);
        let mut waits: Vec<_> = (1..=3).map(|s| slots.open(Duration::from_secs(s)).unwrap()).collect();
        slots.expire(Duration::from_secs(2), || "late");
        assert_eq!(poll_once(&mut waits[0]), Poll::Ready("late"));
        assert_eq!(poll_once(&mut waits[1]), Poll::Ready("late"));
        assert_eq!(poll_once(&mut waits[2]), Poll::Pending);
    }

    #[test]
    fn bound_on_slots_holds_and_frees() {
        let slots = Slots::<()>::new(1);
        let one = slots.open(Duration::ZERO).unwrap();
        assert!(slots.open(Duration::ZERO).is_none());
        drop(one);
        assert!(slots.open(Duration::ZERO).is_some());
    }
}
