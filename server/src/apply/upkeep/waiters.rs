//! Runs on: apply core.
//!
//! Requests that wait until a number is reached, for longer than a reply slot lives: they ask anew whenever theirs has
//! timed out.
//!
//! Invariant: what was asked before the last slots' lifetime is forgotten, so there are no more entries than twice the
//! reply slots of all cores.

use std::{collections::VecDeque, time::Duration};

use crate::slots::ReplyTo;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Waiters<T> {
    /// In the order they asked in: when, for what.
    waiting: VecDeque<(Duration, T, ReplyTo)>,
}

impl<T: PartialOrd> Waiters<T> {
    /// `reply` waits for `goal`; who asked more than `lifetime` before `now` has asked anew or is gone.
    pub fn push(&mut self, reply: ReplyTo, goal: T, now: Duration, lifetime: Duration) {
        let is_old = |(asked, ..): &mut (Duration, T, ReplyTo)| now.saturating_sub(*asked) > lifetime;
        while self.waiting.pop_front_if(is_old).is_some() {}
        self.waiting.push_back((now, goal, reply));
    }

    /// Takes out those whose goal is reached.
    pub fn take(&mut self, reached: &T) -> Vec<ReplyTo> {
        let mut done = Vec::new();
        self.waiting.retain(|(_, goal, reply)| {
            let is_done = goal <= reached;
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
            assert!(waiters.take(&4).is_empty());
        }
        assert!(!waiters.take(&5).is_empty() && waiters.waiting.is_empty());
    }
}
