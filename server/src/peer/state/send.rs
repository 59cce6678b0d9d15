//! Runs on: connection core.
//!
//! From views to frames.
//!
//! Invariants: `next` is the first revision that is not sent yet; it is right after a step that ends in a fault, too.
//! The view of the rows is let go of as soon as they are sent.

use std::sync::Arc;

use consensus::{ConfState, EntryId};
use engine::{Fault, HashKv, MetaCursor, ReadView, Revision, planted::is_planted};
use prost::Message;

use super::frame::{End, FRAME_BYTES, Head, Kind, encode, put_pair};
use crate::{apply::table, error::Error, etcd_files::schema, floor::Floor, lease};

/// Records that one step looks at.
const RECORDS_PER_STEP: usize = 1024;
/// The form of the stream.
pub(super) const FORM: u32 = 1;

#[derive(Debug)]
enum Stage {
    Head,
    Rows { prefix: u8, cursor: Option<MetaCursor> },
    Records,
    Hash(Box<HashKv>),
    Done,
}

/// Why a step brought nothing.
#[derive(Debug)]
pub enum Stop {
    /// A page must be read first; then the same call goes on.
    Fault(Fault),
    /// The state cannot be read any more.
    Lost(Error),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// What a step has brought.
#[derive(Debug)]
pub enum Step {
    /// The next frame.
    Frame(bytes::Bytes),
    /// Nothing yet.
    Nothing,
    /// All frames were given.
    Done,
}

/// Sends the state of one view.
#[derive(Debug)]
pub struct Sender {
    /// The view, until its rows are sent.
    view: Arc<ReadView>,
    floor: Floor,
    head: Head,
    stage: Stage,
    rows: u64,
    records: u64,
    next: Revision,
}

/// What a receiver has of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The last entry in the state.
    pub at: EntryId,
    /// All rows have come.
    pub has_rows: bool,
    /// All records before this one have come.
    pub next: Revision,
    /// How many these are.
    pub records: u64,
}

/// The configuration in `view`.
///
/// **Errors** a page that is not resident.
pub fn conf_state(view: &ReadView) -> Result<Option<ConfState>, Fault> {
    Ok(view.meta_get(table::CONF_STATE)?.and_then(|row| table::decode_conf_state(&row)))
}

impl Sender {
    /// Sends the state that `view` shows, from its beginning. `floor` holds the view's compact revision.
    ///
    /// **Panics** if an entry is under way in `view`.
    pub fn new(view: Arc<ReadView>, floor: Floor, cluster_id: u64) -> Self {
        assert!(!view.is_unfinished(), "a state stands between two entries");
        assert!(floor.at() <= view.compact_revision(), "all that is kept is held");
        let head = Head {
            form: FORM,
            cluster_id,
            index: view.applied_index() - u64::from(is_planted("a state that is one entry off")),
            term: view.applied_term(),
            revision: view.revision(),
            compact_revision: view.compact_revision(),
            has_rows: false,
            from_main: Revision::MIN.main,
            from_sub: Revision::MIN.sub,
        };
        Self { view, floor, head, stage: Stage::Head, rows: 0, records: 0, next: Revision::MIN }
    }

    /// The last entry in the state.
    pub fn at(&self) -> EntryId {
        EntryId { index: self.head.index, term: self.head.term }
    }

    /// Begins a new stream behind what the receiver has: nothing, or a part of this state.
    pub fn resume(&mut self, position: Option<Position>) {
        let nothing = Position { at: self.at(), has_rows: false, next: Revision::MIN, records: 0 };
        let Position { at, has_rows, next, records } = position.unwrap_or(nothing);
        assert_eq!(at, self.at(), "a part of another state");
        self.records = records;
        self.head = Head { has_rows, from_main: next.main, from_sub: next.sub, ..self.head };
        (self.stage, self.next) = (Stage::Head, next);
        self.rows = if has_rows { self.rows } else { 0 };
    }

    /// Makes one bounded step. `newest` is the newest view.
    ///
    /// **Errors** see [`Stop`].
    pub fn step(&mut self, newest: &ReadView) -> Result<Step, Stop> {
        self.floor.check(newest).map_err(Stop::Lost)?;
        let frame = match &mut self.stage {
            Stage::Head => {
                let rows = Stage::Rows { prefix: 0, cursor: None };
                self.stage = if self.head.has_rows { Stage::Records } else { rows };
                Some(encode(Kind::Head, &self.head.encode_to_vec()))
            }
            Stage::Rows { .. } => self.rows()?,
            Stage::Records => self.records(newest)?,
            Stage::Hash(hash) => hash.step(newest, RECORDS_PER_STEP)?.map(|(hash, _)| {
                self.stage = Stage::Done;
                encode(Kind::End, &End { hash, rows: self.rows, records: self.records }.encode_to_vec())
            }),
            Stage::Done => return Ok(Step::Done),
        };
        Ok(frame.map_or(Step::Nothing, Step::Frame))
    }

    fn rows(&mut self) -> Result<Option<bytes::Bytes>, Fault> {
        let mut body = Vec::new();
        let Stage::Rows { prefix, cursor } = &mut self.stage else { unreachable!("the caller has looked") };
        while body.len() < FRAME_BYTES {
            let rows = cursor.get_or_insert_with(|| self.view.meta_cursor(&[*prefix]));
            match rows.next() {
                Ok(Some((key, value))) if is_sent(&key) => {
                    self.rows += 1;
                    put_pair(&key, &value, &mut body);
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    *cursor = None;
                    match next_prefix(*prefix) {
                        Some(next) => *prefix = next,
                        None => {
                            self.stage = Stage::Records;
                            break;
                        }
                    }
                }
                // The cursor goes on at the same place.
                Err(fault) if body.is_empty() => return Err(fault),
                Err(_) => break,
            }
        }
        Ok((!body.is_empty()).then(|| encode(Kind::Rows, &body)))
    }

    fn records(&mut self, newest: &ReadView) -> Result<Option<bytes::Bytes>, Fault> {
        let mut body = Vec::new();
        let mut records = newest.records_from(self.next);
        let mut value = Vec::new();
        for _ in 0..RECORDS_PER_STEP {
            let taken = records.next().and_then(|record| match record {
                Some(record) => newest.is_kept(&record, self.head.compact_revision).map(|kept| Some((record, kept))),
                None => Ok(None),
            });
            let next = match taken {
                Ok(next) => next.filter(|(record, _)| record.revision.main <= self.head.revision),
                Err(fault) if body.is_empty() => return Err(fault),
                Err(_) => break,
            };
            let Some((record, is_kept)) = next else {
                self.stage = Stage::Hash(Box::new(HashKv::at(self.head.revision, self.head.compact_revision)));
                break;
            };
            self.next = Revision::new(record.revision.main, record.revision.sub + 1);
            if is_kept {
                let key = schema::revision_key(record.revision, record.is_tombstone);
                value.clear();
                schema::write_record(record, &mut value);
                put_pair(&key, &value, &mut body);
                self.records += 1;
            }
            if body.len() >= FRAME_BYTES {
                break;
            }
        }
        Ok((!body.is_empty()).then(|| encode(Kind::Records, &body)))
    }
}

/// Whether a row of the meta tree belongs to the replicated state, and does not follow from the records.
pub(super) fn is_sent(key: &[u8]) -> bool {
    let is_own = key == table::IDENTITY || key == table::UNDER_WAY;
    !is_own && key.first() != Some(&lease::ATTACHMENTS)
}

/// The next first byte of rows that are sent.
fn next_prefix(prefix: u8) -> Option<u8> {
    let next = prefix.checked_add(1)?;
    // Attachments may be as many as keys.
    if next == lease::ATTACHMENTS { next.checked_add(1) } else { Some(next) }
}
