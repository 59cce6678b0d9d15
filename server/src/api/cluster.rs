//! Runs on: connection core.
//!
//! The Cluster service, as far as it reads published state.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/member.go`.

use proto::etcdserverpb as pb;

use super::desk::Desk;

/// Answers MemberList. The header has no revision, as in etcd.
pub(super) fn member_list(desk: &Desk) -> pb::MemberListResponse {
    let cluster = desk.shared.cluster.load();
    let members = cluster.members.iter().map(|member| pb::Member {
        id: member.id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    });
    pb::MemberListResponse { header: Some(desk.header(0)), members: members.collect() }
}
