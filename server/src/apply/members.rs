//! Runs on: apply core.
//!
//! Members inside an entry: configuration changes, and what a member publishes about itself.
//!
//! Invariant: [`changed`] gives the same configuration as raft gives for the same change. So apply stores it without
//! asking raft, and raft follows later ([`super::message::Report`]).

use consensus::{ConfChange, ConfChangeKind, ConfState, Member};
use engine::{Fault, Mvcc, ReadView};
use proto::membershippb;

use super::{table, touch::resident};
use crate::shared::Cluster;

/// The configuration that `change` makes of `state`; `None` if no voter would be left.
pub fn changed(state: &ConfState, change: &ConfChange) -> Option<ConfState> {
    let mut next = state.clone();
    let id = change.member_id;
    // A log of etcd holds changes that were refused before they were proposed. Their member is 0.
    if id != 0 && change.kind != ConfChangeKind::UpdateNode {
        next.voters.retain(|voter| *voter != id);
        next.learners.retain(|learner| *learner != id);
        match change.kind {
            ConfChangeKind::AddNode => insert(&mut next.voters, id),
            ConfChangeKind::AddLearnerNode => insert(&mut next.learners, id),
            ConfChangeKind::RemoveNode | ConfChangeKind::UpdateNode => {}
        }
    }
    (!next.voters.is_empty()).then_some(next)
}

fn insert(ids: &mut Vec<u64>, id: u64) {
    let position = ids.partition_point(|known| *known < id);
    ids.insert(position, id);
}

/// Brings into memory what a configuration change needs.
///
/// **Errors** a page that is not resident.
pub(super) fn touch(view: &ReadView, change: &ConfChange) -> Result<(), Fault> {
    view.touch_meta(&table::member_key(change.member_id))?;
    view.touch_meta(table::CONF_STATE)
}

/// Applies a configuration change to the members table and to raft's configuration `state`. Returns `false` if the
/// change is refused. A refused change must not reach raft.
pub(super) fn apply(cluster: &mut Cluster, state: &mut ConfState, mvcc: &mut Mvcc, change: &ConfChange) -> bool {
    if change.kind != ConfChangeKind::AddNode || cluster.members.iter().any(|member| member.id == change.member_id) {
        return false;
    }
    let member = match Member::from_json(&change.context) {
        Ok(member) if member.id == change.member_id => member,
        _ => return false,
    };
    let Some(next) = changed(state, change) else { return false };
    let mut write = mvcc.begin();
    resident(write.meta_put(&table::member_key(member.id), &member.to_json()));
    resident(write.meta_put(table::CONF_STATE, &table::encode_conf_state(&next)));
    drop(write.finish());
    *state = next;
    cluster.members.push(member);
    cluster.members.sort_by_key(|member| member.id);
    true
}

/// Sets a member's name and client URLs.
pub(super) fn set_attributes(
    cluster: &mut Cluster,
    mvcc: &mut Mvcc,
    request: &membershippb::ClusterMemberAttrSetRequest,
) {
    let Some(member) = cluster.members.iter_mut().find(|member| member.id == request.member_id) else {
        return tracing::warn!(member = request.member_id, "attributes of a member that is not there");
    };
    if let Some(attributes) = &request.member_attributes {
        member.name.clone_from(&attributes.name);
        member.client_urls.clone_from(&attributes.client_urls);
    }
    let mut write = mvcc.begin();
    resident(write.meta_put(&table::member_key(member.id), &member.to_json()));
    drop(write.finish());
}

/// Sets the cluster's version.
pub(super) fn set_version(cluster: &mut Cluster, mvcc: &mut Mvcc, request: &membershippb::ClusterVersionSetRequest) {
    let mut write = mvcc.begin();
    resident(write.meta_put(table::CLUSTER_VERSION, request.ver.as_bytes()));
    drop(write.finish());
    cluster.version = Some(request.ver.clone());
}
