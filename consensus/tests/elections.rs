//! Elections and the ends of leadership, part of a tick by part of a tick.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bytes::Bytes;
use consensus::{Entry, EntryKind, Message, MessageKind, Options, PARTS_PER_TICK};
use engine::disk::sim::{Order, SimStorage};

use world::{Machine, World, options, seeded, three::Three};

fn parts_of_election() -> u32 {
    u32::try_from(options().election_ticks).unwrap() * PARTS_PER_TICK
}

/// Parts after which member `at` (from 0) asks for votes, when it hears nothing.
fn campaigns_after(three: &mut Three, at: usize) -> u32 {
    for parts in 1..=2 * parts_of_election() {
        three.worlds[at].driver.pass(1);
        three.settle();
        let is_asked = three.wire.iter().any(|message| message.kind == MessageKind::PreVote);
        three.wire.clear();
        if is_asked {
            return parts;
        }
    }
    panic!("member {} never campaigns", at + 1);
}

#[test]
fn each_campaign_waits_for_another_time_of_one_to_one_and_a_quarter_election_timeouts() {
    let mut three = Three::led();
    let allowed = parts_of_election()..=parts_of_election() + parts_of_election() / 4;
    let first = campaigns_after(&mut three, 1);
    let other = campaigns_after(&mut three, 2);
    assert!(allowed.contains(&first) && allowed.contains(&other), "{first}, {other}");
    assert_ne!(first, other);
    // What is due is told to the part, so that a loop may sleep until then.
    let three = Three::led();
    let due = three.worlds[1].driver.due_parts();
    assert!((first - 1..=first + 1).contains(&due), "{due}, and it campaigned after {first}");
}

#[test]
fn the_first_election_is_hastened_where_nobody_leads() {
    let open = |id| {
        let options = Options { seed: id, ..options() };
        World::open(id, 3, SimStorage::new(id), Machine::new(), options).unwrap()
    };
    let mut three = Three { worlds: (1..=3).map(open).collect(), wire: Vec::new() };
    three.settle();
    three.worlds[1].driver.hasten_first_election();
    let hastened = campaigns_after(&mut three, 1);
    let least = 2 * PARTS_PER_TICK;
    assert!((least..=least + parts_of_election() / 4).contains(&hastened), "{hastened}");
    let mut three = Three::led();
    three.worlds[1].driver.hasten_first_election();
    assert!(campaigns_after(&mut three, 1) >= parts_of_election(), "its leader has time");
}

#[test]
fn a_pre_vote_that_is_not_answered_is_asked_for_again_after_a_tick() {
    let mut three = Three::led();
    campaigns_after(&mut three, 1);
    let mut asked = Vec::new();
    for part in 1..=3 * PARTS_PER_TICK {
        three.worlds[1].driver.pass(1);
        three.settle();
        asked.extend(three.wire.iter().filter(|message| message.kind == MessageKind::PreVote).map(|_| part));
        three.wire.clear();
    }
    let expected = [1, 2, 3].map(|tick| tick * PARTS_PER_TICK);
    assert_eq!(asked, [expected[0], expected[0], expected[1], expected[1], expected[2], expected[2]]);
    assert_eq!(three.worlds[1].driver.status().term, three.worlds[0].driver.status().term, "and no term is used up");
}

#[test]
fn a_leader_whose_disk_hangs_hands_over_and_keeps_its_promises_to_itself() {
    let mut three = Three::led();
    let term = three.worlds[0].driver.status().term;
    three.worlds[0].storage.set_order(Order::Manual);
    three.worlds[0].propose("while it hangs").unwrap();
    three.deliver_all();
    let tick = |three: &mut Three| {
        three.worlds.iter_mut().for_each(|world| world.driver.tick());
        three.deliver_all();
    };
    for _ in 0..options().election_ticks {
        assert!(three.worlds[0].driver.status().is_leader);
        tick(&mut three);
    }
    tick(&mut three);
    tick(&mut three);
    let leader = three.worlds.iter().position(|world| world.driver.status().is_leader).expect("somebody leads");
    assert!(leader != 0 && three.worlds[leader].driver.status().term > term);
    // The cluster goes on without the member's disk.
    three.worlds[leader].propose("on the new leader").unwrap();
    (0..3).for_each(|_| tick(&mut three));
    let has_applied = |three: &Three, at: usize, text: &str| {
        three.worlds[at].machine.requests().iter().any(|request| &request[..] == text.as_bytes())
    };
    for at in [1, 2] {
        assert!(has_applied(&three, at, "while it hangs") && has_applied(&three, at, "on the new leader"));
    }
    assert!(!has_applied(&three, 0, "on the new leader"), "nothing of it is durable there");
    // It votes for nobody and acknowledges nothing before its disk has ended what it was asked to do.
    three.settle();
    three.worlds[0].driver.tick();
    three.settle();
    assert!(three.wire.iter().all(|message| message.from != 1 || message.kind == MessageKind::HeartbeatResponse));
    three.worlds[0].storage.set_order(Order::Submission);
    (0..5).for_each(|_| tick(&mut three));
    assert!(has_applied(&three, 0, "on the new leader"));
    assert!(three.worlds[leader].driver.status().is_leader, "and it takes leadership from nobody");
}

#[test]
fn a_leader_whose_disk_hangs_steps_down_if_nobody_takes_over() {
    let mut three = Three::led();
    three.worlds[0].storage.set_order(Order::Manual);
    three.worlds[0].propose("while it hangs").unwrap();
    let tick = |three: &mut Three| {
        three.worlds.iter_mut().for_each(|world| world.driver.tick());
        three.settle();
        while !three.wire.is_empty() {
            three.deliver(|message| message.kind != MessageKind::TimeoutNow);
        }
    };
    for _ in 0..3 * options().election_ticks {
        tick(&mut three);
    }
    assert!(!three.worlds[0].driver.status().is_leader);
    for _ in 0..2 * options().election_ticks {
        tick(&mut three);
    }
    let leader = three.worlds.iter().position(|world| world.driver.status().is_leader);
    assert!(leader.is_some_and(|leader| leader != 0), "{leader:?} leads");
}

#[test]
fn a_disk_that_is_slow_and_goes_on_costs_no_leadership() {
    let mut three = Three::led();
    three.worlds[0].storage.set_order(Order::Manual);
    for number in 0..20 {
        three.worlds[0].propose(&format!("{number}")).unwrap();
        three.deliver_all();
        for _ in 0..options().election_ticks - 1 {
            three.worlds.iter_mut().for_each(|world| world.driver.tick());
            three.deliver_all();
        }
        for operation in three.worlds[0].storage.in_flight() {
            three.worlds[0].storage.complete(operation.number);
        }
        three.deliver_all();
        assert!(three.worlds[0].driver.status().is_leader, "after {number}");
    }
}

#[test]
fn a_leader_whose_process_is_gone_is_replaced_within_a_fraction_of_the_timeout() {
    let mut three = Three::led();
    let term = three.worlds[0].driver.status().term;
    let to_living = |message: &consensus::Message| message.to != 1;
    three.worlds.iter_mut().skip(1).for_each(|world| world.driver.gone(1));
    let mut parts = 0;
    while !three.worlds.iter().skip(1).any(|world| world.driver.status().is_leader) {
        parts += 1;
        assert!(parts <= parts_of_election() / 5, "somebody leads after a fifth of the timeout");
        three.worlds.iter_mut().skip(1).for_each(|world| world.driver.pass(1));
        three.settle();
        while !three.wire.is_empty() {
            three.deliver(to_living);
        }
    }
    assert!(
        [1, 2].iter().all(|at: &usize| three.worlds[*at].driver.status().term == term + 1),
        "one election was enough"
    );
}

#[test]
fn a_leader_that_only_one_member_takes_for_gone_leads_on() {
    let mut three = Three::led();
    let term = three.worlds[0].driver.status().term;
    three.worlds[1].driver.gone(1);
    three.worlds[2].driver.gone(2);
    for _ in 0..parts_of_election() {
        three.worlds.iter_mut().for_each(|world| world.driver.pass(1));
        three.deliver_all();
    }
    assert!(three.worlds[0].driver.status().is_leader && three.worlds[0].driver.status().term == term);
    assert_eq!(three.worlds[1].driver.status().leader_id, 1, "its next heartbeat is believed");
}

/// What the leader has sent to member 3: the entry before, and how many entries.
fn appends_to_3(leader: &mut World) -> Vec<(u64, usize)> {
    leader.settle().unwrap();
    let sent = leader.outbox.drain(..).filter(|message| message.kind == MessageKind::Append && message.to == 3);
    sent.map(|message| (message.index, message.entries.len())).collect()
}

/// A message of member `from` to member 1, in `term`.
fn told(kind: MessageKind, from: u64, term: u64) -> Message {
    Message { kind, to: 1, from, term, ..Message::default() }
}

#[test]
fn the_first_append_of_a_new_leader_waits_until_that_is_noted() {
    let mut member = World::open(1, 3, seeded(1), Machine::new(), options()).unwrap();
    member.settle().unwrap();
    let entry = Entry { index: 4, term: 2, kind: EntryKind::Normal, data: Bytes::new() };
    let append = Message { index: 3, log_term: 1, entries: vec![entry], ..told(MessageKind::Append, 2, 2) };
    member.driver.receive(append).unwrap();
    member.settle().unwrap();
    let acknowledged = |message: &Message| message.kind == MessageKind::AppendResponse && !message.reject;
    let acknowledged = member.outbox.iter().find(|message| acknowledged(message)).map(|message| message.index);
    assert_eq!(acknowledged, Some(4));
}

#[test]
fn a_new_leader_asks_again_for_the_acknowledgement_that_it_could_not_take() {
    let mut leader = World::open(1, 3, seeded(1), Machine::new(), options()).unwrap();
    leader.settle().unwrap();
    leader.driver.pass(2 * parts_of_election());
    leader.settle().unwrap();
    let term = leader.driver.status().term + 1;
    for kind in [MessageKind::PreVoteResponse, MessageKind::VoteResponse] {
        leader.driver.receive(told(kind, 2, term)).unwrap();
        leader.settle().unwrap();
    }
    assert!(leader.driver.status().is_leader);
    assert_eq!(appends_to_3(&mut leader), [(3, 1)]);
    let answer = Message { index: 4, ..told(MessageKind::AppendResponse, 3, term) };
    leader.driver.receive(answer.clone()).unwrap();
    assert_eq!(appends_to_3(&mut leader), [(3, 1)], "3 was not noted yet");
    leader.driver.receive(answer).unwrap();
    leader.propose("x").unwrap();
    assert!(appends_to_3(&mut leader).contains(&(4, 1)));
}
