//! Messages, entries and snapshots in etcd's protobuf.
//!
//! Invariants: a field with another wire type than its own, a group, a joint configuration, and an entry of a kind that
//! must not be in the log are refused. Fields 13 and beyond of a message mean nothing between members: raft-rs has
//! others there, so they are cleared in both directions.
//!
//! **Source**: etcd `raft/v3 raftpb/raft.proto`; the form is that of v3.6, which writes every scalar.

use bytes::Bytes;
use prost::encoding::{decode_varint, encoded_len_varint};

use super::pieces::Pieces;
use crate::{
    entry::{Entry, EntryId, EntryKind},
    error::Error,
    members::ConfState,
    message::{Message, MessageKind, Snapshot},
};

/// Entries of one message at most. An empty one takes two bytes on the wire, and a hundred here; those of etcd take ten
/// at least, in a message of 1 MiB.
pub(crate) const ENTRIES_MAX: usize = 1 << 17;

fn malformed<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::Malformed { what })
}

enum Value {
    Varint(u64),
    Delimited(Bytes),
    /// Four or eight bytes. No field of etcd's has them.
    Fixed,
}

fn varint(rest: &mut Bytes) -> Result<u64, Error> {
    decode_varint(rest).or(malformed("raft message: a number"))
}

fn take(rest: &mut Bytes, len: u64) -> Result<Bytes, Error> {
    match usize::try_from(len) {
        Ok(len) if len <= rest.len() => Ok(rest.split_to(len)),
        _ => malformed("raft message: it is cut short"),
    }
}

/// Takes the next field: its number and its value.
fn next_field(rest: &mut Bytes) -> Result<Option<(u64, Value)>, Error> {
    if rest.is_empty() {
        return Ok(None);
    }
    let key = varint(rest)?;
    let value = match key & 7 {
        0 => Value::Varint(varint(rest)?),
        1 => take(rest, 8).map(|_unread| Value::Fixed)?,
        2 => {
            let len = varint(rest)?;
            Value::Delimited(take(rest, len)?)
        }
        5 => take(rest, 4).map(|_unread| Value::Fixed)?,
        _ => return malformed("raft message: a group"),
    };
    if key >> 3 == 0 { malformed("raft message: field 0") } else { Ok(Some((key >> 3, value))) }
}

/// Decodes a message that has the bytes to itself. `None` for a type that has no meaning between members.
///
/// **Errors**: `Malformed`.
pub fn decode_message(mut bytes: Bytes) -> Result<Option<Message>, Error> {
    let (mut number, mut message) = (0, Message::default());
    while let Some(field) = next_field(&mut bytes)? {
        match field {
            (1, Value::Varint(value)) => number = value,
            (2, Value::Varint(value)) => message.to = value,
            (3, Value::Varint(value)) => message.from = value,
            (4, Value::Varint(value)) => message.term = value,
            (5, Value::Varint(value)) => message.log_term = value,
            (6, Value::Varint(value)) => message.index = value,
            (7, Value::Delimited(_)) if message.entries.len() == ENTRIES_MAX => {
                return malformed("raft message: too many entries");
            }
            (7, Value::Delimited(entry)) => message.entries.push(decode_entry(entry)?),
            (8, Value::Varint(value)) => message.commit = value,
            (9, Value::Delimited(snapshot)) => message.snapshot = Some(Box::new(decode_snapshot(snapshot)?)),
            (10, Value::Varint(value)) => message.reject = value != 0,
            (11, Value::Varint(value)) => message.reject_hint = value,
            (12, Value::Delimited(context)) => message.context = context,
            (1..=12, _) => return malformed("raft message: a field of another type"),
            _ => {}
        }
    }
    let Some(kind) = MessageKind::from_number(number) else { return Ok(None) };
    message.kind = kind;
    match (kind, &message.snapshot) {
        (MessageKind::Snapshot, None) => malformed("raft message: a snapshot message without one"),
        (MessageKind::Snapshot, Some(_)) => Ok(Some(message)),
        // Members of older releases write an empty one into every message.
        (_, _) => Ok(Some(Message { snapshot: None, ..message })),
    }
}

/// To whom a message is addressed, of whatever type; 0 if it says nothing of that. The last word counts.
///
/// **Errors**: `Malformed`.
pub fn addressee(mut bytes: Bytes) -> Result<u64, Error> {
    let mut to = 0;
    while let Some(field) = next_field(&mut bytes)? {
        if let (2, Value::Varint(value)) = field {
            to = value;
        }
    }
    Ok(to)
}

/// Decodes an entry that has the bytes to itself.
///
/// **Errors**: `Malformed`.
pub fn decode_entry(mut bytes: Bytes) -> Result<Entry, Error> {
    let mut number = 0;
    let mut entry = Entry { index: 0, term: 0, kind: EntryKind::Normal, data: Bytes::new() };
    while let Some(field) = next_field(&mut bytes)? {
        match field {
            (1, Value::Varint(value)) => number = value,
            (2, Value::Varint(value)) => entry.term = value,
            (3, Value::Varint(value)) => entry.index = value,
            (4, Value::Delimited(data)) => entry.data = data,
            (1..=4, _) => return malformed("raft entry: a field of another type"),
            _ => {}
        }
    }
    let Some(kind) = EntryKind::from_number(number) else { return malformed("raft entry: its kind") };
    Ok(Entry { kind, ..entry })
}

fn decode_snapshot(mut bytes: Bytes) -> Result<Snapshot, Error> {
    let mut snapshot = Snapshot::default();
    while let Some(field) = next_field(&mut bytes)? {
        match field {
            (1, Value::Delimited(data)) => snapshot.data = data,
            (2, Value::Delimited(metadata)) => (snapshot.at, snapshot.conf_state) = decode_metadata(metadata)?,
            (1 | 2, _) => return malformed("raft snapshot: a field of another type"),
            _ => {}
        }
    }
    Ok(snapshot)
}

fn decode_metadata(mut bytes: Bytes) -> Result<(EntryId, ConfState), Error> {
    let (mut at, mut conf_state) = (EntryId::default(), ConfState::default());
    while let Some(field) = next_field(&mut bytes)? {
        match field {
            (1, Value::Delimited(state)) => conf_state = decode_conf_state(state)?,
            (2, Value::Varint(value)) => at.index = value,
            (3, Value::Varint(value)) => at.term = value,
            (1..=3, _) => return malformed("raft snapshot: a field of another type"),
            _ => {}
        }
    }
    Ok((at, conf_state))
}

fn decode_conf_state(mut bytes: Bytes) -> Result<ConfState, Error> {
    let mut state = ConfState::default();
    while let Some((number, value)) = next_field(&mut bytes)? {
        let ids = match number {
            1 => &mut state.voters,
            2 => &mut state.learners,
            5 if matches!(value, Value::Varint(0)) => continue,
            3..=5 => return malformed("raft configuration: a joint one"),
            _ => continue,
        };
        match value {
            Value::Varint(id) => ids.push(id),
            // The same list in the other of protobuf's two forms.
            Value::Delimited(mut packed) => {
                while !packed.is_empty() {
                    ids.push(varint(&mut packed)?);
                }
            }
            Value::Fixed => return malformed("raft configuration: a field of another type"),
        }
    }
    state.voters.sort_unstable();
    state.learners.sort_unstable();
    Ok(state)
}

/// Length of a number with its tag. **Units**: bytes.
fn number_len(number: u64) -> usize {
    1 + encoded_len_varint(number)
}

/// Length of bytes or of a message with tag and length. **Units**: bytes.
fn nested_len(len: usize) -> usize {
    1 + encoded_len_varint(len as u64) + len
}

/// Length of bytes that are left out where there are none. **Units**: bytes.
fn bytes_len(bytes: &Bytes) -> usize {
    if bytes.is_empty() { 0 } else { nested_len(bytes.len()) }
}

fn put_number(out: &mut Pieces, field: u8, number: u64) {
    out.put_u8(field << 3);
    out.put_varint(number);
}

fn put_head(out: &mut Pieces, field: u8, len: usize) {
    out.put_u8(field << 3 | 2);
    out.put_varint(len as u64);
}

fn put_bytes(out: &mut Pieces, field: u8, bytes: &Bytes) {
    if !bytes.is_empty() {
        put_head(out, field, bytes.len());
        out.share(bytes);
    }
}

/// Length of an encoded entry. **Units**: bytes.
pub(crate) fn entry_len(entry: &Entry) -> usize {
    number_len(entry.kind as u64) + number_len(entry.term) + number_len(entry.index) + bytes_len(&entry.data)
}

/// Appends an entry, [`entry_len`] bytes.
pub(crate) fn encode_entry(entry: &Entry, out: &mut Pieces) {
    put_number(out, 1, entry.kind as u64);
    put_number(out, 2, entry.term);
    put_number(out, 3, entry.index);
    put_bytes(out, 4, &entry.data);
}

fn conf_state_len(state: &ConfState) -> usize {
    let ids = state.voters.iter().chain(&state.learners);
    ids.map(|id| number_len(*id)).sum::<usize>() + number_len(0)
}

fn metadata_len(snapshot: &Snapshot) -> usize {
    let Snapshot { at, conf_state, .. } = snapshot;
    nested_len(conf_state_len(conf_state)) + number_len(at.index) + number_len(at.term)
}

fn snapshot_len(snapshot: &Snapshot) -> usize {
    bytes_len(&snapshot.data) + nested_len(metadata_len(snapshot))
}

fn encode_snapshot(snapshot: &Snapshot, out: &mut Pieces) {
    let Snapshot { at, conf_state, data } = snapshot;
    put_bytes(out, 1, data);
    put_head(out, 2, metadata_len(snapshot));
    put_head(out, 1, conf_state_len(conf_state));
    conf_state.voters.iter().for_each(|id| put_number(out, 1, *id));
    conf_state.learners.iter().for_each(|id| put_number(out, 2, *id));
    put_number(out, 5, 0);
    put_number(out, 2, at.index);
    put_number(out, 3, at.term);
}

/// Length of an encoded message. **Units**: bytes.
pub fn message_len(message: &Message) -> usize {
    let numbers = [
        message.kind as u64,
        message.to,
        message.from,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        u64::from(message.reject),
        message.reject_hint,
        0,
    ];
    numbers.into_iter().map(number_len).sum::<usize>()
        + message.entries.iter().map(|entry| nested_len(entry_len(entry))).sum::<usize>()
        + message.snapshot.as_ref().map_or(0, |snapshot| nested_len(snapshot_len(snapshot)))
        + bytes_len(&message.context)
}

/// Appends a message, [`message_len`] bytes.
pub fn encode_message(message: &Message, out: &mut Pieces) {
    let before = out.len();
    put_number(out, 1, message.kind as u64);
    put_number(out, 2, message.to);
    put_number(out, 3, message.from);
    put_number(out, 4, message.term);
    put_number(out, 5, message.log_term);
    put_number(out, 6, message.index);
    for entry in &message.entries {
        put_head(out, 7, entry_len(entry));
        encode_entry(entry, out);
    }
    put_number(out, 8, message.commit);
    if let Some(snapshot) = &message.snapshot {
        put_head(out, 9, snapshot_len(snapshot));
        encode_snapshot(snapshot, out);
    }
    put_number(out, 10, u64::from(message.reject));
    put_number(out, 11, message.reject_hint);
    put_bytes(out, 12, &message.context);
    // The vote, which only a member's own storage asks for.
    put_number(out, 13, 0);
    assert_eq!(out.len() - before, message_len(message), "a message is as long as it says");
}
