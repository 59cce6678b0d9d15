//! Runs on: connection core.
//!
//! Maintenance, Cluster and health, as far as they read published state.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/{maintenance,member,health}.go`.

use std::{rc::Rc, sync::atomic::Ordering};

use bytes::Bytes;
use h2::server::SendResponse;
use proto::{etcdserverpb as pb, health};

use crate::{
    core::Core,
    error::{Code, Error, Status},
    kv::range,
    quota, rpc,
    wire::{
        grpc::{Messages, framed},
        method::Method,
    },
};

/// HashKV of no records: the CRC-32C of the name of etcd's bucket, `key`.
const EMPTY_HASH: u32 = 1_084_519_789;

/// Answers MemberList; its header has no revision, as etcd's.
pub fn member_list(core: &Core) -> pb::MemberListResponse {
    let cluster = core.shared.cluster.load();
    let members = cluster.members.iter().map(|member| pb::Member {
        id: member.id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    });
    pb::MemberListResponse { header: Some(core.header(0)), members: members.collect() }
}

/// Answers Status.
pub fn status(core: &Core) -> pb::StatusResponse {
    let shared = &core.shared;
    let load = |value: &std::sync::atomic::AtomicU64| value.load(Ordering::Acquire);
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let leader = load(&shared.raft.leader);
    let mut errors = Vec::new();
    if leader == 0 {
        errors.push(Error::NoLeader.to_string());
    }
    for (member, alarm) in core.alarms() {
        errors.push(quota::alarm_text(member, alarm));
    }
    if shared.is_disk_full.load(Ordering::Acquire) {
        errors.push("no space left on device".to_owned());
    }
    // The applied index first: it must not be seen ahead of the committed one.
    let applied = load(&shared.raft.applied);
    // And what is in use before what is allocated.
    let in_use = load(&shared.sizes.in_use);
    pb::StatusResponse {
        header: Some(core.header(core.view().revision())),
        version: crate::ETCD_VERSION.to_owned(),
        db_size: signed(load(&shared.sizes.allocated)).max(1),
        db_size_in_use: signed(in_use),
        leader,
        raft_index: load(&shared.raft.commit).max(applied),
        raft_term: load(&shared.raft.term),
        raft_applied_index: applied,
        errors,
        is_learner: false,
        storage_version: crate::STORAGE_VERSION.to_owned(),
        db_size_quota: shared.limits.quota.shown(),
        downgrade_info: Some(pb::DowngradeInfo::default()),
    }
}

async fn hash_at(core: &Core, revision: i64) -> Result<(u32, i64, i64), Error> {
    let (mut hash, at, floor) = loop {
        let view = core.view();
        let at = if revision == 0 { view.revision() } else { revision };
        if at < 0 {
            // etcd takes it as it is and finds no record below it.
            return Ok((EMPTY_HASH, view.compact_revision(), at));
        }
        range::read_at(&view, at)?;
        // The hash is taken with this view's compact revision, so what that shows has to stay.
        match core.hold(view.compact_revision().max(0)) {
            // Compacted that very moment; maybe not as far as the revision asked for.
            Err(Error::Compacted) => {}
            floor => break (view.hash_kv(at), at, floor?),
        }
    };
    let (hash, compact_revision) =
        core.step_along(&floor, |view, budget| hash.step(view, budget).map_err(|fault| [fault])).await?;
    Ok((hash, compact_revision, at))
}

/// Answers HashKV.
///
/// **Errors** a compacted or a future revision.
pub async fn hash_kv(core: &Core, request: pb::HashKvRequest) -> Result<Bytes, Error> {
    let began = core.clock.now();
    let (hash, compact_revision, hash_revision) = hash_at(core, request.revision).await?;
    core.counters.hash_kv.observe_time(core.clock.now() - began);
    let header = Some(core.header(core.view().revision()));
    Ok(framed(&pb::HashKvResponse { header, hash, compact_revision, hash_revision }))
}

/// Answers Hash: a checksum of this member's own data. etcd's covers its file's buckets, so it differs between members
/// of different storage by nature; nothing compares it.
///
/// **Errors** damaged data.
pub async fn hash(core: &Core) -> Result<Bytes, Error> {
    let began = core.clock.now();
    let (hash, _, _) = hash_at(core, 0).await?;
    core.counters.hash.observe_time(core.clock.now() - began);
    Ok(framed(&pb::HashResponse { header: Some(core.header(core.view().revision())), hash }))
}

/// Answers health Check: the server as a whole serves once it answers at all.
///
/// **Errors** a service that is not tracked.
pub fn health_check(request: health::HealthCheckRequest) -> Result<Bytes, Error> {
    if !request.service.is_empty() {
        return Err(Error::UnknownService);
    }
    let status = health::health_check_response::ServingStatus::Serving as i32;
    Ok(framed(&health::HealthCheckResponse { status }))
}

/// Answers health List: the server as a whole is the one service that is tracked, under the empty name.
pub fn health_list() -> health::HealthListResponse {
    let status = health::health_check_response::ServingStatus::Serving as i32;
    let whole = (String::new(), health::HealthCheckResponse { status });
    health::HealthListResponse { statuses: [whole].into() }
}

/// Serves health Watch: the state now, and nothing more until the client leaves, as it never changes.
pub async fn health_watch(core: Rc<Core>, mut messages: Messages, reply: SendResponse<Bytes>) {
    let Some(mut sender) = rpc::start(reply) else { return };
    let request = match messages.next().await {
        Ok(Some(body)) => rpc::decode::<health::HealthCheckRequest>(body),
        Ok(None) => Err(Error::Undecodable("unexpected EOF".into())),
        Err(error) => Err(error),
    };
    let result = match request {
        Ok(request) => {
            use health::health_check_response::ServingStatus;
            let known = request.service.is_empty();
            let status = if known { ServingStatus::Serving } else { ServingStatus::ServiceUnknown } as i32;
            let sent = sender.send(framed(&health::HealthCheckResponse { status })).await;
            if sent.is_ok() {
                sender.closed().await;
            }
            Err(Error::WatchCanceled)
        }
        Err(error) => Err::<(), _>(error),
    };
    let status = result.err().map(Status::from);
    core.counters.handled(Method::HealthWatch, status.as_ref().map_or(Code::Ok, |status| status.code));
    rpc::drop_gone(sender.finish(status.as_ref()));
}
