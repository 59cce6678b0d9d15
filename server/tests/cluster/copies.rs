//! Machines that go on from an older copy of their disks: a directory that was put back, a disk that was rolled back.
//!
//! Such a member has forgotten what it promised, and finds out when the leader that counts on it says more than it has.
//! Before that nobody can know. So a copy is put back while somebody leads, and all hear that one, or nobody at all;
//! nothing else happens to anybody until the leader has spoken. Behind that, anything may. It happens to one of three
//! voters at least: with two, nobody leads once the other one does not, as if this one were gone for good.

use std::time::Duration;

use super::{
    member::{Disks, Member},
    seat::Seat,
    world::{Event, World},
};

/// How long a moment is waited for at which a copy may be put back, and how often one looks.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Who goes on from a copy runs again soon, and has heard of the leader within this time.
const AWAY: Duration = Duration::from_millis(20);
const QUIET: Duration = Duration::from_secs(1);

/// A copy of the disks of a machine, as power loss would have left them.
pub(crate) struct Copy {
    disks: Disks,
    put_back_until: Duration,
}

impl World {
    /// Keeps a copy of the disks of the machine at `at`, to be put back after `later`. One that is kept stays.
    pub(crate) fn copy(&mut self, at: usize, later: Duration) {
        let seat = &self.seats[at];
        if seat.copy.is_some() || seat.is_faulty() || self.is_mending() || seat.member.is_none() {
            return;
        }
        let copy = Copy { disks: seat.crashed(), put_back_until: self.now + later + PATIENCE };
        self.tell(|world| format!("the disks of {} are copied", world.shown(at)));
        self.seats[at].copy = Some(copy);
        self.plan(later, Event::PutBack { at });
    }

    /// Puts the copy back as soon as that may be.
    pub(crate) fn put_back(&mut self, at: usize) {
        let Some(copy) = self.seats[at].copy.take_if(|copy| self.now < copy.put_back_until) else {
            self.seats[at].copy = None;
            return;
        };
        if self.leader() == Some(at) || !self.may_lose_tail(at) || !self.is_calm(at) {
            self.seats[at].copy = Some(copy);
            return self.plan(LOOK_EVERY, Event::PutBack { at });
        }
        self.tell(|world| format!("{} goes on from an older copy of its disks", world.shown(at)));
        self.quiet_until = self.now + QUIET;
        self.lose(at, true, AWAY);
        self.seats[at].disks = copy.disks;
        self.mend(at);
        self.copies += 1;
    }

    /// Whether the member at `at` follows a leader whom all hear, but those that hear nobody, and nothing befalls them.
    fn is_calm(&self, at: usize) -> bool {
        let Some(leader) = self.leader().and_then(|at| self.seats[at].member.as_ref()) else { return false };
        let follows = |member: &Member| (member.leader(), member.term()) == (leader.id, leader.term());
        let is_well = |seat: &Seat| {
            let until = [seat.paused_until, seat.hung_until, seat.slow_until, seat.store_slow_until, seat.kept_until];
            let loses = seat.loss_in_checkpoint.is_some() || seat.loss_in_apply.is_some();
            let suffers = loses || seat.is_faulty() || until.iter().any(|until| *until > self.now);
            !suffers && seat.member.as_ref().is_some_and(follows)
        };
        let is_blocked = |one: usize, other: usize| [self.is_blocked(one, other), self.is_blocked(other, one)];
        let occupied = self.occupied();
        let others = |at: usize| occupied.iter().copied().filter(move |other| *other != at);
        let is_apart = |at: usize| others(at).all(|other| is_blocked(at, other) == [true; 2]);
        let together: Vec<usize> = occupied.iter().copied().filter(|at| !is_apart(*at)).collect();
        let hear = |one: usize| together.iter().all(|other| is_blocked(one, *other) == [false; 2]);
        let all_well = together.iter().all(|at| is_well(&self.seats[*at]) && hear(*at));
        all_well
            && !self.is_mending()
            && together.contains(&at)
            && self.leader().is_some_and(|at| together.contains(&at))
    }

    /// Whether a member that goes on from a copy has yet to hear of its leader. Nothing happens meanwhile.
    pub(crate) fn is_quiet(&self) -> bool {
        self.now < self.quiet_until
    }
}
