//! Runs on: connection core.
//!
//! The Cluster service, as far as it reads published state.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/member.go`.

use proto::etcdserverpb as pb;

use super::desk::{Consistency, Desk};
use crate::error::Error;

/// Answers MemberList. The header has no revision, as in etcd.
///
/// **Errors** as [`Desk::view`], if the client wants a linearizable answer.
pub(super) async fn member_list(desk: &Desk, request: pb::MemberListRequest) -> Result<pb::MemberListResponse, Error> {
    // What apply has changed of the members is published before the view that has applied it.
    drop(desk.view(Consistency::of(!request.linearizable)).await?);
    let cluster = desk.shared.cluster.load();
    let members = cluster.members.iter().map(|member| pb::Member {
        id: member.id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    });
    Ok(pb::MemberListResponse { header: Some(desk.header(0)), members: members.collect() })
}
