//! One simulated file: its present content (*live*), the content that survives power loss (*durable*), and the writes
//! between them.
//!
//! Invariants:
//! - `volatile` holds for each sector the completed writes that a sync can still make durable, oldest first. Every
//!   other sector of `live` equals `durable`, except for damage done on purpose, and for what a failed sync has lost.
//! - Sectors are atomic. After power loss, each holds its durable content, or the content of one write that was
//!   volatile or in flight. The choice is free for each sector. This covers torn, lost and reordered writes.
//!
//! It knows no names and no faults; the storage does.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::random::Random;
use crate::disk::{BLOCK, SECTOR};

const SECTOR_LEN: usize = SECTOR;

pub(super) type Sector = [u8; SECTOR_LEN];

/// Sparse bytes. Absent bytes read as zeros.
#[derive(Clone, Default)]
pub(super) struct Bytes {
    sectors: BTreeMap<u64, Arc<Sector>>,
}

impl Bytes {
    pub(super) fn sector(&self, number: u64) -> Sector {
        self.sectors.get(&number).map_or([0; SECTOR_LEN], |sector| **sector)
    }

    pub(super) fn set(&mut self, number: u64, sector: Arc<Sector>) {
        if sector.iter().all(|byte| *byte == 0) {
            self.sectors.remove(&number);
        } else {
            self.sectors.insert(number, sector);
        }
    }

    fn truncate(&mut self, len: u64) {
        self.sectors.split_off(&len.div_ceil(SECTOR_LEN as u64));
    }
}

/// A write, cut into sectors.
#[derive(Clone)]
pub(super) struct Written {
    pub(super) first: u64,
    pub(super) sectors: Vec<Arc<Sector>>,
}

impl Written {
    pub(super) fn new(offset: u64, bytes: &[u8]) -> Self {
        assert!(offset.is_multiple_of(BLOCK as u64) && bytes.len().is_multiple_of(BLOCK));
        let (sectors, rest) = bytes.as_chunks::<SECTOR_LEN>();
        assert!(rest.is_empty());
        Self { first: offset / SECTOR_LEN as u64, sectors: sectors.iter().map(|sector| Arc::new(*sector)).collect() }
    }

    fn end(&self) -> u64 {
        self.first + self.sectors.len() as u64
    }

    fn get(&self, number: u64) -> Option<&Arc<Sector>> {
        let position = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.sectors.get(position)
    }
}

/// A file's images.
#[derive(Clone, Default)]
pub(super) struct File {
    pub(super) len: u64,
    durable_len: u64,
    pub(super) live: Bytes,
    durable: Bytes,
    volatile: BTreeMap<u64, Vec<(u64, Arc<Sector>)>>,
    /// Sectors that the medium cannot read. A write mends them.
    unreadable: BTreeSet<u64>,
}

impl File {
    /// A new file of `len` zeros, none of it durable.
    pub(super) fn created(len: u64) -> Self {
        Self { len, ..Self::default() }
    }

    /// Whether a sector of this read cannot be read.
    pub(super) fn is_unreadable(&self, offset: u64, len: usize) -> bool {
        let sectors = offset / SECTOR_LEN as u64..(offset + len as u64).div_ceil(SECTOR_LEN as u64);
        self.unreadable.range(sectors).next().is_some()
    }

    /// Damages the medium: a sector cannot be read until it is written.
    pub(super) fn make_unreadable(&mut self, number: u64) {
        self.unreadable.insert(number);
    }

    pub(super) fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let end = self.len.min(offset.saturating_add(len as u64));
        let mut out = Vec::with_capacity(len);
        let mut number = offset / SECTOR_LEN as u64;
        while number * (SECTOR_LEN as u64) < end {
            out.extend_from_slice(&self.live.sector(number));
            number += 1;
        }
        out.truncate(usize::try_from(end.saturating_sub(offset)).expect("at most `len`"));
        out
    }

    /// Takes in a completed write. The next sync that is submitted after `sequence` makes it durable.
    pub(super) fn write(&mut self, written: &Written, sequence: u64) {
        self.len = self.len.max(written.end() * SECTOR_LEN as u64);
        for (number, sector) in (written.first..).zip(&written.sectors) {
            self.live.set(number, Arc::clone(sector));
            self.unreadable.remove(&number);
            self.volatile.entry(number).or_default().push((sequence, Arc::clone(sector)));
        }
    }

    /// Takes in a completed durable write. Of the file's length, it makes durable only what reading it back needs.
    pub(super) fn write_durable(&mut self, written: &Written) {
        self.len = self.len.max(written.end() * SECTOR_LEN as u64);
        self.durable_len = self.durable_len.max(written.end() * SECTOR_LEN as u64);
        for (number, sector) in (written.first..).zip(&written.sectors) {
            self.live.set(number, Arc::clone(sector));
            self.durable.set(number, Arc::clone(sector));
            self.volatile.remove(&number);
            self.unreadable.remove(&number);
        }
    }

    /// Takes in a completed sync. It was submitted when the storage stood at `sequence`.
    pub(super) fn sync(&mut self, sequence: u64) {
        self.durable_len = self.len;
        let durable = &mut self.durable;
        self.volatile.retain(|number, versions| {
            let covered = versions.iter().take_while(|(at, _)| *at <= sequence).count();
            if let Some((_, sector)) = versions.drain(..covered).next_back() {
                durable.set(*number, sector);
            }
            !versions.is_empty()
        });
    }

    /// Takes in a sync that has failed. What it should have made durable may be lost even to a later sync that
    /// succeeds: the system may take it for written. Or a later sync saves it after all. `random` decides.
    pub(super) fn fail_sync(&mut self, random: &mut Random) {
        self.volatile.retain(|_, versions| {
            versions.retain(|_| random.chance(1, 2));
            !versions.is_empty()
        });
    }

    /// Damages the medium: bytes change in both images.
    pub(super) fn damage(&mut self, number: u64, sector: Sector) {
        let sector = Arc::new(sector);
        self.live.set(number, Arc::clone(&sector));
        self.durable.set(number, sector);
        self.volatile.remove(&number);
    }

    /// A file that durably holds `content`.
    pub(super) fn holding(content: &[u8]) -> Self {
        let len = content.len() as u64;
        let mut bytes = Bytes::default();
        for (number, part) in (0..).zip(content.chunks(SECTOR_LEN)) {
            let mut sector = [0; SECTOR_LEN];
            sector[..part.len()].copy_from_slice(part);
            bytes.set(number, Arc::new(sector));
        }
        Self { len, durable_len: len, live: bytes.clone(), durable: bytes, ..Self::default() }
    }

    /// The choices that power loss leaves open, given the writes in flight.
    pub(super) fn choices(&self, in_flight: &[Written]) -> Choices {
        let mut sectors: BTreeMap<u64, Vec<Arc<Sector>>> = BTreeMap::new();
        for (number, versions) in &self.volatile {
            sectors.entry(*number).or_default().extend(versions.iter().map(|(_, sector)| Arc::clone(sector)));
        }
        for written in in_flight {
            for (number, sector) in (written.first..).zip(&written.sectors) {
                sectors.entry(number).or_default().push(Arc::clone(sector));
            }
        }
        sectors.retain(|number, versions| {
            let durable = self.durable.sector(*number);
            let mut seen = vec![durable];
            versions.retain(|sector| {
                let is_new = !seen.contains(sector);
                if is_new {
                    seen.push(**sector);
                }
                is_new
            });
            !versions.is_empty()
        });
        Choices { sectors: sectors.into_iter().collect(), has_len_choice: self.len != self.durable_len }
    }

    /// The file after power loss. `pick` decides every open choice (0 keeps what was durable).
    pub(super) fn after_loss(&self, choices: &Choices, mut pick: impl FnMut(u64, usize) -> usize) -> Self {
        let mut bytes = self.durable.clone();
        for (number, versions) in &choices.sectors {
            if let Some(position) = pick(*number, versions.len() + 1).checked_sub(1) {
                bytes.set(*number, Arc::clone(&versions[position]));
            }
        }
        let len = if choices.has_len_choice && pick(u64::MAX, 2) == 0 { self.durable_len } else { self.len };
        bytes.truncate(len);
        let (live, unreadable) = (bytes.clone(), self.unreadable.clone());
        Self { len, durable_len: len, live, durable: bytes, unreadable, ..Self::default() }
    }
}

/// The choices of power loss: for each sector, the versions beside the durable one.
pub(super) struct Choices {
    pub(super) sectors: Vec<(u64, Vec<Arc<Sector>>)>,
    pub(super) has_len_choice: bool,
}

impl Choices {
    /// Number of images, saturating.
    pub(super) fn count(&self) -> u64 {
        let of_sectors =
            self.sectors.iter().fold(1_u64, |count, (_, versions)| count.saturating_mul(versions.len() as u64 + 1));
        of_sectors.saturating_mul(1 + u64::from(self.has_len_choice))
    }
}

/// The fate of one write in a sampled power loss.
#[derive(Clone, Copy)]
pub(super) enum Fate {
    Absent,
    Whole,
    Before(u64),
    From(u64),
    Scattered,
}

impl Fate {
    pub(super) fn sample(written: &Written, random: &mut Random) -> Self {
        let cut = written.first + random.below(written.sectors.len() as u64 + 1);
        match random.below(6) {
            0 => Self::Absent,
            1 => Self::Whole,
            2 | 3 => Self::Before(cut),
            4 => Self::From(cut),
            _ => Self::Scattered,
        }
    }

    pub(super) fn keeps(self, number: u64, random: &mut Random) -> bool {
        match self {
            Self::Absent => false,
            Self::Whole => true,
            Self::Before(cut) => number < cut,
            Self::From(cut) => number >= cut,
            Self::Scattered => random.chance(1, 2),
        }
    }
}

/// The position in `versions` that `fates` leave in sector `number`. It counts from 1; 0 is the durable version.
pub(super) fn sampled(
    number: u64,
    versions: &[Arc<Sector>],
    in_flight: &[Written],
    fates: &[Fate],
    random: &mut Random,
) -> usize {
    let mut position =
        if random.chance(1, 2) { 0 } else { usize::try_from(random.below(versions.len() as u64 + 1)).unwrap_or(0) };
    let is_covered = in_flight.iter().any(|written| written.get(number).is_some());
    if is_covered && in_flight.len() == fates.len() {
        position = 0;
        for (written, fate) in in_flight.iter().zip(fates) {
            let Some(sector) = written.get(number) else { continue };
            if fate.keeps(number, random) {
                position = versions.iter().position(|version| version == sector).map_or(0, |at| at + 1);
            }
        }
    }
    position
}
