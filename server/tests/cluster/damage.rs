//! Damage of a store's files, and the states that make up for it; damage of the end of a log.
//!
//! One machine of a run is damaged at most, so the others have everything. Its member serves what it can read. When
//! anybody has found damage, or the next entry needs what is damaged, it stands still, and asks the others for a state.
//! It spreads nothing: what it answers, and what it sends, is checked as that of all others. If it does not start, what
//! was damaged is whole again. It is at the end, too, if nobody else has all that is committed: so when another machine
//! has lost the end of its log, and the members that had not were removed.
//!
//! One machine loses at times what it has written last to its log, and was durable. Nobody can tell that from a write
//! that power loss has torn.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use engine::{
    disk::{
        SECTOR,
        sim::{Faults, Random},
    },
    wal,
};

use super::{
    member::{DATA, Disks, LOG},
    seat::Seat,
    world::{Event, World},
};

/// How often a member that stands still asks for a state.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Sectors that are damaged at once, at most.
const SECTORS_MAX: u64 = 400;

/// How the head of a group begins in the log, and how far behind that is the first byte of what follows it.
/// **Source** `engine/FORMAT.md`, "WAL".
const GROUP_MAGIC: [u8; 8] = [0xd7, 0x1a, b'g', b'r', b'o', b'u', b'p', 0xe3];
const BEHIND_HEAD: usize = 40 + 8;

/// How long the disk of a log lies, and in which time behind that it writes down how far it goes.
const LIES_FOR: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_secs(4);

/// Ends of logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tails {
    /// The machine that loses them though they were durable.
    pub(crate) lost_at: Option<usize>,
    /// It loses one, or has, and its member has not started again since.
    pub(crate) is_losing: bool,
    /// How often it has lost one.
    pub(crate) lost: u64,
    /// How often a member has started with a log that was cut.
    pub(crate) cut: u64,
}

/// A sector that is damaged.
pub(crate) struct Damage {
    path: PathBuf,
    offset: u64,
    /// What was there, and what is there if nobody has written it since.
    before: [u8; SECTOR],
    after: [u8; SECTOR],
}

impl Damage {
    /// Damages the sector of `path` at `offset`, which exists.
    fn strike(disks: &Disks, path: &Path, offset: u64) -> Damage {
        let (mut before, mut after) = ([0; SECTOR], [0; SECTOR]);
        disks.data.damage(path, offset, |sector| {
            before = *sector;
            sector.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            after = *sector;
        });
        Damage { path: path.to_owned(), offset, before, after }
    }

    fn undo(&self, disks: &Disks) {
        if disks.data.content(&self.path).is_some_and(|content| self.offset < content.len() as u64) {
            disks.data.damage(&self.path, self.offset, |sector| {
                if *sector == self.after {
                    *sector = self.before;
                }
            });
        }
    }
}

impl World {
    /// Damages some sectors of the pages of the machine at `at`, or of that which was damaged before. Returns which.
    pub(crate) fn damage(&mut self, at: usize, random: &mut Random) -> usize {
        let at = self.seats.iter().position(|seat| !seat.damage.is_empty()).unwrap_or(at);
        let disks = self.seats[at].disks.clone();
        let pages: Vec<PathBuf> = disks.data.paths().into_iter().filter(|path| is_of_pages(path)).collect();
        let sizes = pages.iter().map(|path| disks.data.content(path).map_or(0, |content| content.len() as u64));
        let files: Vec<(&PathBuf, u64)> = pages.iter().zip(sizes).filter(|(_, size)| *size > 0).collect();
        if files.is_empty() {
            return at;
        }
        for _ in 0..=random.below(SECTORS_MAX) {
            let (path, size) = files[usize::try_from(random.below(files.len() as u64)).expect("a place in a list")];
            let damage = Damage::strike(&disks, path, random.below(size));
            self.seats[at].damage.push(damage);
        }
        self.tell(|world| format!("pages of {} are damaged", world.shown(at)));
        at
    }

    /// Damages all pages that the machine at `at` has on disk now.
    pub(crate) fn damage_all(&mut self, at: usize) {
        let disks = self.seats[at].disks.clone();
        for path in disks.data.paths().into_iter().filter(|path| is_of_pages(path)) {
            let size = disks.data.content(&path).map_or(0, |content| content.len());
            let sectors = (0..size as u64).step_by(SECTOR);
            self.seats[at].damage.extend(sectors.map(|offset| Damage::strike(&disks, &path, offset)));
        }
    }

    /// Power is lost at one machine of a run, always the same, and the last group of its log is lost as well, at times
    /// one before it: then the log is put aside. It comes back after `away`. Returns which.
    pub(crate) fn lose_tail(&mut self, at: usize, away: Duration) -> usize {
        let at = *self.tails.lost_at.get_or_insert(at);
        if !self.may_lose_tail(at) {
            return at;
        }
        self.tell(|world| format!("power loss of {}, and the end of its log is lost", world.shown(at)));
        self.lose(at, true, away);
        let Seat { disks: Disks { log, .. }, random, .. } = &mut self.seats[at];
        let Ok(Some(summary)) = wal::inspect(&mut log.disk(), Path::new(LOG)) else { return at };
        let segment = summary.segments.last().expect("a log has one");
        let path = Path::new(LOG).join(&segment.name);
        let content = log.content(&path).expect("it was just read");
        let used = &content[..segment.used_bytes as usize];
        let is_group = |at: &usize| used[*at..].starts_with(&GROUP_MAGIC);
        let groups: Vec<usize> = (0..used.len()).filter(is_group).collect();
        let back = if random.chance(1, 4) { random.below(groups.len().max(1) as u64) } else { 0 };
        let Some(group) = groups.iter().nth_back(usize::try_from(back).expect("a place in a list")) else { return at };
        let first = group + BEHIND_HEAD;
        if first < used.len() {
            log.damage(&path, first as u64, |sector| sector[first % SECTOR] ^= 1);
            self.tails.lost += 1;
            self.tails.is_losing = true;
        }
        at
    }

    /// Whether the others can do without what this machine loses: with fewer voters they would not have all that was
    /// acknowledged, or could not elect.
    pub(crate) fn may_lose_tail(&self, at: usize) -> bool {
        self.membership.voters(self.now) >= 3 && self.seats[at].member.is_some()
    }

    /// Whether some member loses, or has lost, what it has not made up for. Operators remove nobody meanwhile.
    pub(crate) fn is_mending(&self) -> bool {
        self.tails.is_losing || self.is_quiet() || self.seats.iter().any(|seat| seat.is_cut)
    }

    /// The disk of the log that loses its ends lies for a while. More is written behind that before the member is
    /// started again: nobody could tell a last write that never happened from one that was never asked for.
    pub(crate) fn lie(&mut self, at: usize) {
        let at = *self.tails.lost_at.get_or_insert(at);
        if !self.may_lose_tail(at) || self.seats[at].kept_until > self.now {
            return;
        }
        self.tell(|world| format!("the log's disk of {} lies", world.shown(at)));
        self.mend(at);
        self.tails.is_losing = true;
        let faults = Faults { lost: 60, misdirected: 60, corrupt: 60, ..Faults::default() };
        self.seats[at].disks.log.set_faults(faults);
        self.seats[at].kept_until = self.now + LIES_FOR + QUIET;
        self.plan(LIES_FOR, Event::Mend { member: at });
        self.plan(LIES_FOR + QUIET, Event::Lied { at });
    }

    /// The machine at `at` loses power, once its log has had time to say how far it goes.
    pub(crate) fn lied(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        if seat.paused_until.max(seat.hung_until).max(seat.slow_until) + QUIET > self.now {
            seat.kept_until = self.now + QUIET;
            return self.plan(QUIET, Event::Lied { at });
        }
        self.tell(|world| format!("power loss of {}, whose log's disk has lied", world.shown(at)));
        self.lose(at, true, Duration::from_millis(100));
    }

    /// What was damaged on the machine at `at`, and is there still, is whole again.
    pub(crate) fn undo_damage(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        for damage in seat.damage.drain(..).rev() {
            damage.undo(&seat.disks);
        }
    }

    /// What is damaged is whole again if no other machine has all that is committed: nobody could make up for it.
    pub(crate) fn undo_hopeless_damage(&mut self) {
        let committed = self.truth.last();
        let has_all = |seat: &Seat| {
            let summary = wal::inspect(&mut seat.disks.log.disk(), Path::new(LOG));
            matches!(summary, Ok(Some(summary)) if (summary.last.1, summary.last.0) >= committed)
        };
        let mut spared = self.seats.iter().filter(|seat| seat.id.is_some() && seat.damage.is_empty());
        if spared.any(has_all) {
            return;
        }
        for at in 0..self.seats.len() {
            if !self.seats[at].damage.is_empty() {
                self.tell(|world| format!("pages of {} are whole again", world.shown(at)));
                self.undo_damage(at);
                self.lose(at, false, Duration::ZERO);
            }
        }
    }

    /// Members that stand still, or do not know who may lead, ask for a state.
    pub(crate) fn ask_for_repairs(&mut self) {
        self.plan(ASK_EVERY, Event::AskForRepairs);
        for to in 0..self.seats.len() {
            let Some(member) = &self.seats[to].member else { continue };
            let (id, least) = (member.id, member.least_needed());
            if !member.asks_for_state() || self.seats[to].paused_until > self.now || self.is_state_on_its_way(to) {
                continue;
            }
            let can_send = |from: &usize| {
                let seat = &self.seats[*from];
                let is_ahead = seat.member.as_ref().is_some_and(|other| other.applied() >= least);
                *from != to && is_ahead && seat.paused_until <= self.now && !self.is_blocked(*from, to)
            };
            let Some(from) = (0..self.seats.len()).find(can_send) else { continue };
            if self.seats[from].member.as_mut().expect("just seen").offer_repair(id) {
                self.repairs += 1;
                self.send_state(from, to, None);
            }
        }
    }
}

fn is_of_pages(path: &Path) -> bool {
    path.starts_with(Path::new(DATA).join("pages"))
}
