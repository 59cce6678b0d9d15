//! Runs on: tests.
//!
//! Changes of the members on their whole way through raft and apply, and entries that stop a member.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, Member as Named, Progress};
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind},
    membershippb,
};

use super::member::Member;
use crate::{
    apply::{
        fatal::Fatal,
        message::{Answer, Handed},
        outcome::Outcome,
        proposal::Proposal,
    },
    error::Error,
    insight::trace::Stamps,
    quota::{self, Purpose},
    raft::message::ToRaft,
    slots::{ReplyTo, Slots},
};

fn named(id: u64, is_learner: bool) -> Named {
    Named { id, peer_urls: vec![format!("http://10.0.0.{id}:2380")], is_learner, ..Named::default() }
}

fn encoded(id: u64, kind: ConfChangeKind, named: &Named) -> Bytes {
    let context = if kind == ConfChangeKind::RemoveNode { Vec::new() } else { named.to_json() };
    ConfChange { id, kind, member_id: named.id, context: context.into() }.encode()
}

fn reply_to(slots: &Slots<()>) -> ReplyTo {
    ReplyTo { core: 0, slot: slots.open(Duration::ZERO).expect("there is room").id() }
}

/// Asks for a change. Returns its id.
fn ask(member: &mut Member, kind: ConfChangeKind, named: &Named) -> u64 {
    let slots = Slots::new(1);
    let id = member.shared.next_request_id();
    let proposal = Proposal {
        reply: reply_to(&slots),
        id,
        purpose: Purpose::Other,
        entry: encoded(id, kind, named),
        request: None,
        stamps: Stamps::default(),
        share: None,
        result: Err(Error::Timeout),
    };
    member.raft.receive(ToRaft::ChangeMembers(Box::new(proposal)), member.now);
    id
}

/// Asks for a change. Returns its result, and the ids of the members that it shows.
fn change(member: &mut Member, kind: ConfChangeKind, named: &Named) -> Result<Vec<u64>, Error> {
    let id = ask(member, kind, named);
    for _ in 0..20 {
        let (turn, _) = member.turn_both();
        if let Some((_, answer)) = turn.answers.into_iter().flatten().next() {
            let Answer::Applied(answered) = answer else { panic!("{answer:?}") };
            assert_eq!(answered.id, id);
            return answered.result.map(|outcome| match outcome {
                Outcome::Members(members) => members.iter().map(|member| member.id).collect(),
                other => panic!("{other:?}"),
            });
        }
    }
    panic!("the change is not answered");
}

#[test]
fn a_change_is_answered_with_the_members_or_etcds_error_and_a_restart_knows_it() {
    use ConfChangeKind::{AddLearnerNode, AddNode, RemoveNode};
    let mut member = Member::new(1 << 30);
    member.settle();
    let own = member.shared.identity.member_id;
    assert_eq!(change(&mut member, AddLearnerNode, &named(7, true)), Ok(vec![7, own]));
    assert_eq!(change(&mut member, AddLearnerNode, &named(8, true)), Err(Error::TooManyLearners));
    assert_eq!(member.raft.configuration().1.learners, [7]);
    assert_eq!(change(&mut member, RemoveNode, &named(7, true)), Ok(vec![own]));
    assert_eq!(change(&mut member, AddNode, &named(7, false)), Err(Error::MemberRemoved));
    assert_eq!(change(&mut member, RemoveNode, &named(own, false)), Err(Error::NotEnoughStarted));
    assert_eq!(change(&mut member, AddLearnerNode, &named(8, true)), Ok(vec![8, own]));
    let request = membershippb::DowngradeInfoSetRequest { enabled: true, ver: "3.6.0".into() };
    member.propose(Kind::DowngradeInfoSet, &request);
    member.settle();
    // Once from the log alone, and once from the store.
    for _ in 0..2 {
        let mut again = Member::on(member.storage.crash(), 1, 1 << 20);
        again.settle();
        let cluster = again.shared.cluster.load_full();
        assert_eq!(cluster.members.iter().map(|member| member.id).collect::<Vec<_>>(), [8, own]);
        assert_eq!(cluster.removed, [7].into());
        assert_eq!(cluster.downgrade.as_ref().map(|downgrade| downgrade.target.as_str()), Some("3.6.0"));
        assert_eq!(change(&mut again, AddNode, &named(7, false)), Err(Error::MemberRemoved));
        assert!(!again.shared.is_removed.load(Ordering::Acquire));
        again.run_checkpoints();
        member = again;
    }
}

#[test]
fn changes_that_come_together_are_made_one_after_the_other() {
    let mut member = Member::new(1 << 30);
    member.settle();
    let kinds = [ConfChangeKind::AddLearnerNode, ConfChangeKind::UpdateNode, ConfChangeKind::RemoveNode];
    let asked = kinds.map(|kind| ask(&mut member, kind, &named(7, true)));
    let mut answered = Vec::new();
    for _ in 0..20 {
        let (turn, _) = member.turn_both();
        answered.extend(turn.answers.into_iter().flatten().map(|(_, answer)| match answer {
            Answer::Applied(proposal) => (proposal.id, proposal.result.is_ok()),
            other => panic!("{other:?}"),
        }));
    }
    assert_eq!(answered, asked.map(|id| (id, true)));
    assert_eq!(member.shared.cluster.load().removed, [7].into());
}

#[test]
fn the_leader_knows_how_far_a_member_has_come() {
    let mut member = Member::new(1 << 30);
    member.settle();
    let own = member.shared.identity.member_id;
    change(&mut member, ConfChangeKind::AddLearnerNode, &named(7, true)).unwrap();
    let slots = Slots::new(8);
    let mut progress = |member_id| {
        member.raft.receive(ToRaft::Progress { reply: reply_to(&slots), member_id }, member.now);
        let answer = member.raft.take_answers().into_iter().flatten().map(|(_, answer)| answer).next();
        let Some(Answer::Progress(progress)) = answer else { panic!("{answer:?}") };
        progress
    };
    let Progress { matched, leader_matched, bytes_behind, .. } = progress(own).unwrap();
    assert!(matched == leader_matched && matched > 0 && bytes_behind == 0);
    let learner = progress(7).unwrap();
    assert_eq!((learner.matched, learner.leader_matched), (0, leader_matched), "it has said nothing yet");
    assert!(learner.bytes_behind > 0);
    assert_eq!(progress(8), Err(Error::MemberNotFound));
}

#[test]
fn leadership_goes_only_to_voters() {
    let mut member = Member::new(1 << 30);
    member.settle();
    let own = member.shared.identity.member_id;
    change(&mut member, ConfChangeKind::AddLearnerNode, &named(7, true)).unwrap();
    let slots = Slots::new(8);
    let mut transfer = |target| {
        member.raft.receive(ToRaft::TransferLeader { reply: reply_to(&slots), target }, member.now);
        member.raft.settle(&mut member.disk, member.now).unwrap();
        let mut answers = member.raft.take_answers().into_iter().flatten().map(|(_, answer)| answer);
        match (answers.next(), answers.next()) {
            (Some(Answer::Transferred(result)), None) => result,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(transfer(7), Err(Error::BadLeaderTransferee));
    assert_eq!(transfer(8), Err(Error::BadLeaderTransferee));
    assert_eq!(transfer(own), Ok(()));
}

/// Why a member stops that meets such an entry in its log.
fn fatal(kind: consensus::EntryKind, data: Bytes) -> Option<Fatal> {
    let mut member = Member::new(1 << 30);
    member.settle();
    let mut handed = Handed { log_bytes: 1 << 20, ..Handed::default() };
    let (index, term) = (member.applied() + 1, 9);
    handed.entries.push(crate::apply::message::Entry { index, term, kind, data, proposal: None });
    member.apply.hand(handed, member.now);
    member.apply.turn(member.now).err()
}

#[test]
fn an_entry_that_is_not_applied_stops_the_member_and_is_named() {
    let header = quota::header(9, Purpose::Other);
    let entry = |kind, raw: &[u8]| internal::encode(&header, kind, raw).entry;
    let stops = |kind: Kind, raw: &[u8]| {
        fatal(consensus::EntryKind::Normal, entry(kind, raw)).map(|fatal| {
            let text = fatal.to_string();
            assert!(text.contains(&format!("{kind:?}")) && text.starts_with("entry "), "{text}");
        })
    };
    let set = |ver: &str| prost::Message::encode_to_vec(&membershippb::ClusterVersionSetRequest { ver: ver.into() });
    for kind in [Kind::AuthEnable, Kind::AuthUserAdd, Kind::AuthRoleGrantPermission, Kind::Authenticate] {
        assert_eq!(stops(kind, &[]), Some(()), "{kind:?}");
    }
    for version in ["3.8.0", "4.0.0", "no version"] {
        assert_eq!(stops(Kind::ClusterVersionSet, &set(version)), Some(()), "{version}");
    }
    // etcd's members write these, and they change nothing that is not held here.
    for kind in [Kind::Range, Kind::AuthStatus, Kind::AuthUserList, Kind::DowngradeVersionTest] {
        assert_eq!(stops(kind, &[]), None, "{kind:?}");
    }
    assert_eq!(stops(Kind::ClusterVersionSet, &set("3.6.0")), None);
    let checkpoints = vec![pb::LeaseCheckpoint { id: 5, remaining_ttl: 7 }];
    let request = pb::LeaseCheckpointRequest { checkpoints };
    assert_eq!(stops(Kind::LeaseCheckpoint, &prost::Message::encode_to_vec(&request)), None);
    let other = Named { id: 8, ..named(7, false) };
    let change =
        ConfChange { id: 1, kind: ConfChangeKind::AddNode, member_id: 7, context: Bytes::from(other.to_json()) };
    let stopped = fatal(consensus::EntryKind::ConfChange, change.encode());
    assert!(matches!(stopped, Some(Fatal::ConfChange { .. })), "{stopped:?}");
}
