//! What the others see when a process is killed: the machine still answers, and its port refuses connections. After
//! loss of power they see nothing.

use std::time::Duration;

use super::world::{Event, World};

impl World {
    /// The others find out soon that the process at `at` is gone.
    pub(crate) fn plan_refusals(&mut self, at: usize) {
        let Some(id) = self.seats[at].id else { return };
        for member in (0..self.seats.len()).filter(|member| *member != at) {
            let late = Duration::from_micros(200 + self.seats[at].random.below(20_000));
            self.plan(late, Event::Refused { member, by: at, id });
        }
    }

    /// The member tries to reach that of the machine `by`. Perhaps it cannot, or that is back.
    pub(crate) fn refused(&mut self, member: usize, by: usize, id: u64) {
        let is_back = self.seats[by].member.is_some();
        let is_silent = self.is_blocked(by, member) || self.is_blocked(member, by);
        if is_back || is_silent || self.seats[member].paused_until > self.now {
            return;
        }
        if let Some(member) = &mut self.seats[member].member {
            member.gone(id);
        }
        self.step(member);
    }
}
