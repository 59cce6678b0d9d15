//! States on their way from one member to another: what is sent in place of log entries, and to a member that is
//! damaged.
//!
//! A transfer moves a frame at a time, as a stream of its own beside the others. It breaks when one of its ends goes
//! away, and may break on its way; then it goes on where it broke, or is given up. The raft message comes when all of
//! the state has arrived.

use std::time::Duration;

use consensus::Message;
use engine::disk::sim::Random;
use server::peer::state::receive::Receiver;

use super::{
    member::{Member, StateFor},
    plan::sequence,
    world::{Event, World},
};

/// Bytes of a frame that arrive at once, at most.
const PIECE_BYTES_MAX: u64 = 20_000;

/// A state on its way.
pub(crate) struct Transfer {
    from: (usize, u64),
    to: (usize, u64),
    /// The member that it is for, and its number there.
    state: (StateFor, u64),
    receiver: Option<Receiver>,
    /// What raft is told when all of it has arrived; `None` for a repair.
    message: Option<Message>,
    random: Random,
}

/// Numbers of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) begun: u64,
    pub(crate) broken: u64,
    pub(crate) arrived: u64,
}

impl World {
    fn state_end(&mut self, at: (usize, u64)) -> Option<&mut Member> {
        let seat = &mut self.seats[at.0];
        seat.member.as_mut().filter(|_| seat.life == at.1)
    }

    /// Whether a state is on its way to the machine at `to`.
    pub(crate) fn is_state_on_its_way(&self, to: usize) -> bool {
        let end = (to, self.seats[to].life);
        self.transfers.iter().any(|transfer| transfer.to == end && transfer.receiver.is_some())
    }

    /// Begins to send the state that `from` holds ready for `to`. One that it sends there already ends.
    pub(crate) fn send_state(&mut self, from: usize, to: usize, message: Option<Message>) {
        let (from, to) = ((from, self.seats[from].life), (to, self.seats[to].life));
        let is_same = |transfer: &Transfer| (transfer.from, transfer.to) == (from, to);
        for number in 0..self.transfers.len() {
            if is_same(&self.transfers[number]) {
                self.abandon_state(number);
            }
        }
        let number = self.transfers.len();
        let state_for = (self.seats[to.0].id.expect("it is for a member"), message.is_none());
        let state = (state_for, self.state_end(from).map_or(0, |member| member.offered(state_for)));
        let random = sequence(self.seed, "state", number);
        self.sent.begun += 1;
        self.tell(|world| format!("{} sends its state to {}", world.shown(from.0), world.shown(to.0)));
        let receiver = self.state_end(to).map(|member| member.receiver());
        let is_there = receiver.is_some();
        self.transfers.push(Transfer { from, to, state, receiver, message, random });
        match is_there {
            true => self.plan(Duration::from_millis(1), Event::State { transfer: number }),
            false => self.give_up_state(number),
        }
    }

    /// A piece of a state moves on.
    pub(crate) fn move_state(&mut self, number: usize) {
        let Transfer { from, to, ref receiver, .. } = self.transfers[number];
        if receiver.is_none() {
            return;
        }
        let paused = [from.0, to.0].into_iter().map(|at| self.seats[at].paused_until).max();
        if let Some(until) = paused.filter(|until| *until > self.now) {
            return self.plan_at(until, Event::State { transfer: number });
        }
        if self.state_end(from).is_none() || self.state_end(to).is_none() || self.is_blocked(from.0, to.0) {
            return self.give_up_state(number);
        }
        let transfer = &mut self.transfers[number];
        let is_cut = transfer.random.chance(1, 30);
        let late = Duration::from_micros(100 + transfer.random.below(5000));
        let (state_for, state_number) = self.transfers[number].state;
        let frame = match self.state_end(from).expect("just seen").next_frame(state_for, state_number) {
            Ok(Some(frame)) => frame,
            Ok(None) => panic!("the receiver has not taken the last frame for the last"),
            Err(_) => return self.give_up_state(number),
        };
        let transfer = &mut self.transfers[number];
        let Some(receiver) = &mut transfer.receiver else { return };
        let mut sent = &frame[..];
        if is_cut {
            sent = &sent[..usize::try_from(transfer.random.below(sent.len() as u64)).expect("small")];
        }
        let mut arrived = None;
        while !sent.is_empty() {
            let len = 1 + transfer.random.below(PIECE_BYTES_MAX.min(sent.len() as u64));
            let (piece, rest) = sent.split_at(usize::try_from(len).expect("small"));
            sent = rest;
            match receiver.push(piece) {
                Ok(done) => arrived = arrived.or(done),
                Err(error) => {
                    assert!(error.is_of_storage(), "an honest state is refused: {error}");
                    return self.give_up_state(number);
                }
            }
        }
        if let Some(arrived) = arrived {
            self.sent.arrived += 1;
            self.tell(|world| format!("all of the state has arrived at {}", world.shown(to.0)));
            let message = self.transfers[number].message.take();
            self.transfers[number].receiver = None;
            if let Some(sender) = self.state_end(from) {
                sender.state_sent(state_for, state_number, true);
            }
            let member = self.state_end(to).expect("just seen");
            if let Err(error) = member.arrived(message, arrived) {
                self.stops(to.0, &error);
            }
            self.step(from.0);
            return self.step(to.0);
        }
        if is_cut {
            self.sent.broken += 1;
            receiver_goes_on(self, number);
        }
        self.plan(late, Event::State { transfer: number });
    }

    /// Nobody takes any more of the state.
    fn abandon_state(&mut self, number: usize) {
        let Transfer { to, .. } = self.transfers[number];
        let Some(receiver) = self.transfers[number].receiver.take() else { return };
        self.sent.broken += 1;
        let left = receiver.abandon();
        if let Some(member) = self.state_end(to)
            && let Some(store) = left
        {
            member.discard(store);
        }
    }

    /// The transfer ends without a state.
    fn give_up_state(&mut self, number: usize) {
        let Transfer { from, state: (state_for, state_number), .. } = self.transfers[number];
        self.abandon_state(number);
        if let Some(member) = self.state_end(from) {
            member.state_sent(state_for, state_number, false);
            self.step(from.0);
        }
    }
}

/// The stream broke, and a new one goes on behind what has arrived.
fn receiver_goes_on(world: &mut World, number: usize) {
    let Transfer { from, state: (state_for, state_number), .. } = world.transfers[number];
    let Some(receiver) = &mut world.transfers[number].receiver else { return };
    receiver.broken();
    let position = receiver.position();
    if let Some(member) = world.state_end(from) {
        member.resume_state(state_for, state_number, position);
    }
}
