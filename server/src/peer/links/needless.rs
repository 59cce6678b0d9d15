//! Runs on: raft core.
//!
//! What of the messages of one turn says nothing that another one of them does not say.
//!
//! Each message costs its receiver an answer. Raft-rs tells each follower at once what is committed; where entries
//! follow in the same turn, they say so, too. And it acknowledges each append by itself.
//!
//! Invariants: only messages of one kind and term to one member stand for each other; raft takes those that are left
//! out for lost, and is right with lost messages.

use std::collections::BTreeMap;

use consensus::{Message, MessageKind};

/// Drops what is needless, and keeps the order of all else.
pub(super) fn without_needless(messages: &mut Vec<Message>) {
    // By member and term: the index and the place of the farthest acknowledgement, the place of the last append.
    let mut acknowledged: BTreeMap<(u64, u64), (u64, usize)> = BTreeMap::new();
    let mut appended: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    for (place, message) in messages.iter().enumerate() {
        let (to, Message { index, .. }) = ((message.to, message.term), message);
        if is_accepting(message) {
            let known = acknowledged.entry(to).or_default();
            *known = (*known).max((*index, place));
        } else if message.kind == MessageKind::Append {
            appended.insert(to, place);
        }
    }
    let mut place = 0;
    messages.retain(|message| {
        let (to, here) = ((message.to, message.term), place);
        place += 1;
        match message.kind {
            _ if is_accepting(message) => acknowledged[&to].1 == here,
            MessageKind::Append if message.entries.is_empty() => appended[&to] == here,
            _ => true,
        }
    });
}

fn is_accepting(message: &Message) -> bool {
    message.kind == MessageKind::AppendResponse && !message.reject
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use consensus::{Entry, EntryKind};

    use super::*;

    #[test]
    fn what_a_later_message_of_the_turn_says_is_left_out() {
        let append = |to, term, index, entries: u64, commit| {
            let entry = |place| Entry { index: index + place, term, kind: EntryKind::Normal, data: Bytes::new() };
            let entries = (1..=entries).map(entry).collect();
            Message { kind: MessageKind::Append, to, from: 1, term, index, entries, commit, ..Message::default() }
        };
        let answer = |to, term, index, reject| Message {
            kind: MessageKind::AppendResponse,
            to,
            from: 1,
            term,
            index,
            reject,
            ..Message::default()
        };
        let mut messages = vec![
            append(2, 5, 7, 0, 7), // 0: left out
            append(3, 5, 7, 0, 7), // 1: the last to 3
            append(2, 5, 7, 2, 7),
            append(2, 5, 9, 0, 8), // 3: the last to 2 of its term
            append(2, 6, 9, 0, 8),
            answer(4, 5, 3, false), // 5: left out
            answer(4, 5, 6, false),
            answer(4, 5, 5, true),
            answer(4, 5, 4, false), // 8: left out
            answer(4, 6, 4, false),
        ];
        let wanted: Vec<Message> = [1, 2, 3, 4, 6, 7, 9].map(|place: usize| messages[place].clone()).to_vec();
        without_needless(&mut messages);
        assert_eq!(messages, wanted);
    }
}
