//! Power loss: the choices that it leaves open for all files and names, and the machine after each choice.
//!
//! Invariants: a choice of 0 everywhere keeps exactly what was durable. The `count` images are distinct choices, though
//! not always distinct contents. Nothing here changes a machine: every image is a new one.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    image::{Choices, Fate, Written, sampled},
    random::Random,
    state::State,
};

/// Of so many changes of names in a directory, each may be lost on its own. What comes after them is lost together.
const SUBSETS_OF_MAX: usize = 8;

/// The number of ways in which `changes` of names can be lost.
fn subsets(changes: usize) -> usize {
    1 << changes.min(SUBSETS_OF_MAX + 1)
}

/// The open choices of a power loss, over all files and names.
pub(super) struct Crash {
    files: Vec<(u64, Choices, Vec<Written>)>,
    /// Directories with changes that are not durable, and the number of these changes.
    dirs: Vec<(PathBuf, usize)>,
}

/// The object of a choice: a sector of a file, or the changes to a directory.
pub(super) enum Choice {
    Sector(usize, u64),
    Names,
}

impl Crash {
    pub(super) fn new(state: &State) -> Self {
        let mut in_flight = state.in_flight_by_file();
        let files = state
            .files
            .iter()
            .map(|(number, file)| {
                let written = in_flight.remove(number).unwrap_or_default();
                (*number, file.choices(&written), written)
            })
            .collect();
        let mut dirs: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for (_, change) in &state.names_volatile {
            *dirs.entry(change.dir().unwrap_or(Path::new("")).to_path_buf()).or_default() += 1;
        }
        Self { files, dirs: dirs.into_iter().collect() }
    }

    pub(super) fn count(&self) -> u64 {
        let of_files = self.files.iter().fold(1_u64, |count, (_, choices, _)| count.saturating_mul(choices.count()));
        self.dirs.iter().fold(of_files, |count, (_, changes)| count.saturating_mul(subsets(*changes) as u64))
    }

    pub(super) fn writes(&self) -> usize {
        self.files.iter().map(|(_, _, written)| written.len()).sum()
    }

    pub(super) fn image(&self, state: &State, mut pick: impl FnMut(Choice, usize) -> usize) -> State {
        let mut fresh = state.reopened(state.random.clone());
        fresh.names = state.names_durable.clone();
        for (dir, changes) in &self.dirs {
            let kept = pick(Choice::Names, subsets(*changes));
            let of_dir = state.names_volatile.iter().filter(|(_, change)| change.dir() == Some(dir));
            for (position, (_, change)) in of_dir.enumerate() {
                if kept >> position.min(SUBSETS_OF_MAX) & 1 == 1 {
                    change.apply(&mut fresh.names);
                }
            }
        }
        for (position, (number, choices, _)) in self.files.iter().enumerate() {
            let file = &state.files[number];
            let after = file.after_loss(choices, |sector, size| pick(Choice::Sector(position, sector), size));
            fresh.files.insert(*number, after);
        }
        fresh.names_durable = fresh.names.clone();
        fresh.forget_unnamed();
        fresh
    }

    /// An image in which the fate of each write in flight is drawn. With `lone`, only the write at that position is
    /// there, or only that one is missing.
    pub(super) fn sample(&self, state: &State, random: &mut Random, lone: Option<(usize, bool)>) -> State {
        let mut position = 0;
        let mut fates = Vec::new();
        for (_, _, written) in &self.files {
            let mut of_file = Vec::new();
            for write in written {
                of_file.push(match lone {
                    Some((at, is_there)) if (at == position) == is_there => Fate::Whole,
                    Some(_) => Fate::Absent,
                    None => Fate::sample(write, random),
                });
                position += 1;
            }
            fates.push(of_file);
        }
        self.image(state, |choice, size| match choice {
            Choice::Sector(at, sector) => {
                let (_, choices, written) = &self.files[at];
                let found = choices.sectors.binary_search_by_key(&sector, |(number, _)| *number);
                match found {
                    Ok(found) => sampled(sector, &choices.sectors[found].1, written, &fates[at], random),
                    Err(_) => usize::try_from(random.below(size as u64)).expect("below `size`"),
                }
            }
            Choice::Names => usize::try_from(random.below(size as u64)).expect("below `size`"),
        })
    }
}
