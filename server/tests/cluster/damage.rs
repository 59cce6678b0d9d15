//! Damage of a store's files, and the states that make up for it.
//!
//! One machine of a run is damaged at most, so the others have everything. Its member serves what it can read. When the
//! next entry needs what is damaged, it stands still, and asks the others for a state. It spreads nothing: what it
//! answers, and what it sends, is checked as that of all others. If it does not start, what was damaged is whole again.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use engine::disk::sim::Random;

use super::{
    member::{DATA, Disks},
    world::{Event, World},
};

/// How often a member that stands still asks for a state.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Sectors that are damaged at once, at most.
const SECTORS_MAX: u64 = 400;

/// A sector that is damaged.
pub(crate) struct Damage {
    path: PathBuf,
    offset: u64,
    /// What was added to each of its bytes.
    added: u8,
}

impl Damage {
    fn change(&self, disks: &Disks, added: u8) {
        if disks.data.content(&self.path).is_some_and(|content| self.offset < content.len() as u64) {
            let change = |byte: &mut u8| *byte = byte.wrapping_add(added);
            disks.data.damage(&self.path, self.offset, |sector| sector.iter_mut().for_each(change));
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
            let damage = Damage { path: path.clone(), offset: random.below(size), added: 1 };
            damage.change(&disks, damage.added);
            self.seats[at].damage.push(damage);
        }
        self.tell(|world| format!("pages of {} are damaged", world.shown(at)));
        self.leave_watches_of(at);
        at
    }

    /// What was damaged on the machine at `at`, and is there still, is whole again.
    pub(crate) fn undo_damage(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        for damage in seat.damage.drain(..).rev() {
            damage.change(&seat.disks, damage.added.wrapping_neg());
        }
    }

    /// Members that stand still ask for a state.
    pub(crate) fn ask_for_repairs(&mut self) {
        self.plan(ASK_EVERY, Event::AskForRepairs);
        for to in 0..self.seats.len() {
            let Some(member) = &self.seats[to].member else { continue };
            let (id, applied) = (member.id, member.applied());
            if !member.stands_still() || self.seats[to].paused_until > self.now || self.is_state_on_its_way(to) {
                continue;
            }
            let can_send = |from: &usize| {
                let seat = &self.seats[*from];
                let is_ahead = seat.member.as_ref().is_some_and(|other| other.applied() > applied);
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
