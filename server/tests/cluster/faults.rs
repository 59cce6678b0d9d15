//! The faults of a run: drawn up front from its seed, each with a seed of its own.
//!
//! So a run can be made again without some of them: what is left happens as before, at the same time to the same member
//! and for as long.

use std::time::Duration;

use engine::disk::sim::{Faults, Full, Random};

use super::{
    member::Member,
    world::{Event, World},
};

/// An enum, and the list of all its variants.
macro_rules! listed {
    ($(#[$of_enum:meta])* $enum:ident { $($(#[$of_variant:meta])* $variant:ident,)* }) => {
        $(#[$of_enum])*
        pub(crate) enum $enum {
            $($(#[$of_variant])* $variant,)*
        }

        impl $enum {
            pub(crate) const ALL: &[Self] = &[$(Self::$variant,)*];
        }
    };
}

listed! {
    /// What may happen to a cluster.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    Fault {
        PowerLoss,
        PowerLossOfAll,
        Kill,
        /// Power is lost, and comes back when the others have gone far ahead.
        LongPowerLoss,
        Pause,
        /// A leader stands still, and for a moment hears nothing of what happened meanwhile.
        PauseLeader,
        Isolate,
        BlockOneWay,
        Reset,
        SlowDisk,
        HungDisk,
        /// A disk hangs, and before it goes on all lose power.
        LossWhileHung,
        FullLog,
        FullStore,
        SlowStore,
        /// Power is lost while a checkpoint is written.
        LossInCheckpoint,
        /// Power is lost while there are committed entries that are not applied, or only in part.
        LossInApply,
        /// The store's disk reads with errors, also when the member starts.
        ReadErrors,
        /// The log's disk, or the store's, fails a write or a sync. The member stops.
        WriteErrors,
        ClockJump,
        /// Some pages of one machine are damaged for good.
        Damage,
        /// Power is lost, and with it the last group of the log, which was durable.
        LostTail,
        /// A machine goes on from an older copy of its disks.
        OldCopy,
        /// The disk of that log reports writes that it has lost, that it has put elsewhere, or that are wrong.
        LyingLog,
    }
}

/// A fault that happens in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blow {
    /// Its place in the list that was drawn.
    pub(crate) number: usize,
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    /// Decides whom it hits, and for how long.
    pub(crate) seed: u64,
}

/// The faults of a run of `time`, of these `kinds`: the first after some seconds, the last before its end.
pub(crate) fn drawn(random: &mut Random, time: Duration, kinds: &[Fault]) -> Vec<Blow> {
    let mut blows = Vec::new();
    let mut at = Duration::from_secs(3);
    loop {
        at += Duration::from_millis(200 + random.below(4800));
        let (number, fault) = (blows.len(), random.below(kinds.len() as u64));
        let fault = kinds[usize::try_from(fault).expect("a place in a list")];
        if at >= time {
            return blows;
        }
        blows.push(Blow { number, at, fault, seed: random.bits() });
    }
}

/// Draws what a fault needs.
struct Draw(Random);

impl Draw {
    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(1000 * from + self.0.below(1000 * (to - from)))
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.below(bound as u64)).expect("below `bound`")
    }

    /// How long a machine that was lost is away.
    fn away(&mut self) -> Duration {
        self.millis(10, 3000)
    }
}

impl World {
    /// Lets a fault happen.
    pub(crate) fn strike(&mut self, blow: Blow) {
        if self.is_quiet() {
            return;
        }
        let mut draw = Draw(Random::new(blow.seed));
        let occupied = self.occupied();
        let (at, time) = (occupied[draw.below(occupied.len())], draw.millis(50, 5000));
        self.faults += 1;
        match blow.fault {
            Fault::PowerLoss | Fault::Kill => {
                self.tell(|world| format!("{:?} of {}", blow.fault, world.shown(at)));
                self.lose(at, blow.fault == Fault::PowerLoss, draw.away());
            }
            Fault::LongPowerLoss => {
                let away = draw.millis(8000, 30_000);
                self.tell(|world| format!("power loss of {} for {away:?}", world.shown(at)));
                self.lose(at, true, away);
            }
            Fault::PowerLossOfAll => {
                if draw.0.chance(1, 3) {
                    self.lose_all(draw.0.bits());
                }
            }
            Fault::Damage => {
                let damaged = self.damage(at, &mut draw.0);
                if draw.0.chance(1, 2) {
                    // What is in memory is not read.
                    self.lose(damaged, false, draw.away());
                }
            }
            Fault::LostTail => self.strike_tail(at, occupied[draw.below(occupied.len())], &mut draw),
            Fault::LyingLog => self.lie(at),
            Fault::OldCopy => self.copy(at, draw.millis(500, 15_000)),
            Fault::Pause => self.pause(at, time),
            Fault::PauseLeader => {
                let leads = |member: Option<&Member>| member.is_some_and(Member::is_leader);
                let Some(at) = self.seats.iter().position(|seat| leads(seat.member.as_ref())) else { return };
                self.pause(at, time);
                let deaf = draw.millis(0, 900);
                self.isolate(at, time + deaf, &mut draw);
            }
            Fault::Isolate => self.isolate(at, time, &mut draw),
            Fault::BlockOneWay => {
                let other = occupied[draw.below(occupied.len())];
                self.block(at, other, time, &mut draw);
            }
            Fault::Reset => {
                self.tell(|world| format!("the connections of {} are reset", world.shown(at)));
                self.reset_links_of(at);
            }
            Fault::SlowDisk => {
                self.tell(|world| format!("the log's disk of {} is slow for {time:?}", world.shown(at)));
                self.seats[at].slow_until = self.now + time;
            }
            Fault::HungDisk => self.hang(at, time),
            Fault::LossWhileHung => {
                self.hang(at, time);
                self.plan(time / 2, Event::PowerLossOfAll { seed: draw.0.bits() });
            }
            _ => self.strike_storage(blow.fault, at, time, &mut draw),
        }
    }

    /// The member at `at` loses the end of its log. At times the one at `deaf` did not hear of that, and a leader that
    /// has it goes away at the same moment.
    fn strike_tail(&mut self, at: usize, deaf: usize, draw: &mut Draw) {
        let (away, leader_away) = (draw.away(), draw.millis(2000, 6000));
        if draw.0.chance(1, 2) {
            self.lose_tail(at, away);
            return;
        }
        let time = draw.millis(100, 900);
        self.isolate(deaf, time, draw);
        self.plan(time, Event::LostTail { at, away: away / 10, leader_away });
    }

    fn strike_storage(&mut self, fault: Fault, at: usize, time: Duration, draw: &mut Draw) {
        if self.seats[at].kept_until > self.now {
            // A member that stopped would have to be started again.
            return;
        }
        self.tell(|world| format!("{fault:?} for {time:?}: {}", world.shown(at)));
        let until = self.now + time;
        let seat = &mut self.seats[at];
        match fault {
            Fault::FullLog | Fault::FullStore => {
                let full = if draw.0.chance(1, 2) { Full::Writes } else { Full::Creations };
                let disk = if fault == Fault::FullLog { &seat.disks.log } else { &seat.disks.data };
                disk.set_full(Some((0, full)));
                // A log that finds no space in the middle of a write does not know what of it is there.
                seat.may_stop |= fault == Fault::FullLog && full == Full::Writes;
            }
            Fault::SlowStore => seat.store_slow_until = until,
            Fault::LossInCheckpoint => seat.loss_in_checkpoint = Some((draw.0.below(30), draw.away())),
            Fault::LossInApply => seat.loss_in_apply = Some(draw.away()),
            Fault::ReadErrors => {
                seat.disks.data.set_faults(Faults { read_error: 1 + draw.0.below(400), ..Faults::default() });
                if draw.0.chance(1, 2) {
                    // What is in memory is not read.
                    let away = draw.away();
                    self.lose(at, false, away);
                    let errors = Faults { read_error: 1 + draw.0.below(100), ..Faults::default() };
                    self.seats[at].disks.data.set_faults(errors);
                }
            }
            Fault::WriteErrors => {
                let disk = if draw.0.chance(1, 2) { &seat.disks.log } else { &seat.disks.data };
                let (write_error, sync_error) = if draw.0.chance(1, 2) { (300, 0) } else { (0, 300) };
                disk.set_faults(Faults { write_error, sync_error, ..Faults::default() });
            }
            Fault::ClockJump => {
                let by = draw.0.below(1 << 22).cast_signed() - (1 << 21);
                seat.clock.set_wall(1_700_000_000_000_000 + by * 1_000_000);
                return;
            }
            other => unreachable!("{other:?} is no fault of a disk or a clock"),
        }
        self.plan(time, Event::Mend { member: at });
    }

    /// The disks of a machine are whole again, and have room.
    pub(crate) fn mend(&mut self, at: usize) {
        for disk in [&self.seats[at].disks.log, &self.seats[at].disks.data] {
            disk.set_full(None);
            disk.set_faults(Faults::default());
        }
    }

    /// All lose power, and come back one after the other as `seed` says.
    pub(crate) fn lose_all(&mut self, seed: u64) {
        self.tell(|_| "all lose power".to_owned());
        let mut draw = Draw(Random::new(seed));
        for at in 0..self.seats.len() {
            let away = draw.away();
            self.lose(at, true, away);
        }
    }

    fn pause(&mut self, at: usize, time: Duration) {
        self.tell(|world| format!("{} stands still for {time:?}", world.shown(at)));
        self.seats[at].paused_until = self.now + time;
        self.plan(time, Event::Resume { member: at });
    }

    /// The member that leads loses power, unless it is the one at `at`.
    pub(crate) fn lose_leader_beside(&mut self, at: usize, away: Duration) {
        if let Some(leader) = self.leader().filter(|leader| *leader != at) {
            self.tell(|world| format!("power loss of {}", world.shown(leader)));
            self.lose(leader, true, away);
        }
    }

    /// The log's disk of a member ends nothing for `time`.
    pub(crate) fn hang(&mut self, at: usize, time: Duration) {
        self.tell(|world| format!("the log's disk of {} hangs for {time:?}", world.shown(at)));
        self.seats[at].hung_until = self.now + time;
    }

    fn block(&mut self, from: usize, to: usize, time: Duration, draw: &mut Draw) {
        self.tell(|_| format!("nothing passes from m{} to m{} for {time:?}", from + 1, to + 1));
        for is_of_appends in [true, false] {
            let direction = (from, to, is_of_appends);
            self.network.block(direction, true);
            let is_reset = draw.0.chance(1, 2);
            self.plan(time, Event::Unblock { direction, is_reset });
        }
    }

    fn isolate(&mut self, at: usize, time: Duration, draw: &mut Draw) {
        self.tell(|world| format!("{} is cut off", world.shown(at)));
        for other in (0..self.seats.len()).filter(|other| *other != at) {
            self.block(at, other, time, draw);
            self.block(other, at, time, draw);
        }
    }
}
