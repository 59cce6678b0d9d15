//! Runs on: apply core.
//!
//! Requests that wait for something to happen. They may wait for longer than a reply slot lives, so they ask again
//! whenever their slot has timed out.
//!
//! Invariant: requests that are older than the lifetime of a slot are forgotten. So there are never more entries than
//! twice the reply slots of all cores.

use std::{collections::VecDeque, time::Duration};

use crate::slots::ReplyTo;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Waiters<T> {
    /// In the order in which they asked: when, and for what.
    waiting: VecDeque<(Duration, T, ReplyTo)>,
}

impl<T> Waiters<T> {
    /// Makes `reply` wait for `goal`. Requests that asked more than `lifetime` before `now` are forgotten: they have
    /// asked again, or they are gone.
    pub fn push(&mut self, reply: ReplyTo, goal: T, now: Duration, lifetime: Duration) {
        let is_old = |(asked, ..): &mut (Duration, T, ReplyTo)| now.saturating_sub(*asked) > lifetime;
        while self.waiting.pop_front_if(is_old).is_some() {}
        self.waiting.push_back((now, goal, reply));
    }

    /// Takes out all requests, with what they want.
    pub fn drain(&mut self) -> Vec<(T, ReplyTo)> {
        self.waiting.drain(..).map(|(_, goal, reply)| (goal, reply)).collect()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Takes out the requests whose goal is reached.
    pub fn take(&mut self, is_reached: impl Fn(&T) -> bool) -> Vec<ReplyTo> {
        let mut done = Vec::new();
        self.waiting.retain(|(_, goal, reply)| {
            let is_done = is_reached(goal);
            if is_done {
                done.push(*reply);
            }
            !is_done
        });
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;

    #[test]
    fn who_asks_again_and_again_is_answered_and_leaves_nothing_behind() {
        let mut waiters = Waiters::default();
        let lifetime = Duration::from_secs(7);
        let slots = Slots::<()>::new(1);
        let waiting = slots.open(lifetime).unwrap();
        let reply = ReplyTo { core: 0, slot: waiting.id() };
        for round in 0..100_u32 {
            waiters.push(reply, 5_u64, round * lifetime, lifetime / 2);
            assert_eq!(waiters.waiting.len(), 1);
            assert!(waiters.take(|goal| *goal <= 4).is_empty());
        }
        assert!(!waiters.take(|goal| *goal <= 5).is_empty() && waiters.waiting.is_empty());
    }
}
