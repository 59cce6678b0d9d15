//! A member whose log was cut: whom it asks before it votes, and what it makes of those that it does not know.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeSet;

use bytes::Bytes;
use consensus::{ConfState, Entry, EntryId, EntryKind, Message, MessageKind};
use engine::disk::sim::{Order, SimStorage};

use world::{Machine, State, World, options, seeded};

const MEMBERS: u64 = 3;
/// A member that this one has not heard of by its log.
const STRANGER: u64 = 9;

fn vote(kind: MessageKind, from: u64, term: u64) -> Message {
    Message { kind, to: 1, from, term, log_term: 8, index: 100, ..Message::default() }
}

fn hear(world: &mut World, message: Message) {
    world.driver.receive(message).unwrap();
    world.settle().unwrap();
}

/// Member 1, which has voted for a stranger and was then cut, in some seed.
fn cut() -> World {
    for seed in 1..200 {
        let mut world = World::open(1, MEMBERS, seeded(seed), Machine::new(), options()).unwrap();
        world.settle().unwrap();
        let request = Message { log_term: 1, index: 3, ..vote(MessageKind::Vote, STRANGER, 5) };
        hear(&mut world, request);
        assert!(world.outbox.iter().any(|answer| answer.kind == MessageKind::VoteResponse && !answer.reject));
        world.storage.set_order(Order::Manual);
        let entry = Entry { index: 4, term: 5, kind: EntryKind::Normal, data: Bytes::from(vec![7; 9000]) };
        let append = Message { log_term: 1, index: 3, entries: vec![entry], ..vote(MessageKind::Append, STRANGER, 5) };
        world.driver.receive(append).unwrap();
        world.turn().unwrap();
        let storage = world.storage.crash();
        storage.set_order(Order::Seeded);
        drop(world);
        let mut world = World::open(1, MEMBERS, storage, Machine::new(), options()).unwrap();
        world.settle().unwrap();
        if world.driver.is_cut() {
            return world;
        }
    }
    panic!("power loss cuts no log");
}

/// Member 2 asks for a vote in `term`, and 3 says that it could lead. Whether it has got the vote, and who was asked.
fn gets_vote(world: &mut World, term: u64) -> (bool, Vec<u64>) {
    world.outbox.clear();
    hear(world, vote(MessageKind::PreVote, 2, term));
    hear(world, vote(MessageKind::PreVoteResponse, 3, term));
    hear(world, vote(MessageKind::Vote, 2, term));
    let is_question = |sent: &&Message| sent.kind == MessageKind::PreVote;
    let asked = world.outbox.iter().filter(is_question).map(|sent| sent.to).collect();
    let is_vote = |sent: &Message| sent.kind == MessageKind::VoteResponse && !sent.reject && sent.to == 2;
    (world.outbox.iter().any(is_vote), asked)
}

#[test]
fn who_may_have_promised_something_to_a_stranger_votes_once_that_one_is_known_to_be_removed() {
    let mut world = cut();
    assert_eq!(gets_vote(&mut world, 9), (false, vec![]));
    world.driver.know_former(&BTreeSet::from([STRANGER]));
    let (is_given, asked) = gets_vote(&mut world, 10);
    assert!(is_given && !asked.contains(&STRANGER), "{asked:?} were asked");
}

#[test]
fn a_leader_is_answered_once_it_has_confirmed_a_read() {
    let mut world = cut();
    world.outbox.clear();
    hear(&mut world, Message { log_term: 0, index: 0, ..vote(MessageKind::Heartbeat, 3, 4) });
    let answer = world.outbox.pop().unwrap();
    assert_eq!((answer.to, answer.term), (3, 5), "its term is over");
    let heartbeat = Message { log_term: 0, index: 0, ..vote(MessageKind::Heartbeat, 2, 6) };
    hear(&mut world, heartbeat.clone());
    let question = world.outbox.pop().unwrap();
    assert_eq!((question.kind, question.to, world.outbox.len()), (MessageKind::ReadIndex, 2, 0));
    assert_eq!((question.reject, question.reject_hint), (true, MEMBERS), "it is sure of its first entries only");
    let answer = Message { entries: question.entries, ..vote(MessageKind::ReadIndexResponse, 2, 6) };
    hear(&mut world, answer);
    let is_answer = |sent: &Message| sent.kind == MessageKind::HeartbeatResponse;
    hear(&mut world, heartbeat.clone());
    assert!(!world.outbox.iter().any(is_answer), "a candidate may be about that counts on its vote");
    (0..2 * options().election_ticks).for_each(|_| world.driver.tick());
    world.outbox.clear();
    hear(&mut world, Message { commit: 100, ..heartbeat });
    assert!(world.outbox.iter().any(is_answer));
    assert_eq!(world.driver.status().commit, MEMBERS, "what it has behind that may not be the leader's");
    assert!(world.driver.is_cut(), "it has yet to catch up");
}

/// A member with a state of another one up to entry 10, of term 2, on this storage.
fn installed(storage: SimStorage) -> World {
    let conf_state = ConfState { voters: (1..=MEMBERS).collect(), learners: Vec::new() };
    let state = State { applied: EntryId { index: 10, term: 2 }, conf_state };
    let machine = Machine { states: vec![state], is_installed: true, ..Machine::new() };
    World::open(1, MEMBERS, storage, machine, options()).unwrap()
}

#[test]
fn a_log_that_is_gone_beside_an_installed_state_was_lost_and_one_from_before_was_not() {
    assert!(installed(seeded(1)).driver.is_cut());
    let mut world = World::open(1, MEMBERS, seeded(1), Machine::new(), options()).unwrap();
    world.settle().unwrap();
    hear(&mut world, Message { log_term: 1, index: 3, ..vote(MessageKind::Vote, 2, 2) });
    let world = installed(world.storage.kill());
    assert!(!world.driver.is_cut());
    assert_eq!(world.driver.status().last_index, 10, "the log starts again behind the state");
}

#[test]
fn who_lacks_what_its_leader_has_of_it_votes_for_nobody_until_it_has_caught_up() {
    let mut world = World::open(1, MEMBERS, seeded(1), Machine::new(), options()).unwrap();
    world.settle().unwrap();
    let heartbeat = |term, commit| Message { log_term: 0, index: 0, commit, ..vote(MessageKind::Heartbeat, 2, term) };
    hear(&mut world, heartbeat(2, MEMBERS));
    assert!(!world.driver.is_cut(), "it has all that was committed");
    hear(&mut world, heartbeat(1, 7));
    assert!(!world.driver.is_cut(), "that one leads no more");
    world.outbox.clear();
    hear(&mut world, heartbeat(2, 7));
    assert!(world.driver.is_cut());
    // The leader hears that nothing of it counts, and it goes on being in doubt when it is started again.
    let question = world.outbox.iter().find(|sent| sent.kind == MessageKind::ReadIndex).unwrap().clone();
    assert_eq!((question.to, question.reject, question.reject_hint), (2, true, MEMBERS));
    assert_eq!(gets_vote(&mut world, 9), (false, vec![]));
    let storage = world.storage.crash();
    drop(world);
    let mut world = World::open(1, MEMBERS, storage, Machine::new(), options()).unwrap();
    world.settle().unwrap();
    assert!(world.driver.is_cut());
    assert_eq!(gets_vote(&mut world, 10), (false, vec![]));
    // Once a leader has confirmed a read and sent what lies before it, it votes as others do.
    (0..2 * options().election_ticks).for_each(|_| world.driver.tick());
    hear(&mut world, heartbeat(11, 0));
    let asked = world.outbox.iter().rfind(|sent| sent.kind == MessageKind::ReadIndex).unwrap().clone();
    assert_ne!(asked.entries, question.entries);
    hear(&mut world, Message { index: 5, entries: asked.entries, ..vote(MessageKind::ReadIndexResponse, 2, 11) });
    let entry = |index| Entry { index, term: 11, kind: EntryKind::Normal, data: Bytes::from_static(b"entry") };
    let entries = (MEMBERS + 1..=5).map(entry).collect();
    let append = Message { log_term: 1, index: MEMBERS, commit: 5, entries, ..vote(MessageKind::Append, 2, 11) };
    hear(&mut world, append);
    assert!(!world.driver.is_cut());
}
