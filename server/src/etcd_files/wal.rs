//! Runs on: main thread, offline.
//!
//! Reads the log of a stopped etcd: the member's identity, raft's hard state, and the entries after an index.
//!
//! A file is a row of frames. A frame is 8 bytes, little-endian (the length in 56 bits, the padding in the top byte),
//! then a [`Record`], then zeros up to a multiple of 8. The CRC-32C of a record runs over the data of all records up to
//! it. Files are preallocated: a length of 0 ends one.
//!
//! Invariants:
//! - A log on which etcd would start is read as etcd reads it, even with a torn end. Any other log is `Corrupt`, with
//!   file and offset. Nothing is changed.
//! - Memory holds the entries after the index, as etcd does, and one piece of a file.
//!
//! **Source** etcd v3.7.1 `server/storage/wal/{wal,decoder,repair}.go`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine::{Error, disk::Disk};
use prost::Message;

use super::source::{DiskSource, Source};

const METADATA: i64 = 1;
const ENTRY: i64 = 2;
const STATE: i64 = 3;
const CRC: i64 = 4;
const SNAPSHOT: i64 = 5;

/// Bytes that the medium writes whole or not at all. **Units** bytes.
const SECTOR: u64 = 512;
const WINDOW_BYTES: usize = 1 << 20;
const HEAD_BYTES: u64 = 8;

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(uint32, tag = "2")]
    crc: u32,
    #[prost(bytes = "bytes", tag = "3")]
    data: Bytes,
}

/// etcd's `etcdserverpb.Metadata`.
#[derive(Clone, PartialEq, Message)]
pub struct Metadata {
    /// The member's own id.
    #[prost(uint64, tag = "1")]
    pub member_id: u64,
    /// The cluster's id.
    #[prost(uint64, tag = "2")]
    pub cluster_id: u64,
}

/// etcd's `raftpb.HardState`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct HardState {
    /// The latest term seen.
    #[prost(uint64, tag = "1")]
    pub term: u64,
    /// The member that got the vote in this term, 0 for none.
    #[prost(uint64, tag = "2")]
    pub vote: u64,
    /// Highest index that was known to be committed.
    #[prost(uint64, tag = "3")]
    pub commit: u64,
}

/// etcd's `raftpb.Entry`.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    /// 0 for a request, 1 for a configuration change.
    #[prost(uint64, tag = "1")]
    pub kind: u64,
    /// The term in which it was proposed.
    #[prost(uint64, tag = "2")]
    pub term: u64,
    /// The index in the log.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// An `InternalRaftRequest`, or a `ConfChange`.
    #[prost(bytes = "bytes", tag = "4")]
    pub data: Bytes,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct SnapshotMark {
    #[prost(uint64, tag = "1")]
    index: u64,
    #[prost(uint64, tag = "2")]
    term: u64,
}

/// The content of a log.
#[derive(Debug, Default)]
pub struct Log {
    /// The member that the log belongs to.
    pub metadata: Metadata,
    /// The last hard state.
    pub hard_state: HardState,
    /// The entries after the requested index, without a gap.
    pub entries: Vec<Entry>,
    /// The term of the entry at that index, if the log knows it.
    pub term: Option<u64>,
    /// Index of the newest snapshot that was taken of a committed state.
    pub snapshot: u64,
    /// Where a record was torn; the log ends there.
    pub torn: Option<(PathBuf, u64)>,
}

/// Reads the log in `dir`, and keeps the entries after `after`.
///
/// **Errors** `Corrupt`; those of the disk.
pub fn read(disk: &mut dyn Disk, dir: &Path, after: u64) -> Result<Log, Error> {
    let files: Vec<(u64, String)> =
        disk.list(dir)?.into_iter().filter_map(|name| Some((sequence_of(&name)?, name))).collect();
    let mut replay = Replay::new(after);
    for (position, (sequence, name)) in files.iter().enumerate() {
        let path = dir.join(name);
        if position > 0 && *sequence != files[position - 1].0 + 1 {
            return Err(Error::corrupt(&path, 0, "a file of the log before this one is missing"));
        }
        let is_last = position + 1 == files.len();
        let source = DiskSource::open(&path)?;
        read_file(&mut Window::new(source), is_last, &mut replay)?;
    }
    if !replay.has_metadata {
        return Err(Error::corrupt(dir, 0, "there is no log of etcd"));
    }
    let commit = replay.log.hard_state.commit;
    let marks = replay.marks.iter().filter(|mark| mark.index <= commit);
    replay.log.snapshot = marks.map(|mark| mark.index).max().unwrap_or(0);
    Ok(replay.log)
}

/// Index of the newest snapshot in the log in `dir`, of those that were taken of a committed state.
///
/// **Errors** as [`read`].
pub fn newest_snapshot(disk: &mut dyn Disk, dir: &Path) -> Result<u64, Error> {
    // No entry is kept.
    Ok(read(disk, dir, u64::MAX)?.snapshot)
}

/// The sequence from a name `SEQUENCE-INDEX.wal`. Both numbers have 16 hexadecimal digits.
fn sequence_of(name: &str) -> Option<u64> {
    let (sequence, index) = name.strip_suffix(".wal")?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| text.len() == 16);
    number(index).and(number(sequence))
}

struct Replay {
    after: u64,
    log: Log,
    has_metadata: bool,
    /// Index of the last entry, if there is one.
    last: Option<u64>,
    marks: Vec<SnapshotMark>,
    crc: u32,
}

impl Replay {
    fn new(after: u64) -> Self {
        Self { after, log: Log::default(), has_metadata: false, last: None, marks: Vec::new(), crc: 0 }
    }

    fn apply(&mut self, record: Record) -> Result<(), &'static str> {
        const MALFORMED: &str = "a record does not decode";
        match record.kind {
            METADATA => {
                let metadata = Metadata::decode(record.data).map_err(|_malformed| MALFORMED)?;
                if self.has_metadata && metadata != self.log.metadata {
                    return Err("the files of the log are of different members");
                }
                self.log.metadata = metadata;
                self.has_metadata = true;
            }
            ENTRY => self.entry(Entry::decode(record.data).map_err(|_malformed| MALFORMED)?)?,
            STATE => self.log.hard_state = HardState::decode(record.data).map_err(|_malformed| MALFORMED)?,
            SNAPSHOT => self.mark(SnapshotMark::decode(record.data).map_err(|_malformed| MALFORMED)?),
            _ => return Err("a record of an unknown kind"),
        }
        Ok(())
    }

    /// Takes the mark of a snapshot. One that the member received begins the log anew: if the entry at its place is
    /// another one, so is all that stood behind that.
    fn mark(&mut self, mark: SnapshotMark) {
        if mark.index == self.after {
            if self.log.term.is_some_and(|term| term != mark.term) {
                self.log.entries.clear();
            }
            self.log.term = Some(mark.term);
        }
        self.marks.push(mark);
    }

    /// Takes an entry. It replaces the entry with the same index, and all entries after that.
    fn entry(&mut self, entry: Entry) -> Result<(), &'static str> {
        let index = entry.index;
        let follows = self.last.is_none_or(|last| index <= last.saturating_add(1));
        // A received snapshot leads past entries that this log never had.
        if index == 0 || !follows && !self.marks.iter().any(|mark| mark.index == index - 1) {
            return Err("an entry does not follow the log");
        }
        self.last = Some(index);
        if index <= self.after {
            self.log.entries.clear();
            self.log.term = (index == self.after).then_some(entry.term);
            return Ok(());
        }
        let kept = usize::try_from(index - self.after - 1).map_err(|_too_many| "an entry does not follow the log")?;
        if kept > self.log.entries.len() {
            return Err("entries before this one are missing");
        }
        self.log.entries.truncate(kept);
        self.log.entries.push(entry);
        Ok(())
    }
}

fn read_file(window: &mut Window, is_last: bool, replay: &mut Replay) -> Result<(), Error> {
    let path = window.source.path().to_path_buf();
    let mut offset = 0;
    while let Some(head) = window.bytes(offset, HEAD_BYTES)? {
        let word = u64::from_le_bytes(*head.first_chunk().expect("eight bytes"));
        if word == 0 {
            return Ok(());
        }
        let len = word & (u64::MAX >> 8);
        let padding = if word >> 63 == 1 { word >> 56 & 7 } else { 0 };
        let damaged = |what| Error::corrupt(&path, offset, what);
        let Some(frame) = window.bytes(offset + HEAD_BYTES, len + padding)? else {
            if is_last {
                // The file was not preallocated, or its end was lost.
                replay.log.torn = Some((path, offset));
                return Ok(());
            }
            return Err(damaged("a record reaches past the end of its file"));
        };
        let torn = is_last && is_torn(&frame, offset + HEAD_BYTES);
        let body = frame.slice(..usize::try_from(len).expect("part of what was read"));
        let record = Record::decode(body).ok();
        let sound = record.filter(|record| match record.kind {
            CRC => replay.crc == 0 || record.crc == replay.crc,
            _ => record.crc == crc32c::crc32c_append(replay.crc, &record.data),
        });
        let Some(record) = sound else {
            if torn {
                replay.log.torn = Some((path, offset));
                return Ok(());
            }
            return Err(damaged("a record is not what was written"));
        };
        replay.crc = record.crc;
        if record.kind != CRC {
            replay.apply(record).map_err(damaged)?;
        }
        offset += HEAD_BYTES + len + padding;
    }
    Ok(())
}

/// Whether a part of `frame`, which begins at `offset`, is in a sector that was never written.
fn is_torn(frame: &[u8], offset: u64) -> bool {
    let mut rest = frame;
    let mut offset = offset;
    while !rest.is_empty() {
        let len = usize::try_from(SECTOR - offset % SECTOR).expect("less than a sector").min(rest.len());
        let (sector, behind) = rest.split_at(len);
        if sector.iter().all(|byte| *byte == 0) {
            return true;
        }
        rest = behind;
        offset += len as u64;
    }
    false
}

/// A piece of a file that is read ahead.
struct Window {
    source: DiskSource,
    start: u64,
    held: Bytes,
}

impl Window {
    fn new(source: DiskSource) -> Self {
        Self { source, start: 0, held: Bytes::new() }
    }

    /// Returns `len` bytes at `offset`; `None` if the file ends before.
    fn bytes(&mut self, offset: u64, len: u64) -> Result<Option<Bytes>, Error> {
        let Some(end) = offset.checked_add(len).filter(|end| *end <= self.source.bytes()) else { return Ok(None) };
        if offset < self.start || end > self.start + self.held.len() as u64 {
            let wanted = usize::try_from(len).expect("part of a file that is there");
            self.held = self.source.read(offset, wanted.max(WINDOW_BYTES))?.into();
            self.start = offset;
        }
        let from = usize::try_from(offset - self.start).expect("inside of what is held");
        let to = usize::try_from(end - self.start).expect("inside of what is held");
        Ok((to <= self.held.len()).then(|| self.held.slice(from..to)))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    fn frame(record: &Record, out: &mut Vec<u8>) {
        let body = record.encode_to_vec();
        let padding = (8 - body.len() % 8) % 8;
        let head = body.len() as u64 | if padding > 0 { (0x80 | padding as u64) << 56 } else { 0 };
        out.extend(head.to_le_bytes());
        out.extend(body);
        out.resize(out.len() + padding, 0);
    }

    /// The file of a log of member 7 in cluster 8: `entries`, the mark of a snapshot, if there is one, `hard_state`.
    pub(crate) fn file(entries: &[Entry], mark: Option<(u64, u64)>, hard_state: HardState) -> Vec<u8> {
        let entries = entries.iter().map(|entry| (ENTRY, Bytes::from(entry.encode_to_vec())));
        let mark = mark.map(|(index, term)| (SNAPSHOT, SnapshotMark { index, term }.encode_to_vec().into()));
        let state = [(STATE, hard_state.encode_to_vec().into())];
        frames(&entries.chain(mark).chain(state).collect::<Vec<_>>())
    }

    fn frames(records: &[(i64, Bytes)]) -> Vec<u8> {
        let head = [
            (METADATA, Metadata { member_id: 7, cluster_id: 8 }.encode_to_vec().into()),
            (SNAPSHOT, SnapshotMark::default().encode_to_vec().into()),
        ];
        let (mut bytes, mut crc) = (Vec::new(), 0);
        for (kind, data) in head.iter().chain(records) {
            crc = crc32c::crc32c_append(crc, data);
            frame(&Record { kind: *kind, crc, data: data.clone() }, &mut bytes);
        }
        bytes
    }

    /// The frames of a log, and the offset of each.
    fn log(entries: &[(u64, u64)]) -> (Vec<u8>, Vec<usize>) {
        let mut records = vec![
            (CRC, Bytes::new()),
            (METADATA, Metadata { member_id: 7, cluster_id: 8 }.encode_to_vec().into()),
            (SNAPSHOT, SnapshotMark::default().encode_to_vec().into()),
        ];
        for (index, term) in entries {
            let data = Bytes::from(vec![1; 100 + usize::try_from(*index).unwrap() * 50]);
            let entry = Entry { kind: 0, term: *term, index: *index, data };
            records.push((ENTRY, entry.encode_to_vec().into()));
            let state = HardState { term: *term, vote: 7, commit: index - 1 };
            records.push((STATE, state.encode_to_vec().into()));
        }
        let (mut bytes, mut starts, mut crc) = (Vec::new(), Vec::new(), 0);
        for (kind, data) in records {
            if kind != CRC {
                crc = crc32c::crc32c_append(crc, &data);
            }
            starts.push(bytes.len());
            frame(&Record { kind, crc, data }, &mut bytes);
        }
        (bytes, starts)
    }

    fn read_bytes(bytes: &[u8], after: u64) -> Result<Log, Error> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0000000000000000-0000000000000000.wal"), bytes).unwrap();
        std::fs::write(dir.path().join("0.tmp"), b"left over").unwrap();
        read(engine::disk::open_buffered()?.as_mut(), dir.path(), after)
    }

    #[test]
    fn etcds_own_first_records_are_read() {
        // `wal/testdata/TestNew.wal` of etcd: the metadata is "somedata".
        let mut first = hex("0400000000000084 0810 0400 00000000".replace("0810 0400", "08041000"));
        first.extend(hex("1200000000000086 08011085d4fda0071a08736f6d6564617461 000000000000".into()));
        first.extend(hex("0e00000000000082 08051080db81c1011a0408001000 0000".into()));
        first.resize(4096, 0);
        let mut crc = 0;
        let mut kinds = Vec::new();
        let mut at = 0;
        while let Some(head) = first.get(at..at + 8).map(|head| u64::from_le_bytes(head.try_into().unwrap())) {
            if head == 0 {
                break;
            }
            let len = usize::try_from(head & (u64::MAX >> 8)).unwrap();
            let record = Record::decode(&first[at + 8..at + 8 + len]).unwrap();
            crc = crc32c::crc32c_append(crc, &record.data);
            assert_eq!(record.crc, crc);
            kinds.push(record.kind);
            at += 8 + len + usize::try_from(head >> 56 & 7).unwrap();
        }
        assert_eq!(kinds, [CRC, METADATA, SNAPSHOT]);
    }

    fn hex(text: String) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b' ').collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn an_entry_replaces_what_stands_behind_it_and_a_gap_is_refused() {
        let (mut bytes, _) = log(&[(1, 1), (2, 1), (3, 1), (4, 1), (3, 2), (4, 2), (5, 2)]);
        bytes.resize(64 << 10, 0);
        for after in 0..6 {
            let log = read_bytes(&bytes, after).unwrap();
            let found: Vec<(u64, u64)> = log.entries.iter().map(|entry| (entry.index, entry.term)).collect();
            let all = [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2)];
            assert_eq!(found, all[usize::try_from(after).unwrap()..]);
            assert_eq!(
                log.term,
                [Some(0), Some(1), Some(1), Some(2), Some(2), Some(2)][usize::try_from(after).unwrap()]
            );
            assert_eq!((log.metadata.member_id, log.metadata.cluster_id), (7, 8));
            assert_eq!(log.hard_state, HardState { term: 2, vote: 7, commit: 4 });
        }
        assert!(matches!(read_bytes(&log(&[(1, 1), (3, 1)]).0, 0), Err(Error::Corrupt { .. })));
        assert!(matches!(read_bytes(&log(&[(5, 1)]).0, 3), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn a_torn_end_is_cut_and_damage_before_it_is_refused() {
        let entries: Vec<(u64, u64)> = (1..40).map(|index| (index, 1)).collect();
        let (whole, starts) = log(&entries);
        let last = starts[starts.len() - 2];
        let mut torn = whole.clone();
        torn.resize(128 << 10, 0);
        // The last entry is longer than two sectors. The medium lost a sector inside of it.
        let sector = (last / 512 + 1) * 512;
        torn[sector..sector + 512].fill(0);
        let log = read_bytes(&torn, 0).unwrap();
        assert_eq!(log.entries.len(), 38);
        assert_eq!(log.torn.map(|(_, offset)| offset), Some(last as u64));
        let mut damaged = whole;
        damaged[last + 300] ^= 1;
        assert!(matches!(read_bytes(&damaged, 0), Err(Error::Corrupt { offset, .. }) if offset == last as u64));
        let log = read_bytes(&damaged[..last + 200], 0).unwrap();
        assert_eq!((log.entries.len(), log.torn.map(|(_, offset)| offset)), (38, Some(last as u64)), "a cut file");
    }

    #[test]
    fn a_received_snapshot_leads_past_entries_and_ends_what_stood_behind_it() {
        let entry = |index, term| {
            let entry = Entry { kind: 0, term, index, data: Bytes::from_static(b"x") };
            (ENTRY, Bytes::from(entry.encode_to_vec()))
        };
        let mark = |index, term| (SNAPSHOT, Bytes::from(SnapshotMark { index, term }.encode_to_vec()));
        let state = |commit| (STATE, Bytes::from(HardState { term: 3, vote: 0, commit }.encode_to_vec()));
        let read = |records: &[(i64, Bytes)], after| {
            let log = read_bytes(&frames(records), after)?;
            let entries: Vec<u64> = log.entries.iter().map(|entry| entry.index).collect();
            Ok::<_, Error>((entries, log.term, log.snapshot))
        };
        let gap = [entry(1, 1), mark(9, 3), state(9), entry(10, 3)];
        assert_eq!(read(&gap, 9).unwrap(), (vec![10], Some(3), 9));
        assert_eq!(read(&gap, u64::MAX).unwrap(), (vec![], None, 9), "as the newest snapshot is found");
        assert!(read(&gap, 1).is_err(), "the database stands before it");
        assert!(read(&[entry(1, 1), mark(9, 3), state(9), entry(11, 3)], 9).is_err());
        let stale = [entry(1, 1), entry(2, 1), entry(3, 1), mark(2, 3), state(2)];
        assert_eq!(read(&stale, 2).unwrap(), (vec![], Some(3), 2));
        let own = [entry(1, 1), entry(2, 1), entry(3, 1), mark(2, 1), state(2)];
        assert_eq!(read(&own, 2).unwrap(), (vec![3], Some(1), 2));
        // It was written, and its hard state was not: the log goes on from before.
        let half = [entry(1, 1), state(1), mark(9, 3)];
        assert_eq!(read(&half, 1).unwrap(), (vec![], Some(1), 0));
    }

    #[test]
    fn no_damage_makes_it_panic() {
        let (bytes, _) = log(&[(1, 1), (2, 1), (3, 2), (4, 2)]);
        let mut rng = SmallRng::seed_from_u64(3);
        let mut refused = 0;
        for _ in 0..400 {
            let mut damaged = bytes.clone();
            let at = rng.random_range(0..damaged.len());
            damaged[at] = rng.random();
            refused += usize::from(read_bytes(&damaged, 1).is_err());
        }
        assert!(refused > 200, "{refused}");
    }
}
