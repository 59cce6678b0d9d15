//! Runs on: tests.
//!
//! Raft and apply must make the same configuration of a configuration change. Raft's time follows the clock; reads and
//! what others forward wait for a leader, and reads are told to apply once.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use consensus::{
    ConfChange, ConfChangeKind, ConfState, Driver, Entry, EntryKind, Identity, Member, Message, MessageKind, Options,
    Start,
};
use engine::{
    Mvcc,
    disk::sim::{SimDisk, SimStorage},
    wal,
};
use prost::Message as _;
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{machine::Raft, message::ToRaft};
use crate::{
    apply::{
        members,
        message::{Answer, Report},
        outcome::Outcome,
        own::Own,
        proposal::Proposal,
    },
    error::Error,
    insight::trace::Stamps,
    metrics::counters::CommitCounters,
    quota::Purpose,
    shared::Shared,
    slots::{ReplyTo, Slots},
};

/// Raft of member 1 with these voters and learners.
fn driver(state: &ConfState) -> Driver {
    let mut disk = SimStorage::new(1).disk();
    let wal = wal::Options { segment_bytes: 1 << 20, ..wal::Options::default() };
    let options = Options::from_knobs(&tuning::Consensus::default(), true, 1, wal);
    let bootstrap = vec![ConfChange::bootstrap(&Member { id: 1, ..Member::default() })];
    let start = Start { bootstrap, conf_state: state.clone(), ..Start::default() };
    Driver::open(&mut disk, Path::new("wal"), Identity { member_id: 1, cluster_id: 1 }, options, start).unwrap()
}

#[test]
fn apply_computes_the_configuration_that_raft_reaches() {
    const KINDS: [ConfChangeKind; 4] = [
        ConfChangeKind::AddNode,
        ConfChangeKind::RemoveNode,
        ConfChangeKind::UpdateNode,
        ConfChangeKind::AddLearnerNode,
    ];
    let mut refused = 0;
    for seed in 0..50 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut state = ConfState::default();
        let mut driver = driver(&state);
        for step in 0..40 {
            let kind = if state.voters.is_empty() { ConfChangeKind::AddNode } else { KINDS[random.random_range(0..4)] };
            let member_id = random.random_range(u64::from(state.voters.is_empty())..5);
            let change = ConfChange { id: 0, kind, member_id, context: Bytes::new() };
            let computed = members::changed(&state, &change);
            let reached = driver.apply_conf_change(&change);
            assert_eq!(computed.as_ref(), reached.as_ref().ok(), "seed {seed}, step {step}: {change:?} of {state:?}");
            refused += u32::from(computed.is_none());
            state = computed.unwrap_or(state);
        }
    }
    assert!(refused > 10, "no voter would be left");
}

/// Raft of member 1 of three, on its disk, at some time.
struct Alone {
    raft: Raft,
    shared: Arc<Shared>,
    disk: SimDisk,
    now: Duration,
}

impl Alone {
    fn new() -> Self {
        let mut disk = SimStorage::new(1).disk();
        let wal = wal::Options { segment_bytes: 1 << 20, ..wal::Options::default() };
        let options = Options::from_knobs(&tuning::Consensus::default(), true, 1, wal);
        let conf_state = ConfState { voters: vec![1, 2, 3], learners: Vec::new() };
        let start = Start { conf_state, ..Start::default() };
        let identity = Identity { member_id: 1, cluster_id: 1 };
        let driver = Driver::open(&mut disk, Path::new("wal"), identity, options, start).unwrap();
        let shared = Arc::new(Shared::for_tests(Mvcc::in_memory().published(), 1));
        let (log_wait_max, heartbeat) = (Duration::from_secs(2), Duration::from_millis(100));
        let raft =
            Raft::new(Arc::clone(&shared), Arc::<CommitCounters>::default(), driver, 1 << 20, log_wait_max, heartbeat);
        let mut alone = Self { raft, shared, disk, now: Duration::from_secs(5) };
        alone.turn();
        alone
    }

    /// Makes turns until the log has ended what it was asked to do. Returns what is sent.
    fn turn(&mut self) -> Vec<Message> {
        self.raft.pass(self.now);
        (0..4).for_each(|_| self.raft.turn(&mut self.disk, self.now).unwrap());
        self.raft.take_messages()
    }

    /// Lets time pass in turns that are `step` apart, until pre-votes are asked for. Returns how long that took.
    fn campaigns_after(&mut self, step: Duration) -> Duration {
        let began = self.now;
        while !self.turn().iter().any(|message| message.kind == MessageKind::PreVote) {
            self.now += step;
            assert!(self.now - began < Duration::from_secs(10), "it never campaigns");
        }
        self.now - began
    }

    /// Makes it lead, with the vote of member 2. Returns what it sends at first.
    fn lead(&mut self) -> Vec<Message> {
        self.campaigns_after(Duration::from_millis(10));
        self.raft.receive_peer(told(MessageKind::PreVoteResponse, 2, 1), self.now).unwrap();
        self.turn();
        self.raft.receive_peer(told(MessageKind::VoteResponse, 2, 1), self.now).unwrap();
        self.turn()
    }

    /// Others take the entries in what was `sent` to them.
    fn take_entries(&mut self, sent: &[Message]) {
        for Message { to, index, entries, .. } in sent.iter().filter(|message| message.kind == MessageKind::Append) {
            let index = index + entries.len() as u64;
            self.raft.receive_peer(Message { index, ..told(MessageKind::AppendResponse, *to, 1) }, self.now).unwrap();
        }
    }

    /// Connects it with these members.
    fn connect(&self, ids: &[u64]) {
        self.shared.links.store(Arc::new(ids.iter().map(|id| (*id, Duration::ZERO)).collect()));
    }

    /// Makes it lead members 2 and 3, which have all of its log, and end then.
    fn leave(slots: &Slots<()>) -> Self {
        let mut alone = Self::new();
        let mut sent = alone.lead();
        while !sent.is_empty() {
            alone.take_entries(&sent);
            sent = alone.turn();
        }
        alone.connect(&[2, 3]);
        let slot = slots.open(Duration::ZERO).unwrap().id();
        alone.raft.receive(ToRaft::LeaveLead { reply: ReplyTo { core: 0, slot } }, alone.now);
        alone
    }

    /// Whom it asks to lead in this turn, and what it is answered that has asked for it.
    fn asks_to_lead(&mut self) -> (Vec<u64>, Option<Result<(), Error>>) {
        let asked = self.turn().into_iter().filter(|message| message.kind == MessageKind::TimeoutNow);
        let asked = asked.map(|message| message.to).collect();
        let mut answers = self.raft.take_answers().into_iter().flatten().map(|(_, answer)| match answer {
            Answer::Transferred(result) => result,
            other => panic!("{other:?}"),
        });
        (asked, answers.next())
    }
}

#[test]
fn raft_campaigns_by_the_clock_whether_turns_are_frequent_or_rare() {
    let often = Alone::new().campaigns_after(Duration::from_micros(100));
    let seldom = Alone::new().campaigns_after(Duration::from_millis(70));
    assert!((Duration::from_millis(1000)..Duration::from_millis(1252)).contains(&often), "{often:?}");
    assert!((often..often + Duration::from_millis(72)).contains(&seldom), "{seldom:?}, and {often:?}");
    // A loop that sleeps until it is due misses nothing.
    let mut alone = Alone::new();
    let began = alone.now;
    let sent = loop {
        alone.now = alone.raft.due().min(alone.now + Duration::from_millis(100));
        let sent = alone.turn();
        if !sent.is_empty() {
            break sent;
        }
    };
    assert!(sent.iter().all(|message| message.kind == MessageKind::PreVote));
    let slept = alone.now - began;
    assert!(slept.abs_diff(often) < Duration::from_millis(4), "{slept:?}, and {often:?}");
}

#[test]
fn who_stood_still_makes_up_for_little_and_campaigns_with_no_burst() {
    let expected = Alone::new().campaigns_after(Duration::from_millis(1));
    let mut alone = Alone::new();
    alone.now += Duration::from_secs(60);
    assert!(alone.turn().is_empty(), "it has heard nothing for a minute, and asked nothing");
    let after = alone.campaigns_after(Duration::from_millis(1));
    let made_up = expected - after;
    assert!(made_up.abs_diff(Duration::from_millis(200)) < Duration::from_millis(5), "{made_up:?}");
}

#[test]
fn reads_wait_for_a_leader_and_go_to_apply_once_with_their_index() {
    let mut alone = Alone::new();
    for _ in 0..3 {
        alone.raft.receive(ToRaft::Read(ReplyTo::NOBODY), alone.now);
    }
    assert!(alone.turn().is_empty(), "there is nobody to ask");
    let heartbeat = Message { kind: MessageKind::Heartbeat, from: 2, to: 1, term: 7, ..Message::default() };
    alone.raft.receive_peer(heartbeat, alone.now).unwrap();
    let sent = alone.turn();
    let asked: Vec<_> = sent.iter().filter(|message| message.kind == MessageKind::ReadIndex).collect();
    assert_eq!((asked.len(), asked[0].to), (1, 2), "one round for all of them: {sent:?}");
    let handed = alone.raft.take_handed(alone.now);
    assert!(handed.is_none_or(|handed| handed.reads.is_empty() && handed.caught_up_at.is_none()));
    let answer = Message {
        kind: MessageKind::ReadIndexResponse,
        from: 2,
        to: 1,
        term: 7,
        index: 40,
        entries: asked[0].entries.clone(),
        ..Message::default()
    };
    for is_first in [true, false] {
        alone.raft.receive_peer(answer.clone(), alone.now).unwrap();
        alone.turn();
        let handed = alone.raft.take_handed(alone.now);
        let reads = handed.as_ref().map(|handed| {
            let reads: Vec<_> = handed.reads.iter().map(|reads| (reads.index, reads.replies.len())).collect();
            (reads, handed.caught_up_at)
        });
        assert_eq!(reads, is_first.then(|| (vec![(40, 3)], Some(40))));
    }
    // What comes later needs a round of its own.
    alone.raft.receive(ToRaft::Read(ReplyTo::NOBODY), alone.now);
    let sent = alone.turn();
    let again: Vec<_> = sent.iter().filter(|message| message.kind == MessageKind::ReadIndex).collect();
    assert!(again.len() == 1 && again[0].entries != answer.entries);
}

fn put(id: u64) -> Bytes {
    let put = pb::PutRequest { key: "a".into(), ..Default::default() }.encode_to_vec();
    internal::encode(&internal::RequestHeader { id, ..Default::default() }, Kind::Put, &put).entry
}

fn propose(id: u64) -> ToRaft {
    ToRaft::Propose(Box::new(Proposal {
        reply: ReplyTo::NOBODY,
        id,
        purpose: Purpose::Other,
        entry: put(id),
        request: None,
        stamps: Stamps::default(),
        share: None,
        result: Ok(Outcome::Internal),
    }))
}

/// To whom proposals were forwarded, and how many.
fn forwarded(sent: Vec<Message>) -> Vec<(u64, usize)> {
    let proposals = sent.into_iter().filter(|message| message.kind == MessageKind::Propose);
    proposals.map(|message| (message.to, message.entries.len())).collect()
}

fn told(kind: MessageKind, from: u64, term: u64) -> Message {
    Message { kind, from, to: 1, term, ..Message::default() }
}

#[test]
fn proposals_gather_until_others_are_committed_or_for_a_while() {
    let mut alone = Alone::new();
    alone.raft.receive_peer(told(MessageKind::Heartbeat, 2, 7), alone.now).unwrap();
    alone.turn();
    alone.raft.receive(propose(1), alone.now);
    assert_eq!(forwarded(alone.turn()), [(2, 1)], "it is alone");
    alone.raft.receive(propose(2), alone.now);
    alone.raft.receive(propose(3), alone.now);
    assert_eq!(forwarded(alone.turn()), []);
    assert_eq!(alone.raft.due(), alone.now + Duration::from_millis(1));
    assert!(!alone.raft.has_more());
    alone.now = alone.raft.due();
    assert_eq!(forwarded(alone.turn()), [(2, 2)], "long enough");
    alone.raft.receive(propose(4), alone.now);
    assert_eq!(forwarded(alone.turn()), []);
    let entry = |index| Entry { index, term: 7, kind: EntryKind::Normal, data: put(index) };
    let entries = (1..=3).map(entry).collect();
    alone.raft.receive_peer(Message { entries, commit: 3, ..told(MessageKind::Append, 2, 7) }, alone.now).unwrap();
    assert_eq!(forwarded(alone.turn()), []);
    let handed = alone.raft.take_handed(alone.now).unwrap();
    assert!(handed.entries.len() == 3 && handed.entries.iter().all(|entry| entry.proposal.is_some()));
    assert!(alone.raft.has_more(), "the others are committed");
    assert_eq!(forwarded(alone.turn()), [(2, 1)]);
    assert!(!alone.raft.has_more());
}

#[test]
fn what_a_leader_decided_is_not_proposed_through_another_one() {
    for is_over in [false, true] {
        let mut alone = Alone::new();
        alone.lead();
        alone.raft.receive(propose(1), alone.now);
        alone.turn();
        let proposed = alone.raft.unapplied().count();
        let own = Own { entry: put(2), purpose: Purpose::Other, of_leader_in: Some(1) };
        alone.raft.report(Report { own: vec![own], ..Report::default() }, alone.now).unwrap();
        alone.turn();
        assert_eq!(alone.raft.unapplied().count(), proposed, "it gathers");
        if is_over {
            alone.raft.receive_peer(told(MessageKind::Heartbeat, 3, 2), alone.now).unwrap();
        }
        alone.now += Duration::from_millis(1);
        assert_eq!(forwarded(alone.turn()), []);
        assert_eq!(alone.raft.unapplied().count(), proposed + usize::from(!is_over));
    }
}

/// A proposal that member 3 forwards.
fn forward(id: u64) -> Message {
    let entry = Entry { index: 0, term: 0, kind: EntryKind::Normal, data: put(id) };
    Message { entries: vec![entry], ..told(MessageKind::Propose, 3, 0) }
}

#[test]
fn what_others_forward_waits_for_a_leader_and_goes_on_to_it_for_as_long_as_its_client_waits() {
    for (waits, goes_on) in [(Duration::from_secs(1), true), (Duration::from_secs(8), false)] {
        let mut alone = Alone::new();
        alone.raft.receive_peer(forward(1), alone.now).unwrap();
        alone.raft.receive_peer(forward(2), alone.now).unwrap();
        assert_eq!(forwarded(alone.turn()), [], "there is nobody to ask");
        alone.now += waits;
        alone.turn();
        alone.raft.receive_peer(told(MessageKind::Heartbeat, 2, 7), alone.now).unwrap();
        assert_eq!(forwarded(alone.turn()), if goes_on { vec![(2, 2)] } else { vec![] });
        alone.raft.receive_peer(forward(3), alone.now).unwrap();
        assert_eq!(forwarded(alone.turn()), [(2, 1)], "there is a leader");
    }
}

#[test]
fn what_others_forward_finds_room_where_clients_of_this_member_do_not() {
    let mut alone = Alone::new();
    let entries_max = tuning::Consensus::default().backlog_entries_max;
    (1..=entries_max).for_each(|id| alone.raft.receive(propose(id), alone.now));
    assert!(alone.raft.take_answers().into_iter().flatten().next().is_none());
    let slots: Slots<()> = Slots::new(1);
    let slot = slots.open(Duration::ZERO).unwrap().id();
    let ToRaft::Propose(one_more) = propose(entries_max + 1) else { unreachable!("it is one") };
    let one_more = Proposal { reply: ReplyTo { core: 0, slot }, ..*one_more };
    alone.raft.receive(ToRaft::Propose(Box::new(one_more)), alone.now);
    assert_eq!(alone.raft.take_answers().into_iter().flatten().count(), 1, "it is refused");
    // As much as two others may have under way, and no more.
    (0..2 * entries_max + 5).for_each(|id| alone.raft.receive_peer(forward(10_000 + id), alone.now).unwrap());
    alone.raft.receive_peer(told(MessageKind::Heartbeat, 2, 7), alone.now).unwrap();
    let sent: usize = forwarded(alone.turn()).into_iter().map(|(_, count)| count).sum();
    assert_eq!(sent as u64, 3 * entries_max);
}

#[test]
fn who_wants_a_leader_is_not_refused_while_the_next_one_is_elected() {
    let mut alone = Alone::new();
    let shared = Arc::clone(&alone.shared);
    assert!(shared.is_leaderless(alone.now), "there never was one");
    alone.raft.receive_peer(told(MessageKind::Heartbeat, 2, 7), alone.now).unwrap();
    alone.turn();
    alone.now += Duration::from_millis(500);
    alone.turn();
    assert!(shared.has_leader());
    alone.raft.gone(2);
    alone.turn();
    let (lost_at, election_timeout) = (alone.now, shared.limits.election_timeout);
    assert!(!shared.has_leader() && !shared.is_leaderless(lost_at));
    // It campaigns, and nobody answers.
    while alone.now + Duration::from_millis(1) < lost_at + election_timeout {
        alone.now += Duration::from_millis(1);
        alone.turn();
        assert!(!shared.is_leaderless(alone.now));
    }
    assert!(shared.is_leaderless(lost_at + election_timeout));
    alone.raft.receive_peer(told(MessageKind::Heartbeat, 3, 8), alone.now).unwrap();
    alone.turn();
    assert!(!shared.is_leaderless(lost_at + election_timeout));
}

#[test]
fn what_finds_no_room_on_the_way_to_the_leader_waits_for_it_in_its_order_until_its_time_is_over() {
    let mut alone = Alone::new();
    alone.raft.receive_peer(told(MessageKind::Heartbeat, 2, 7), alone.now).unwrap();
    alone.turn();
    let len = put(1).len();
    for (first, room, goes) in [(0, 0, 0), (3, 1, 1), (6, 2 * len, 2), (9, len + 1, 2), (12, usize::MAX, 3)] {
        (first..first + 3).for_each(|id| alone.raft.receive(propose(id), alone.now));
        alone.raft.set_forward_room(room);
        // Longer than they gather.
        alone.now += Duration::from_millis(2);
        let ids = |sent: Vec<Message>| -> Vec<_> {
            let sent = sent.into_iter().filter(|message| message.kind == MessageKind::Propose);
            sent.flat_map(|message| message.entries).map(|entry| internal::request_id(&entry.data)).collect()
        };
        assert_eq!(ids(alone.turn()), (first..first + goes).map(Some).collect::<Vec<_>>(), "room for {room}");
        alone.raft.set_forward_room(usize::MAX);
        alone.now += Duration::from_millis(2);
        assert_eq!(ids(alone.turn()), (first + goes..first + 3).map(Some).collect::<Vec<_>>(), "there is room");
    }
    alone.raft.receive_peer(forward(99), alone.now).unwrap();
    for (passes, room) in [(Duration::from_secs(6), 0), (Duration::from_secs(3), 0), (Duration::ZERO, usize::MAX)] {
        alone.now += passes;
        alone.raft.receive_peer(told(MessageKind::Heartbeat, 2, 7), alone.now).unwrap();
        alone.raft.set_forward_room(room);
        assert_eq!(forwarded(alone.turn()), [], "nobody waits for it any more");
    }
}

#[test]
fn a_leader_that_ends_tries_the_next_voter_after_an_election_timeout() {
    let slots = Slots::new(1);
    let mut alone = Alone::leave(&slots);
    assert_eq!(alone.asks_to_lead(), (vec![2], None));
    let (began, election_timeout) = (alone.now, alone.shared.limits.election_timeout);
    let asked = loop {
        alone.now += Duration::from_millis(10);
        assert!(alone.now - began < 2 * election_timeout, "the next one is never asked");
        // The silent one is not noticed, because the other one answers.
        alone.raft.receive_peer(told(MessageKind::HeartbeatResponse, 3, 1), alone.now).unwrap();
        match alone.asks_to_lead() {
            (asked, None) if asked.is_empty() => {}
            (asked, None) => break asked,
            (_, Some(result)) => panic!("{result:?}"),
        }
    };
    assert_eq!(asked, [3]);
    assert!((alone.now - began).abs_diff(election_timeout) < Duration::from_millis(200), "{:?}", alone.now - began);
    alone.raft.receive_peer(told(MessageKind::Heartbeat, 3, 2), alone.now).unwrap();
    assert_eq!(alone.asks_to_lead(), (vec![], Some(Ok(()))));
}

#[test]
fn a_leader_that_ends_waits_for_nobody_who_is_gone() {
    let slots = Slots::new(1);
    let mut alone = Alone::leave(&slots);
    assert_eq!(alone.asks_to_lead(), (vec![2], None));
    alone.raft.receive(propose(1), alone.now);
    alone.turn();
    let proposed = alone.raft.unapplied().count();
    alone.connect(&[3]);
    assert_eq!(alone.asks_to_lead(), (vec![3], None));
    // Who comes back is not asked again.
    alone.connect(&[2]);
    assert_eq!(alone.asks_to_lead(), (vec![], Some(Err(Error::Unhealthy))));
    alone.turn();
    assert_eq!(alone.raft.unapplied().count(), proposed + 1, "it leads on, and proposals are taken again");
    assert_eq!(alone.asks_to_lead(), (vec![], None), "it is told once");
}

#[test]
fn a_leader_that_ends_and_loses_its_majority_does_not_wait_for_long() {
    let slots = Slots::new(1);
    let mut alone = Alone::leave(&slots);
    let began = alone.now;
    let result = loop {
        alone.now += Duration::from_millis(10);
        if let (_, Some(result)) = alone.asks_to_lead() {
            break result;
        }
        assert!(alone.now - began < Duration::from_secs(10));
    };
    assert_eq!(result, Err(Error::LeaderTransferTimeout));
    assert!(alone.now - began < alone.shared.limits.request_timeout / 2, "{:?}", alone.now - began);
}
