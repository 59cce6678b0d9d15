//! Rounds of reads, message by message: what a leader asks, whom it answers, and what confirms nothing.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bytes::Bytes;
use consensus::{Entry, EntryKind, Message, MessageKind};

use world::{options, three::Three};

fn asks(from: u64, context: &'static [u8]) -> Message {
    let token = Entry { index: 0, term: 0, kind: EntryKind::Normal, data: Bytes::from_static(context) };
    Message { kind: MessageKind::ReadIndex, from, to: 1, entries: vec![token], ..Message::default() }
}

#[test]
fn a_context_that_is_used_again_is_not_confirmed_by_an_answer_to_its_older_round() {
    let mut three = Three::led();
    let mut tokens = Vec::new();
    let mut late = Vec::new();
    for _ in 0..2 {
        three.worlds[0].driver.receive(asks(2, b"the same")).unwrap();
        three.settle();
        assert_eq!(three.tokens().len(), 2, "one to each follower");
        tokens.extend(three.tokens().first().cloned());
        if tokens.len() == 1 {
            // Both answer. The answer of member 3 is late.
            three.deliver(|_| true);
            let is_late = |message: &Message| message.from == 3 && message.kind == MessageKind::HeartbeatResponse;
            late.extend(three.wire.iter().filter(|message| is_late(message)).cloned());
            three.deliver(|message| !is_late(message));
            assert_eq!(three.answers(), [(2, Bytes::from_static(b"the same"))]);
            three.deliver(|_| true);
        }
    }
    assert_ne!(tokens[0], tokens[1]);
    assert!(tokens.iter().all(|token| !token.is_empty() && &token[..] != b"the same"));
    three.wire = late;
    three.deliver(|_| true);
    assert_eq!(three.answers(), [], "it says nothing of who leads now");
    let answered = |three: &Three| three.answers().len();
    three.worlds[0].driver.tick();
    three.settle();
    three.deliver(|_| true);
    three.deliver(|_| true);
    assert_eq!(answered(&three), 1, "an answer to the new round does");
}

#[test]
fn reads_of_a_turn_share_a_round_whoever_asks_for_them() {
    let mut three = Three::led();
    three.worlds[0].driver.read_index(1).unwrap();
    for context in [&b"12345678"[..], b"a", b"a"] {
        three.worlds[0].driver.receive(asks(3, context)).unwrap();
    }
    three.worlds[0].driver.receive(asks(9, b"a stranger")).unwrap();
    three.settle();
    assert_eq!(three.tokens().len(), 2, "one round, to two followers");
    three.deliver(|_| true);
    three.deliver(|_| true);
    let texts = ["12345678", "a", "a"].map(|text| (3, Bytes::from_static(text.as_bytes())));
    assert_eq!(three.answers(), texts);
    assert_eq!(three.worlds[0].driver.take_reads().len(), 1);
}

#[test]
fn a_leader_answers_no_read_before_the_first_commit_of_its_term() {
    let mut three = Three::led();
    for _ in 0..30 {
        three.worlds[1].driver.tick();
    }
    three.settle();
    // Member 2 is elected by member 3, which does not get its first entry.
    for _ in 0..6 {
        three.deliver(|message| message.to != 1 && message.from != 1 && message.kind != MessageKind::Append);
        three.worlds[2].driver.tick();
    }
    for _ in 0..60 {
        three.worlds[1].driver.tick();
        three.worlds[2].driver.tick();
        three.settle();
        three.deliver(|message| message.to != 1 && message.from != 1 && message.kind != MessageKind::Append);
        if three.worlds[1].driver.status().is_leader {
            break;
        }
    }
    let status = three.worlds[1].driver.status();
    assert!(status.is_leader && status.term_start.unwrap() > status.commit, "{status:?}");
    three.worlds[1].driver.read_index(1).unwrap();
    three.worlds[1].driver.receive(Message { to: 2, ..asks(3, b"early") }).unwrap();
    for _ in 0..3 {
        three.settle();
        assert!(three.tokens().iter().all(Bytes::is_empty), "nothing is asked yet");
        three.deliver(|message| message.to != 1 && message.kind != MessageKind::Append);
        assert!(three.worlds[1].driver.take_reads().is_empty() && three.answers().is_empty());
    }
    let mut answers = Vec::new();
    for _ in 0..12 {
        three.worlds[1].driver.tick();
        three.settle();
        three.deliver(|message| message.to != 1 && message.from != 1);
        answers.extend(three.answers());
    }
    let read = three.worlds[1].driver.take_reads();
    assert_eq!(read.len(), 1);
    assert!(read[0].index >= status.term_start.unwrap());
    assert_eq!(answers, [(3, Bytes::from_static(b"early"))]);
}

#[test]
fn a_read_at_a_follower_waits_for_a_leader_and_is_confirmed_by_it() {
    let mut three = Three::led();
    three.worlds[2].driver.read_index(1).unwrap();
    three.deliver_all();
    let read = three.worlds[2].driver.take_reads();
    assert_eq!(read.len(), 1);
    assert_eq!(read[0].index, three.worlds[0].driver.status().commit);
    // The question is lost. It is asked again.
    three.worlds[2].driver.read_index(2).unwrap();
    three.settle();
    three.wire.clear();
    for _ in 0..options().read_retry_ticks {
        assert!(three.worlds[2].driver.take_reads().is_empty());
        three.worlds[2].driver.tick();
        three.worlds[0].driver.tick();
        three.deliver_all();
    }
    assert_eq!(three.worlds[2].driver.take_reads().len(), 1);
}
