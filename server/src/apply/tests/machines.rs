//! Runs on: tests.
//!
//! Raft and apply over a simulated disk, turn by turn. The tests show what waits for a checkpoint and goes on at its
//! end. They also show that it does not matter which of the two machines moves when.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::atomic::Ordering,
    time::Duration,
};

use bytes::Bytes;
use engine::{Fault, disk::sim::Order};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{compare, request_op},
    internal::{Kind, Request},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::member::{LOG_WAIT_MAX, Member, TURNS_MAX, dir, proposal};
use crate::{
    apply::{
        machine::Turn,
        message::{Answer, AnswersByCore, Handed, ReadsAt, Report, Standing, ToApply},
        outcome::Outcome,
    },
    error::Error,
    lease::Renewal,
    raft::message::ToRaft,
    shared::Sizes,
    slots::{ReplyTo, Slots},
};

#[test]
fn a_disk_that_hangs_refuses_writes_and_goes_on_when_it_answers() {
    let mut member = Member::new(1 << 30);
    member.settle();
    member.storage.set_order(Order::Manual);
    member.put(1);
    let (applied, is_stalled) =
        (member.applied(), |member: &Member| member.shared.is_log_stalled.load(Ordering::Acquire));
    member.turn();
    for _ in 0..20 {
        assert!(!is_stalled(&member));
        member.raft.tick(member.now);
        member.now += LOG_WAIT_MAX / 20;
        member.turn();
    }
    member.raft.tick(member.now);
    assert!(is_stalled(&member) && member.applied() == applied);
    let slots = Slots::new(8);
    let put = |id| proposal(id, Request::Put(pb::PutRequest { key: "k".into(), ..Default::default() }), &slots);
    member.raft.receive(ToRaft::Propose(put(1)), member.now);
    let answers = member.raft.take_answers();
    let refused = answers.into_iter().flatten().map(|(_, answer)| match answer {
        Answer::Applied(proposal) => proposal.result,
        other => panic!("{other:?}"),
    });
    assert!(matches!(refused.collect::<Vec<_>>()[..], [Err(Error::Timeout)]));
    member.storage.set_order(Order::Submission);
    member.settle();
    assert!(!is_stalled(&member) && member.applied() > applied);
    member.raft.receive(ToRaft::Propose(put(2)), member.now);
    assert!(member.raft.take_answers().is_empty(), "it is taken");
    // A busy disk is none that hangs.
    for number in 2..60 {
        member.put(number);
        member.raft.tick(member.now);
        member.now += LOG_WAIT_MAX / 4;
        member.settle();
        assert!(!is_stalled(&member));
    }
}

#[test]
fn a_read_is_answered_by_the_turn_that_publishes_its_index() {
    let mut member = Member::new(1 << 30);
    member.settle();
    let slots = Slots::<()>::new(8);
    let read = |member: &mut Member, index: u64| {
        let slot = slots.open(Duration::ZERO).expect("there is room").id();
        let reads = vec![ReadsAt { index, replies: vec![ReplyTo { core: 0, slot }] }];
        let (standing, log_bytes) = (member.apply.standing, member.apply.log_bytes);
        member.apply.hand(Handed { standing, log_bytes, reads, ..Handed::default() }, member.now);
    };
    let readable =
        |turn: &Turn| turn.answers.iter().flatten().filter(|(_, answer)| matches!(answer, Answer::Readable)).count();
    let applied = member.applied();
    read(&mut member, applied);
    read(&mut member, applied + 1);
    read(&mut member, applied + 2);
    let (turn, _) = member.turn_both();
    assert_eq!(readable(&turn), 1, "only what is published answers");
    for number in 1..=2 {
        member.put(number);
        let mut answered = 0;
        while answered == 0 {
            let before = member.applied();
            let (turn, _) = member.turn_both();
            answered = readable(&turn);
            assert!(answered == 0 || (before, member.applied()) == (applied + number - 1, applied + number));
        }
        assert_eq!(answered, 1);
    }
    // A slot that has timed out is not remembered for ever.
    read(&mut member, u64::MAX);
    member.now += 3 * member.shared.limits.request_timeout;
    let applied = member.applied();
    read(&mut member, applied);
    let (turn, _) = member.turn_both();
    assert_eq!(readable(&turn), 1, "the read behind it is answered");
}

#[test]
fn apply_waits_for_a_checkpoint_when_memory_for_changed_nodes_is_used_up() {
    let mut member = Member::new(1 << 30);
    member.settle();
    member.fill_until_held();
    let due = member.apply.store.dirty_bytes_due();
    let held = member.dirty_bytes();
    assert!(held >= due);
    let applied = member.applied();
    for _ in 0..200 {
        member.put(member.proposed);
        assert!(!member.turn(), "the loop does not spin while it waits");
    }
    assert_eq!((member.applied(), member.dirty_bytes()), (applied, held), "nothing is changed meanwhile");
    assert!(!member.is_all_applied(), "what is committed waits");
    member.run_checkpoints();
    assert!(member.is_all_applied() && member.applied() > applied);
    assert!(member.apply.store.mvcc().node_bytes() <= member.apply.store.node_bytes_max() + due);
}

#[test]
fn what_apply_has_not_finished_is_bounded() {
    let mut member = Member::with_batches(1 << 30, 16 << 10);
    member.settle();
    member.fill_until_held();
    for _ in 0..1000 {
        member.put(member.proposed);
        member.turn();
    }
    assert!(!member.turn(), "the loop does not spin while it waits");
    let (waiting, behind) = (member.apply.waiting_bytes(), member.committed() - member.applied());
    assert!(behind > 900 && waiting < 40 << 10, "{waiting} bytes of {behind} entries are with apply");
    member.run_checkpoints();
    assert!(member.is_all_applied());
    assert_eq!(member.apply.waiting_bytes(), 0);
}

#[test]
fn the_sweep_waits_for_a_checkpoint_too() {
    let mut member = Member::new(1 << 30);
    member.settle();
    for _ in 0..3 {
        // These make older versions for the sweep to drop, in pages that were written.
        for number in 0..500 {
            member.put(number);
        }
        member.run_checkpoints();
    }
    let revision = member.apply.store.mvcc().view().revision();
    member.fill_until_held();
    // In a real member, this was committed and applied before the bound was reached. Here the sweep is told directly.
    member.apply.sweep.compacted(member.now);
    member.apply.store.mvcc_mut().compact(revision);
    let held = member.dirty_bytes();
    for _ in 0..100 {
        assert!(!member.turn());
    }
    assert_eq!(member.dirty_bytes(), held, "it changes nothing meanwhile");
    assert!(member.shared.swept_revision.load(Ordering::Acquire) < revision);
    member.run_checkpoints();
    assert_eq!(member.shared.swept_revision.load(Ordering::Acquire), revision);
    assert!(member.is_all_applied());
}

#[test]
fn a_compaction_is_over_when_only_what_readers_hold_is_left() {
    let mut member = Member::new(1 << 30);
    member.settle();
    for _ in 0..4 {
        member.put(1);
    }
    member.settle();
    let view = member.apply.store.mvcc().view();
    let (held, revision) = (view.revision() - 2, view.revision());
    drop(view);
    member.shared.floors[0].lowest.store(held, Ordering::SeqCst);
    member.propose(Kind::Compaction, &pb::CompactionRequest { revision, physical: true });
    member.settle();
    assert_eq!(member.shared.swept_revision.load(Ordering::Acquire), revision, "nobody waits for a reader");
    assert_eq!(member.counters.versions_dropped.get(), 1, "what the reader may see is there");
    member.shared.floors[0].lowest.store(i64::MAX, Ordering::SeqCst);
    member.apply.tick(member.now);
    member.settle();
    assert_eq!(member.counters.versions_dropped.get(), 3, "the rest goes when the reader has gone");
}

#[test]
fn renewal_of_an_expired_lease_is_answered_when_the_lease_is_gone() {
    let mut member = Member::new(1 << 30);
    member.settle();
    member.propose(Kind::LeaseGrant, &pb::LeaseGrantRequest { id: 5, ttl: 2 });
    member.settle();
    member.now += Duration::from_secs(3);
    let slots = Slots::<Answer>::new(1);
    let waiting = slots.open(Duration::MAX).unwrap();
    let reply = ReplyTo { core: 0, slot: waiting.id() };
    member.apply.receive(ToApply::RenewAll { reply, leases: vec![5, 6] }, member.now).unwrap();
    member.apply.receive(ToApply::Renew { reply, lease: 5 }, member.now).unwrap();
    let mut answers = Vec::new();
    for _ in 0..TURNS_MAX {
        let (turn, more) = member.turn_both();
        answers.extend(turn.answers.into_iter().flatten().map(|(_, answer)| answer));
        if !more && answers.len() == 2 {
            break;
        }
    }
    let [Answer::RenewedAll(renewals), Answer::Renewed(0)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(renewals[..], [Renewal::Waits, Renewal::Unknown]);
    member.apply.receive(ToApply::TimeToLive { reply, lease: 5 }, member.now).unwrap();
    let answer = member.turn_both().0.answers.remove(0).remove(0).1;
    assert!(matches!(answer, Answer::TimeToLive(None)), "it is gone, and not only expired: {answer:?}");
}

#[test]
fn who_asks_a_lessor_that_does_not_lead_or_ceases_to_is_told_so() {
    let mut member = Member::new(1 << 30);
    member.settle();
    member.propose(Kind::LeaseGrant, &pb::LeaseGrantRequest { id: 5, ttl: 2 });
    member.settle();
    member.now += Duration::from_secs(3);
    let slots = Slots::<Answer>::new(1);
    let reply = ReplyTo { core: 0, slot: slots.open(Duration::MAX).unwrap().id() };
    let now = member.now;
    let answers = |member: &mut Member, question| {
        member.apply.receive(question, now).unwrap();
        member.apply.turn(now).unwrap().answers.into_iter().flatten().map(|(_, answer)| answer).collect::<Vec<_>>()
    };
    let renew = || ToApply::Renew { reply, lease: 5 };
    assert!(answers(&mut member, renew()).is_empty(), "it has expired, and is not revoked yet");
    let (log_bytes, standing) = (member.apply.log_bytes, Standing { leads: false, ..member.apply.standing });
    member.apply.hand(Handed { log_bytes, standing, ..Handed::default() }, now);
    for question in [renew(), ToApply::TimeToLive { reply, lease: 5 }] {
        let told = answers(&mut member, question);
        assert!(told.iter().all(|answer| matches!(answer, Answer::NotPrimary)) && !told.is_empty(), "{told:?}");
    }
    let told = answers(&mut member, ToApply::Leases { reply });
    assert!(matches!(&told[..], [Answer::Leases(leases)] if leases[..] == [5]), "each member knows them: {told:?}");
}

#[test]
fn scattered_changes_are_waited_with_for_a_while_but_not_for_ever() {
    // A key of 216 bytes with its value takes 0.3 KiB of the log. Each put also changes about as much of the tree.
    let mut member = Member::new(48 << 10);
    member.settle();
    for number in 0..600 {
        member.put(number);
    }
    member.run_checkpoints();
    for number in (0..600).step_by(20) {
        member.put(number);
    }
    member.settle();
    let gathered = member.apply.log_bytes - member.apply.checkpoints.written();
    let dirty = member.dirty_bytes();
    assert!(gathered < 48 << 10 && dirty > 2 * (48 << 10), "few changes of many pages: {gathered}, {dirty}");
    assert!(member.checkpoint.is_none(), "more may come to the same pages");
    member.now += Duration::from_secs(31);
    member.put(0);
    member.settle();
    assert!(member.checkpoint.is_some());
}

#[test]
fn what_is_applied_counts_at_once_and_what_a_checkpoint_wrote_goes_on_counting() {
    let mut member = Member::new(1 << 30);
    member.settle();
    let sizes = |member: &Member| {
        let Sizes { in_use, allocated } = &member.shared.sizes;
        (in_use.load(Ordering::Acquire), allocated.load(Ordering::Acquire))
    };
    let (before, _) = sizes(&member);
    for number in 0..1000 {
        member.put(number);
    }
    let mut seen = before;
    while member.apply.store.mvcc().view().revision() < 1001 {
        member.turn();
        let (in_use, allocated) = sizes(&member);
        assert!(in_use >= seen && allocated >= in_use, "no tick is needed to know of what was put");
        seen = in_use;
    }
    let recent = member.apply.store.mvcc().recent_bytes();
    assert!(recent > 200_000 && seen >= before + recent, "{seen} bytes, {before} before");
    member.checkpoint = Some(member.apply.store.checkpoint_begin());
    member.run_checkpoint();
    assert_eq!(member.apply.store.mvcc().recent_bytes(), 0);
    let told = member.apply.store.sizes();
    assert_eq!(sizes(&member), (told.in_use, told.allocated));
    assert!(told.in_use > recent / 2, "records in files count");
}

/// Requests of clients. The same seed gives the same requests.
fn requests(seed: u64) -> Vec<Request> {
    let mut random = SmallRng::seed_from_u64(seed);
    let some_key = |random: &mut SmallRng| Bytes::from(format!("{:0>90}", random.random_range(0..200)));
    let mut puts = 0;
    let request = |_| {
        let key = some_key(&mut random);
        puts += 1;
        let put = pb::PutRequest { key: key.clone(), value: vec![7; 100].into(), ..Default::default() };
        match random.random_range(0..20) {
            0 => Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: random.random_range(1..5) }),
            1 => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: random.random_range(1..5) }),
            2 => Request::Compaction(pb::CompactionRequest { revision: random.random_range(1..400), physical: false }),
            3 => Request::Put(pb::PutRequest { lease: random.random_range(1..5), ..put }),
            4 => Request::Put(pb::PutRequest { prev_kv: true, ..put }),
            5 | 6 => Request::DeleteRange(pb::DeleteRangeRequest { key, prev_kv: true, ..Default::default() }),
            7..10 => {
                let target_union = Some(compare::TargetUnion::ModRevision(random.random_range(0..3)));
                let compare = pb::Compare { target: 2, key, target_union, ..Default::default() };
                let op = pb::RequestOp { request: Some(request_op::Request::RequestPut(put)) };
                Request::Txn(pb::TxnRequest { compare: vec![compare], success: vec![op], failure: Vec::new() })
            }
            _ => Request::Put(put),
        }
    };
    (0..600).map(request).collect()
}

/// What clients and watchers see in a run.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    answers: BTreeMap<u64, Result<Outcome, Error>>,
    /// Revisions of events, in order.
    events: Vec<(i64, i64)>,
    hash: Option<(u32, i64)>,
}

/// Raft and apply with queues between them. They move in any order.
struct Apart {
    member: Member,
    handed: VecDeque<Handed>,
    reports: VecDeque<Report>,
    faults: Vec<Fault>,
    seen: Seen,
}

impl Apart {
    fn new(mut member: Member) -> Self {
        // Until the member leads.
        member.settle();
        let (handed, reports, faults, seen) = (VecDeque::new(), VecDeque::new(), Vec::new(), Seen::default());
        Self { member, handed, reports, faults, seen }
    }

    /// Advances the time, and moves raft, apply or a checkpoint, chosen at random.
    fn move_some(&mut self, random: &mut SmallRng) {
        self.member.now += Duration::from_millis(1);
        if random.random_bool(0.5) {
            self.move_raft(random);
        }
        if random.random_bool(0.5) {
            self.move_apply(random);
        }
        if self.member.checkpoint.is_some() && random.random_bool(0.05) {
            self.member.run_checkpoint();
        }
    }

    fn see(&mut self, answers: AnswersByCore) {
        for (_, answer) in answers.into_iter().flatten() {
            let Answer::Applied(proposal) = answer else { panic!("only proposals are answered") };
            if let Ok(Outcome::Put { revision, .. }) = &proposal.result {
                let shown = self.member.shared.view.load().revision();
                assert!(shown >= *revision, "a reply leaves behind its publish");
            }
            assert!(self.seen.answers.insert(proposal.id, proposal.result).is_none(), "answered once");
        }
    }

    fn move_raft(&mut self, random: &mut SmallRng) {
        let now = self.member.now;
        for _ in 0..random.random_range(0..=self.reports.len()) {
            let report = self.reports.pop_front().expect("there are as many");
            self.member.raft.report(report, now).unwrap();
        }
        self.member.raft.turn(&mut self.member.disk, now).unwrap();
        if random.random_bool(0.7) {
            self.handed.extend(self.member.raft.take_handed(now));
        }
        let answers = self.member.raft.take_answers();
        self.see(answers);
    }

    fn move_apply(&mut self, random: &mut SmallRng) {
        let now = self.member.now;
        for _ in 0..random.random_range(0..=self.handed.len()) {
            let handed = self.handed.pop_front().expect("there are as many");
            self.member.apply.hand(handed, now);
        }
        if !self.faults.is_empty() && random.random_bool(0.5) {
            let faults = std::mem::take(&mut self.faults);
            self.member.resolve(faults);
        }
        let turn = self.member.apply.turn(now).unwrap();
        if random.random_bool(0.7) {
            self.reports.extend(self.member.apply.take_report());
        }
        self.faults.extend(turn.faults);
        if turn.checkpoint.is_some() {
            self.member.checkpoint = turn.checkpoint;
        }
        let view = self.member.shared.view.load();
        for event in turn.batch.iter().flat_map(|batch| &batch.events) {
            let revision = event.record().revision;
            assert!(revision.main <= view.revision(), "an event leaves behind its publish");
            self.seen.events.push((revision.main, revision.sub));
        }
        self.see(turn.answers);
    }
}

/// Runs the requests of `seed`. Raft and apply move at random, or one after the other.
fn run(seed: u64, in_turns: bool) -> Seen {
    let mut random = SmallRng::seed_from_u64(if in_turns { 1 } else { seed });
    let slots = Slots::new(1 << 16);
    let mut waiting: VecDeque<_> = requests(seed).into_iter().zip(1 << 40..).collect();
    let count = waiting.len();
    let mut apart = Apart::new(Member::with_batches(24 << 10, 2 << 10));
    for turn in 0.. {
        assert!(turn < 200_000, "seed {seed}: {} of {count} were answered", apart.seen.answers.len());
        for _ in 0..random.random_range(0..8).min(waiting.len()) {
            let (request, id) = waiting.pop_front().expect("there are as many");
            apart.member.raft.receive(ToRaft::Propose(proposal(id, request, &slots)), apart.member.now);
        }
        if in_turns {
            apart.member.now += Duration::from_millis(1);
            apart.move_raft(&mut random);
            apart.move_apply(&mut random);
            if apart.member.checkpoint.is_some() {
                apart.member.run_checkpoint();
            }
        } else {
            apart.move_some(&mut random);
        }
        if turn % 100 == 0 {
            apart.member.raft.tick(apart.member.now);
            apart.member.apply.tick(apart.member.now);
        }
        if apart.seen.answers.len() == count && apart.member.is_all_applied() {
            break;
        }
    }
    let view = apart.member.shared.view.load();
    apart.seen.hash = engine::load_for(&mut apart.member.storage.disk(), dir(), || {
        view.hash_kv(view.revision()).step(&view, usize::MAX)
    })
    .unwrap();
    apart.seen
}

#[test]
fn it_does_not_matter_when_raft_and_apply_move() {
    for seed in 0..20 {
        let together = run(seed, true);
        let refused = together.answers.values().filter(|result| result.is_err()).count();
        assert!(refused > 10 && refused < 200, "seed {seed}: {refused} were refused");
        assert!(together.events.is_sorted(), "seed {seed}");
        assert_eq!(run(seed, false), together, "seed {seed}");
    }
}

#[test]
fn what_was_acknowledged_is_there_after_power_loss_whenever_raft_and_apply_moved() {
    let mut acknowledged = 0;
    for seed in 0..40 {
        let mut random = SmallRng::seed_from_u64(seed);
        let slots = Slots::new(1 << 16);
        let mut apart = Apart::new(Member::with_batches(24 << 10, 2 << 10));
        let key = |id: u64| Bytes::from(format!("{:0>60}", id));
        let turns = random.random_range(10..600);
        for id in 0..turns {
            let put = pb::PutRequest { key: key(id), value: vec![7; 100].into(), ..Default::default() };
            let put = proposal(1 << 40 | id, Request::Put(put), &slots);
            apart.member.raft.receive(ToRaft::Propose(put), apart.member.now);
            apart.move_some(&mut random);
        }
        let mut again = Member::on(apart.member.storage.crash(), 24 << 10, 2 << 10);
        again.run_checkpoints();
        let view = again.shared.view.load();
        for (id, result) in &apart.seen.answers {
            let Ok(Outcome::Put { revision, .. }) = result else { panic!("a put is done: {result:?}") };
            let key = key(id & 0xffff_ffff);
            let found = engine::load_for(&mut again.storage.disk(), dir(), || view.version_of(&key, view.revision()));
            let found = found.unwrap().expect("it was acknowledged").revision.main;
            assert_eq!(found, *revision, "seed {seed}");
        }
        acknowledged += apart.seen.answers.len();
    }
    assert!(acknowledged > 2000, "{acknowledged} puts were acknowledged");
}
