//! Runs on: connection core.
//!
//! The Maintenance service without Snapshot: published state, hashes, alarms, and defragmentation.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/maintenance.go`.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use proto::{
    etcdserverpb::{self as pb, alarm_request::AlarmAction},
    internal::Request,
};

use super::{
    desk::{Consistency, Desk, Draft},
    propose::propose,
};
use crate::{
    apply::{
        message::{Answer, ToApply},
        outcome::Outcome,
    },
    error::Error,
    hashes::CompactionHash,
    kv::range::read_at,
    protobuf::framed,
    quota::Purpose,
    shared::{alarm_text, alarms_of},
};

/// How often a hash is begun. More than one compaction or state that comes in between is one too many.
const HASH_TRIES: usize = 3;
/// HashKV of no records: the CRC-32C of the name of etcd's bucket, `key`.
const EMPTY_HASH: u32 = 1_084_519_789;

/// Answers Status.
pub(super) fn status(desk: &Desk) -> pb::StatusResponse {
    let shared = &desk.shared;
    let load = |value: &AtomicU64| value.load(Ordering::Acquire);
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let leader = load(&shared.raft.leader);
    let mut errors = Vec::new();
    if leader == 0 {
        errors.push(Error::NoLeader.to_string());
    }
    for (member, alarm) in desk.shared.cluster.load().alarms.keys().copied() {
        errors.push(alarm_text(member, alarm));
    }
    if shared.is_disk_full.load(Ordering::Acquire) {
        errors.push("no space left on device".to_owned());
    }
    errors.extend(shared.standstill.load().as_deref().map(|reason| format!("nothing is applied: {reason}")));
    let unreadable = shared.view.unreadable().count();
    if unreadable > 0 {
        errors.push(format!("{unreadable} pages cannot be read"));
    }
    let downgrade = desk.shared.cluster.load().downgrade.clone().unwrap_or_default();
    let downgrade = pb::DowngradeInfo { enabled: downgrade.is_enabled, target_version: downgrade.target };
    // The applied index is read first, so that it is never ahead of the committed one.
    let applied = load(&shared.raft.applied);
    // The bytes in use are read before the allocated ones, for the same reason.
    let in_use = load(&shared.sizes.in_use);
    pb::StatusResponse {
        header: Some(desk.newest_header()),
        version: crate::ETCD_VERSION.to_owned(),
        db_size: signed(load(&shared.sizes.allocated)).max(1),
        db_size_in_use: signed(in_use),
        leader,
        raft_index: load(&shared.raft.commit).max(applied),
        raft_term: load(&shared.raft.term),
        raft_applied_index: applied,
        errors,
        is_learner: shared.is_learner(),
        storage_version: desk.shared.cluster.load().storage_version().unwrap_or_default().to_owned(),
        db_size_quota: shared.limits.quota.shown(),
        downgrade_info: Some(downgrade),
    }
}

/// The hash of the records at `revision`, or at the newest one for 0; the compact revision at that time; and the
/// revision that it was. To where it was compacted lately, it is the hash of that compaction, where they are taken.
///
/// **Errors** a compacted or a future revision; damaged data; too many long reads.
pub async fn hash_at(desk: &Desk, revision: i64) -> Result<(u32, i64, i64), Error> {
    if let Some(CompactionHash { hash, compact_revision, revision }) = desk.shared.hashes.at(revision) {
        return Ok((hash, compact_revision, revision));
    }
    for _ in 0..HASH_TRIES {
        let (mut hash, at, floor) = loop {
            let view = desk.view(Consistency::Serializable).await?;
            let at = if revision == 0 { view.revision() } else { revision };
            if at < 0 {
                // etcd accepts such a revision and finds no record below it.
                return Ok((EMPTY_HASH, view.compact_revision(), at));
            }
            read_at(&view, at)?;
            // The hash is taken with this view's compact revision, so what that revision shows has to stay readable.
            match desk.hold(view.compact_revision().max(0)) {
                // A compaction came at this very moment. It may not have reached the revision asked for.
                Err(Error::Compacted) => {}
                floor => break (view.hash_kv(at), at, floor?),
            }
        };
        match desk.step_along(&floor, |view, budget| hash.step(view, budget).map_err(|fault| [fault])).await {
            // So did a state of another member, which has compacted further.
            Err(Error::Compacted) => {}
            hashed => return hashed.map(|(hash, compact_revision)| (hash, compact_revision, at)),
        }
    }
    Err(Error::Compacted)
}

/// Answers HashKV.
///
/// **Errors** a compacted or a future revision.
pub(super) async fn hash_kv(desk: &Desk, request: pb::HashKvRequest) -> Result<Bytes, Error> {
    let began = desk.clock.now();
    let (hash, compact_revision, hash_revision) = hash_at(desk, request.revision).await?;
    desk.counters.hash_kv.observe_time(desk.clock.now() - began);
    let header = Some(desk.newest_header());
    Ok(framed(&pb::HashKvResponse { header, hash, compact_revision, hash_revision }))
}

/// Answers Hash with a checksum of this member's own data. etcd's Hash covers the buckets of its file, so it differs
/// between members of different storage by nature. Nothing compares it.
///
/// **Errors** damaged data.
pub(super) async fn hash(desk: &Desk) -> Result<Bytes, Error> {
    let began = desk.clock.now();
    let (hash, _, _) = hash_at(desk, 0).await?;
    desk.counters.hash.observe_time(desk.clock.now() - began);
    Ok(framed(&pb::HashResponse { header: Some(desk.newest_header()), hash }))
}

/// Answers Alarm: raises and disarms alarms through the log, and lists them without it. etcd does all through the log;
/// but whoever asks has a full disk, most likely.
///
/// **Errors** too many alarms; the errors of proposing, or of a linearizable read.
pub(super) async fn alarm(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    if let Request::Alarm(asked) = draft.request()
        && asked.action == AlarmAction::Get as i32
    {
        let revision = desk.view(Consistency::Linearizable).await?.revision();
        let alarms = alarms_of(&desk.shared.cluster.load().alarms, asked.alarm);
        return Ok(alarms_answered(desk, revision, alarms));
    }
    let outcome = propose(desk, draft, Purpose::Other).await?;
    let Outcome::Alarm { revision, alarms } = outcome else { unreachable!("alarms were asked for, not {outcome:?}") };
    Ok(alarms_answered(desk, revision, alarms))
}

fn alarms_answered(desk: &Desk, revision: i64, alarms: Vec<(u64, i32)>) -> Bytes {
    let alarms = alarms.into_iter().map(|(member_id, alarm)| pb::AlarmMember { member_id, alarm }).collect();
    framed(&pb::AlarmResponse { header: Some(desk.header(revision)), alarms })
}

/// Answers MoveLeader. The answer has no header, as in etcd.
///
/// **Errors** as [`Desk::transfer_leader`].
pub(super) async fn move_leader(desk: &Desk, request: pb::MoveLeaderRequest) -> Result<Bytes, Error> {
    let (from, to) = (format!("{:x}", desk.shared.identity.member_id), format!("{:x}", request.target_id));
    if desk.shared.raft.leader.load(Ordering::Acquire) != desk.shared.identity.member_id {
        return Err(Error::NotLeader);
    }
    tracing::info!("current-leader-member-id" = from, "transferee-member-id" = to, "leadership transfer starting");
    desk.transfer_leader(request.target_id).await?;
    tracing::info!("old-leader-member-id" = from, "new-leader-member-id" = to, "leadership transfer finished");
    Ok(framed(&pb::MoveLeaderResponse { header: None }))
}

/// While it lives, the health service says that this member does not serve.
///
/// **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/health.go` (log lines).
struct Withdrawn<'a>(&'a Desk);

impl<'a> Withdrawn<'a> {
    fn new(desk: &'a Desk) -> Self {
        tracing::warn!(
            service = "",
            status = "NOT_SERVING",
            reason = "defrag is active",
            "grpc service status changed"
        );
        desk.shared.is_serving.send_replace(false);
        Self(desk)
    }
}

impl Drop for Withdrawn<'_> {
    fn drop(&mut self) {
        tracing::info!(service = "", status = "SERVING", "grpc service status changed");
        self.0.shared.is_serving.send_replace(true);
    }
}

/// Answers Defragment: asks apply to give back space, and waits until that is done.
///
/// **Errors** as [`Desk::ask`].
pub(super) async fn defragment(desk: &Desk) -> Result<Bytes, Error> {
    let _withdrawn = desk.shared.limits.withdraws_for_defragment.then(|| Withdrawn::new(desk));
    let run = match desk.ask(|reply| ToApply::Defragment { reply }).await? {
        Answer::Defragmenting(run) => run,
        other => unreachable!("the request is answered by its run, not {other:?}"),
    };
    // There is no time limit: only the client gives up.
    loop {
        match desk.ask(|reply| ToApply::AwaitDefragment { reply, run }).await {
            Ok(_) => return Ok(framed(&pb::DefragmentResponse { header: None })),
            Err(Error::Timeout) => {}
            Err(error) => return Err(error),
        }
    }
}
