//! What a peer's message must keep before raft-rs sees it.
//!
//! raft-rs trusts its peers: a message that no honest member sends ends the process there. Here such a message is an
//! error, which closes the connection it came from. This is no defence against a member that lies about what it has
//! stored: no majority vote is.
//!
//! It decides nothing about the order of entries; raft-rs does.

use raft::{Raft, StateRole};

use crate::{
    entry::{Entry, EntryKind},
    error::Error,
    log::Log,
    members::{ConfChange, ConfState},
    message::{Message, MessageKind, Snapshot},
};

/// Terms and indexes beyond this could overflow.
const NUMBER_MAX: u64 = 1 << 62;
/// The token of a read: etcd's has 8 bytes, raft-rs's own 16.
const TOKEN_BYTES_MAX: usize = 64;

fn malformed<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::Malformed { what })
}

/// Checks `message`, which came from a peer, for a member that stands as `raft`. A heartbeat that commits what this
/// member does not have commits what it has; what else that means, [`claims_too_much`] tells.
///
/// **Errors**: `Malformed`: no honest member sends it.
pub(crate) fn check(message: &mut Message, raft: &Raft<Log>) -> Result<(), Error> {
    // What a member asks of its leader comes back to it from a leader that has become its follower meanwhile.
    let is_forwarded = matches!(message.kind, MessageKind::Propose | MessageKind::ReadIndex);
    if message.to != raft.id || (message.from == raft.id && !is_forwarded) || message.from == raft::INVALID_ID {
        return malformed("message for another member, or of none");
    }
    check_numbers(message)?;
    // A message without a term is one of the member's own to raft-rs, and is believed.
    if is_forwarded == (message.term > 0) {
        return malformed("a message's term");
    }
    let last_index = raft.raft_log.last_index();
    match message.kind {
        MessageKind::Append => check_append(message, raft),
        MessageKind::Heartbeat => {
            message.commit = message.commit.min(last_index);
            Ok(())
        }
        MessageKind::AppendResponse if !message.reject && message.index > last_index => {
            // One of another term may be late, and is passed over.
            let is_answer = raft.state == StateRole::Leader && message.term == raft.term;
            if is_answer { malformed("an acknowledgement of entries that were never sent") } else { Ok(()) }
        }
        MessageKind::Propose => {
            let is_new = |entry: &Entry| entry.index == 0 && entry.term == 0;
            if message.entries.is_empty() || !message.entries.iter().all(is_new) {
                return malformed("proposal: its entries");
            }
            message.entries.iter().try_for_each(check_entry)
        }
        MessageKind::ReadIndex | MessageKind::ReadIndexResponse => match &message.entries[..] {
            [token] if token.kind == EntryKind::Normal && token.data.len() <= TOKEN_BYTES_MAX => Ok(()),
            _ => malformed("a read's token"),
        },
        _ if !message.entries.is_empty() => malformed("entries where there are none"),
        MessageKind::Snapshot => check_snapshot(message, raft),
        _ => Ok(()),
    }
}

/// Whether `message`, which is not checked yet, commits what this member, which follows, does not have. A leader
/// commits by its heartbeats only what the member has acknowledged, so that is gone.
pub(crate) fn claims_too_much(message: &Message, raft: &Raft<Log>) -> bool {
    message.kind == MessageKind::Heartbeat
        && message.to == raft.id
        && message.term >= raft.term
        && raft.state != StateRole::Leader
        && message.commit > raft.raft_log.last_index()
}

fn check_snapshot(message: &Message, raft: &Raft<Log>) -> Result<(), Error> {
    match message.snapshot.as_deref() {
        Some(state) => check_state(state, message.term, raft),
        None => malformed("a snapshot message without one"),
    }
}

/// Checks the head of a state that was sent in `term` or later.
///
/// **Errors**: `Malformed`: no honest member sends it.
pub(crate) fn check_state(state: &Snapshot, term: u64, raft: &Raft<Log>) -> Result<(), Error> {
    let Snapshot { at, conf_state, .. } = state;
    let ConfState { voters, learners } = conf_state;
    let ascends = |ids: &[u64]| ids.is_sorted_by(|a, b| a < b) && !ids.contains(&raft::INVALID_ID);
    let is_both = |id: &u64| learners.contains(id);
    if voters.is_empty() || !ascends(voters) || !ascends(learners) || voters.iter().any(is_both) {
        return malformed("a snapshot's configuration");
    }
    if at.index == 0 || at.term == 0 || at.index > NUMBER_MAX || at.term > term.min(NUMBER_MAX) {
        return malformed("a snapshot's place in the log");
    }
    let log = &raft.raft_log;
    if at.index == log.committed && log.term(at.index).ok() != Some(at.term) {
        return malformed("a snapshot of another entry in place of one that is committed");
    }
    Ok(())
}

fn check_numbers(message: &Message) -> Result<(), Error> {
    let Message { term, log_term, index, commit, reject_hint, entries, .. } = message;
    let of_entries = entries.iter().flat_map(|entry| [entry.index, entry.term]);
    let mut numbers = [*term, *log_term, *index, *commit, *reject_hint].into_iter().chain(of_entries);
    if numbers.any(|number| number > NUMBER_MAX) {
        return malformed("a number that is too large");
    }
    Ok(())
}

fn check_append(message: &Message, raft: &Raft<Log>) -> Result<(), Error> {
    // To raft-rs, all that it does not have has term 0.
    if (message.index == 0) != (message.log_term == 0) || message.log_term > message.term {
        return malformed("append: the term of the entry before it");
    }
    let mut before = (message.index, message.log_term);
    for entry in &message.entries {
        if entry.index != before.0 + 1 || entry.term < before.1 || entry.term > message.term {
            return malformed("append: entries do not follow each other");
        }
        check_entry(entry)?;
        before = (entry.index, entry.term);
    }
    let log = &raft.raft_log;
    // raft-rs looks only at what lies behind what is committed, and at nothing of a leader that has lost its term.
    if message.term < raft.term
        || message.index < log.committed
        || log.term(message.index).ok() != Some(message.log_term)
    {
        return Ok(());
    }
    let committed = message.entries.iter().take_while(|entry| entry.index <= log.committed);
    if committed.into_iter().any(|entry| log.term(entry.index).ok() != Some(entry.term)) {
        return malformed("append: another entry in place of one that is committed");
    }
    Ok(())
}

/// A configuration change must be etcd's, and name its member: it enters the log, and no member could apply another.
fn check_entry(entry: &Entry) -> Result<(), Error> {
    if entry.kind == EntryKind::ConfChange {
        if entry.data.is_empty() {
            return malformed("an empty configuration change");
        }
        ConfChange::decode(&entry.data)?.named()?;
    }
    Ok(())
}
