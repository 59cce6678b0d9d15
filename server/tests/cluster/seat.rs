//! A machine of the world: its disks and clock, what befalls it, and the member on it.

use std::{collections::BTreeSet, time::Duration};

use engine::disk::sim::{Random, SimStorage};
use server::{apply::long::Steps, clock::Clock};

use super::{
    copies::Copy,
    damage::Damage,
    member::{Disks, HEARTBEAT, Member},
    plan::sequence,
};

/// Clocks are fast or slow by this much at most. **Units** millionths.
pub(crate) const DRIFT_MAX: u64 = 20_000;
pub(crate) const MILLION: u32 = 1_000_000;

/// Members that make entries of fewer keys in steps are slow about it, so that others see them in the middle.
pub(crate) const SLOW_BELOW: u64 = 9;

/// A machine, and the member on it if it runs.
pub(crate) struct Seat {
    /// The member whose machine this is, running or not.
    pub(crate) id: Option<u64>,
    pub(crate) member: Option<Member>,
    /// Its member has started once.
    pub(crate) has_run: bool,
    pub(crate) disks: Disks,
    pub(crate) random: Random,
    pub(crate) clock: Clock,
    /// By so much its clock is fast. **Units** millionths.
    pub(crate) fast: i64,
    /// Its clock does not survive power loss.
    pub(crate) has_no_battery: bool,
    pub(crate) has_lost_time: bool,
    pub(crate) life: u64,
    /// Its machine is without power.
    pub(crate) is_off: bool,
    /// Its member knows that it was removed.
    pub(crate) is_leaving: bool,
    /// Operations of the log's disk whose end is planned.
    pub(crate) planned: BTreeSet<u64>,
    /// It does nothing before this time.
    pub(crate) paused_until: Duration,
    /// Its log's disk ends nothing before this time.
    pub(crate) hung_until: Duration,
    pub(crate) slow_until: Duration,
    pub(crate) store_slow_until: Duration,
    /// Its disk has failed an operation after which the member may stop, or will.
    pub(crate) may_stop: bool,
    /// Its member, running or not, may have lost what it promised, and has not made up for that.
    pub(crate) is_cut: bool,
    pub(crate) damage: Vec<Damage>,
    /// An older copy of its disks, which it goes on from later.
    pub(crate) copy: Option<Copy>,
    /// It loses no power and is not killed before this time.
    pub(crate) kept_until: Duration,
    /// Which of the images that power loss may leave is taken.
    pub(crate) image: u64,
    /// Power is lost after so many more changes of the store, once a checkpoint is written; and for how long.
    pub(crate) loss_in_checkpoint: Option<(u64, Duration)>,
    /// Power is lost once there is something to apply; and for how long.
    pub(crate) loss_in_apply: Option<Duration>,
    /// What it takes for a heartbeat interval.
    pub(crate) tick: Duration,
    /// When it goes on by itself, if that is planned.
    pub(crate) due_at: Duration,
    /// The highest revision that anybody had been told of when the member started.
    pub(crate) told_before: i64,
    pub(crate) steps: Steps,
    /// Its term, and whether it led, when that was told last.
    pub(crate) told: (u64, bool),
}

impl Seat {
    /// It is `now`; its clock says something else.
    pub(crate) fn pass(&self, now: Duration) {
        let off = now * u32::try_from(self.fast.unsigned_abs()).expect("small") / MILLION;
        let shown = if self.fast < 0 { now - off } else { now + off };
        self.clock.advance(shown.saturating_sub(self.clock.now()));
    }

    /// What power loss leaves of its disks.
    pub(crate) fn crashed(&self) -> Disks {
        (0..self.image).for_each(|_| drop(self.disks.crash()));
        self.disks.crash()
    }

    /// Whether an operation of its disks has failed, or will, or something on them is damaged.
    pub(crate) fn is_faulty(&self) -> bool {
        let is_faulty = |disk: &SimStorage| !disk.injected().is_empty();
        self.may_stop || !self.damage.is_empty() || is_faulty(&self.disks.log) || is_faulty(&self.disks.data)
    }

    pub(crate) fn new(seed: u64, number: usize) -> Self {
        let mut random = sequence(seed, "seat", number);
        Self {
            id: None,
            member: None,
            has_run: false,
            is_leaving: false,
            disks: Disks::new(random.bits()),
            clock: Clock::manual(random.bits()),
            fast: random.below(2 * DRIFT_MAX + 1).cast_signed() - DRIFT_MAX.cast_signed(),
            has_no_battery: random.chance(1, 3),
            has_lost_time: true,
            life: 0,
            is_off: false,
            planned: BTreeSet::new(),
            paused_until: Duration::ZERO,
            hung_until: Duration::ZERO,
            slow_until: Duration::ZERO,
            store_slow_until: Duration::ZERO,
            may_stop: false,
            is_cut: false,
            damage: Vec::new(),
            copy: None,
            kept_until: Duration::ZERO,
            image: 0,
            loss_in_checkpoint: None,
            loss_in_apply: None,
            tick: HEARTBEAT * u32::try_from(95 + random.below(11)).unwrap() / 100,
            due_at: Duration::ZERO,
            told_before: 0,
            told: (0, false),
            steps: if random.chance(1, 2) { Steps { at_once_max: SLOW_BELOW - 1, keys: 5 } } else { Steps::default() },
            random,
        }
    }
}
