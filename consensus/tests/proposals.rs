//! Proposals of one turn: one step of raft, each entry with an answer of its own; and elections that a seed repeats.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::io::ErrorKind;

use bytes::Bytes;
use consensus::{Entry, EntryKind, Error, Message, MessageKind, Options, Refused};
use engine::{
    disk::{
        Disk,
        sim::{Full, Order, Random},
    },
    wal,
};

use world::{Machine, World, options, seeded};

fn opened(id: u64, members: u64, options: Options) -> World {
    let mut world = World::open(id, members, seeded(id), Machine::new(), options).unwrap();
    world.settle().unwrap();
    world
}

/// Position and text of each refusal.
fn texts(refused: Vec<Refused>) -> Vec<(usize, String)> {
    refused.into_iter().map(|refused| (refused.position, refused.error.to_string())).collect()
}

fn one_by_one(world: &mut World, requests: &[Bytes]) -> Vec<(usize, String)> {
    let answers = requests.iter().cloned().map(|request| world.driver.propose(request)).enumerate();
    answers.filter_map(|(position, answer)| Some((position, answer.err()?.to_string()))).collect()
}

fn together(world: &mut World, requests: &[Bytes]) -> Vec<(usize, String)> {
    texts(world.driver.propose_all(requests.iter().cloned()))
}

#[test]
fn requests_proposed_together_are_answered_as_if_proposed_one_by_one() {
    let bounded = Options { proposals_bytes_max: 10_000, message_bytes_max: 1000, ..options() };
    let (mut refused, mut accepted) = (0, 0);
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let mut alone = opened(1, 1, bounded.clone());
        let mut batched = opened(1, 1, bounded.clone());
        if random.chance(1, 3) {
            for world in [&mut alone, &mut batched] {
                world.storage.set_full(Some((0, Full::Creations)));
            }
        }
        for turn in 0..10 {
            let request = |random: &mut Random| {
                let too_large = wal::ENTRY_BYTES_MAX + 1;
                let len = [0, 10, 100, 3000, 12_000, too_large][usize::try_from(random.below(6)).unwrap()];
                // What is larger than the log takes costs no memory: nobody touches its zeros.
                Bytes::from(vec![0; len])
            };
            let requests: Vec<Bytes> = (0..random.below(12)).map(|_| request(&mut random)).collect();
            let answers = one_by_one(&mut alone, &requests);
            assert_eq!(together(&mut batched, &requests), answers, "seed {seed}, turn {turn}");
            refused += answers.len();
            accepted += requests.len() - answers.len();
            if random.chance(1, 2) {
                alone.settle().unwrap();
                batched.settle().unwrap();
            }
        }
        alone.settle().unwrap();
        batched.settle().unwrap();
        assert_eq!(alone.machine.requests(), batched.machine.requests(), "seed {seed}");
    }
    assert!(refused > 500 && accepted > 500, "{refused} refused, {accepted} accepted");
}

#[test]
fn requests_proposed_together_share_what_room_a_full_disk_has() {
    let mut world = opened(1, 1, options());
    world.storage.set_full(Some((0, Full::Creations)));
    let requests = |count| (0..count).map(|_| Bytes::from(vec![b'x'; 2000]));
    let mut accepted = 0;
    while world.driver.log_room_bytes().is_none() {
        assert_eq!(texts(world.driver.propose_all(requests(5))), []);
        accepted += 5;
        world.settle().unwrap();
    }
    let refused = world.driver.propose_all(requests(100));
    accepted += 100 - refused.len();
    assert!((1..100).contains(&refused.len()), "{} refused", refused.len());
    assert!(refused.iter().all(|refused| matches!(refused.error, Error::NoSpace { .. })));
    world.settle().unwrap();
    assert_eq!((world.machine.requests().len(), world.driver.queued_bytes()), (accepted, 0));
}

#[test]
fn requests_proposed_together_go_to_each_follower_in_one_message() {
    let mut members = [1, 2, 3].map(|id| opened(id, 3, options()));
    while !members[0].driver.status().is_leader {
        members[0].driver.tick();
        exchange(&mut members);
    }
    let requests = (0..50).map(|number| Bytes::from(format!("{number:02}")));
    assert_eq!(texts(members[0].driver.propose_all(requests)), []);
    members[0].turn().unwrap();
    for follower in [2, 3] {
        let appends = members[0].outbox.iter().filter(|message| message.to == follower);
        let entries: Vec<usize> = appends.map(|message| message.entries.len()).collect();
        assert_eq!(entries, [50], "member {follower}");
    }
    exchange(&mut members);
    // A follower forwards all of them in one message, too.
    assert_eq!(texts(members[1].driver.propose_all(["a", "b"].map(Bytes::from))), []);
    members[1].turn().unwrap();
    let sent: Vec<_> = members[1].outbox.iter().map(|message| (message.kind, message.entries.len())).collect();
    assert_eq!(sent, [(MessageKind::Propose, 2)]);
    exchange(&mut members);
    members[0].driver.tick();
    exchange(&mut members);
    for member in &members {
        assert_eq!(member.machine.requests().len(), 52);
    }
}

/// Until no member has anything to say.
fn exchange(members: &mut [World; 3]) {
    loop {
        members.iter_mut().for_each(|member| member.settle().unwrap());
        let messages: Vec<_> = members.iter_mut().flat_map(|member| member.outbox.split_off(0)).collect();
        if messages.is_empty() {
            return;
        }
        for message in messages {
            let to = usize::try_from(message.to - 1).unwrap();
            members[to].driver.receive(message).unwrap();
        }
    }
}

#[test]
fn without_a_leader_or_after_a_failure_every_request_is_refused() {
    let requests = || ["a", "b", "c"].map(Bytes::from);
    let positions = |refused: &[Refused]| refused.iter().map(|refused| refused.position).collect::<Vec<_>>();
    let mut world = opened(1, 3, options());
    let refused = world.driver.propose_all(requests());
    assert_eq!(positions(&refused), [0, 1, 2]);
    assert!(refused.iter().all(|refused| matches!(refused.error, Error::NoLeader)));

    let mut world = opened(1, 1, options());
    world.storage.set_order(Order::Manual);
    world.propose("lost").unwrap();
    world.turn().unwrap();
    let write = world.storage.in_flight()[0].clone();
    world.storage.fail(write.number, ErrorKind::Other);
    world.turn().unwrap_err();
    let refused = world.driver.propose_all(requests());
    assert_eq!(positions(&refused), [0, 1, 2]);
    assert!(refused.iter().all(|refused| matches!(refused.error, Error::Stopped { .. })));
}

#[test]
fn elections_depend_on_the_seed_alone() {
    // Ticks between the campaigns of a member that nobody answers.
    let campaigns = |seed| {
        let mut world = opened(1, 3, Options { seed, ..options() });
        let mut ticks = Vec::new();
        for tick in 0..200 {
            world.driver.tick();
            world.settle().unwrap();
            if !world.outbox.split_off(0).is_empty() {
                ticks.push(tick);
            }
        }
        ticks
    };
    let runs: Vec<Vec<u64>> = (0..20).map(campaigns).collect();
    assert!(runs.iter().all(|ticks| ticks.len() >= 5));
    assert!(runs.iter().any(|ticks| ticks != &runs[0]), "seeds differ");
    for (seed, ticks) in (0..20).zip(&runs) {
        assert_eq!(&campaigns(seed), ticks, "seed {seed}");
    }
}

#[test]
fn what_followers_forward_passes_the_bounds_of_the_leader() {
    let bounded = Options { backlog_entries_max: 10, ..options() };
    let mut world = World::open(1, 1, seeded(4), Machine::new(), bounded).unwrap();
    world.settle().unwrap();
    let entry =
        |data: &'static [u8]| Entry { index: 0, term: 0, kind: EntryKind::Normal, data: Bytes::from_static(data) };
    let forward = |world: &mut World, entries: Vec<Entry>| {
        let message = Message { kind: MessageKind::Propose, to: 1, from: 2, entries, ..Message::default() };
        world.driver.receive(message).unwrap();
    };
    forward(&mut world, vec![entry(b"one"), entry(b"two")]);
    world.settle().unwrap();
    assert_eq!(world.machine.requests(), [&b"one"[..], b"two"]);
    // Nothing is applied from here on, so more and more is committed and waits.
    for _ in 0..30 {
        forward(&mut world, vec![entry(b"more")]);
        world.driver.step(&mut world.disk).unwrap();
        let mut ended = Vec::new();
        world.disk.kick().unwrap();
        world.disk.wait().unwrap();
        world.disk.completions(&mut ended);
        for completion in ended {
            world.driver.on_completion(completion, &mut world.disk).unwrap();
        }
        if world.driver.status().backlog_entries > 10 {
            break;
        }
    }
    let last = world.driver.status().last_index;
    forward(&mut world, vec![entry(b"too many")]);
    world.driver.step(&mut world.disk).unwrap();
    assert_eq!(world.driver.status().last_index, last);
}

#[test]
fn a_follower_that_does_not_apply_takes_so_much_and_no_more_and_goes_on_when_it_does() {
    const BYTES_MAX: u64 = 20_000;
    let bounded = Options { proposals_bytes_max: BYTES_MAX, message_bytes_max: 1000, ..options() };
    let mut world = World::open(1, 3, seeded(5), Machine::new(), bounded).unwrap();
    world.settle().unwrap();
    let before = world.driver.status().last_index;
    let append = |index: u64, term: u64| {
        let data = Bytes::from(vec![b'x'; 900]);
        let entries = vec![Entry { index: index + 1, term: 5, kind: EntryKind::Normal, data }];
        let (log_term, commit) = (term, index);
        Message {
            kind: MessageKind::Append,
            to: 1,
            from: 2,
            term: 5,
            index,
            log_term,
            entries,
            commit,
            ..Default::default()
        }
    };
    // Its log moves, and nobody applies.
    let write = |world: &mut World| {
        let mut ended = Vec::new();
        world.driver.step(&mut world.disk).unwrap();
        world.disk.kick().unwrap();
        world.disk.completions(&mut ended);
        for completion in ended {
            world.driver.on_completion(completion, &mut world.disk).unwrap();
        }
    };
    let mut last = before;
    for _ in 0..200 {
        let term = if last == before { 1 } else { 5 };
        world.driver.receive(append(last, term)).unwrap();
        (0..4).for_each(|_| write(&mut world));
        last = world.driver.status().last_index;
    }
    let held = (last - before) * 900;
    assert!((BYTES_MAX..3 * BYTES_MAX).contains(&held), "{held} bytes are held");
    world.driver.take_messages();
    let heartbeat = Message { kind: MessageKind::Heartbeat, to: 1, from: 2, term: 5, ..Default::default() };
    world.driver.receive(heartbeat).unwrap();
    (0..4).for_each(|_| write(&mut world));
    let answers = world.driver.take_messages();
    assert!(answers.iter().any(|message| message.kind == MessageKind::HeartbeatResponse), "{answers:?}");
    world.settle().unwrap();
    world.driver.receive(append(last, 5)).unwrap();
    world.settle().unwrap();
    assert_eq!(world.driver.status().last_index, last + 1, "there is room again");
}
