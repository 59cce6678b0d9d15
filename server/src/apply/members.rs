//! Runs on: apply core.
//!
//! Members inside an entry: configuration changes, what a member publishes about itself, and what the cluster decides
//! about its version.
//!
//! Invariants:
//! - A change is checked against the table in etcd's order, and refused with etcd's errors. A refused change changes
//!   nothing, here or in raft. (etcd gives raft a change of no member in its place.)
//! - The id of a former member never returns: it stays in `Cluster::removed`, and in the store.
//! - [`changed`] gives the same configuration as raft gives for the same change. So apply stores it without asking
//!   raft, and raft follows later ([`super::message::Report`]).
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/membership/cluster.go`.

use consensus::{ConfChange, ConfChangeKind, ConfState, Member};
use engine::{Fault, Mvcc, ReadView, Write, planted::is_planted};
use proto::membershippb;

use super::{table, touch::resident};
use crate::{
    error::Error,
    shared::{Cluster, Downgrade},
};

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

/// The row of the members table that a change writes; `None` if it deletes the row.
///
/// **Errors** etcd's, in etcd's order.
fn check(
    cluster: &Cluster,
    change: &ConfChange,
    named: Option<&Member>,
    learners_max: usize,
) -> Result<Option<Member>, Error> {
    let id = change.member_id;
    if cluster.removed.contains(&id) && !is_planted("a removed id that returns") {
        return Err(Error::MemberRemoved);
    }
    let known = cluster.members.iter().find(|member| member.id == id);
    let Some(named) = named else {
        return known.map(|_| None).ok_or(Error::MemberNotFound);
    };
    if change.kind == ConfChangeKind::UpdateNode {
        let known = known.ok_or(Error::MemberNotFound)?;
        check_urls(cluster, named)?;
        return Ok(Some(Member { peer_urls: named.peer_urls.clone(), ..known.clone() }));
    }
    if named.is_promote {
        let known = known.ok_or(Error::MemberNotFound)?;
        if !known.is_learner {
            return Err(Error::MemberNotLearner);
        }
        return Ok(Some(Member { is_learner: false, ..known.clone() }));
    }
    if known.is_some() {
        return Err(Error::MemberExists);
    }
    check_urls(cluster, named)?;
    let learners = cluster.members.iter().filter(|member| member.is_learner).count();
    if named.is_learner && change.kind == ConfChangeKind::AddLearnerNode && learners >= learners_max {
        return Err(Error::TooManyLearners);
    }
    Ok(Some(named.clone()))
}

/// Refuses peer URLs that another member has.
fn check_urls(cluster: &Cluster, named: &Member) -> Result<(), Error> {
    let mut others = cluster.members.iter().filter(|member| member.id != named.id);
    let is_taken = others.any(|other| other.peer_urls.iter().any(|url| named.peer_urls.contains(url)));
    if is_taken { Err(Error::PeerUrlExists) } else { Ok(()) }
}

/// Brings into memory what a configuration change needs.
///
/// **Errors** a page that is not resident.
pub(super) fn touch(view: &ReadView, change: &ConfChange) -> Result<(), Fault> {
    view.touch_meta(&table::member_key(change.member_id))?;
    view.touch_meta(&table::removed_key(change.member_id))?;
    view.touch_meta(table::CONF_STATE)
}

/// Applies a configuration change, whose context names the member `named`, to the members table and to raft's
/// configuration `state`.
///
/// **Errors** etcd's. Nothing was changed then, and the change must not reach raft.
pub(super) fn apply(
    (cluster, state): (&mut Cluster, &mut ConfState),
    mvcc: &mut Mvcc,
    change: &ConfChange,
    named: Option<&Member>,
    learners_max: usize,
) -> Result<(), Error> {
    let row = check(cluster, change, named, learners_max)?;
    let next = changed(state, change).ok_or(Error::NotEnoughStarted)?;
    let mut write = mvcc.begin();
    match &row {
        Some(member) => resident(write.meta_put(&table::member_key(member.id), &member.to_json())),
        None => {
            resident(write.meta_delete(&table::member_key(change.member_id)));
            resident(write.meta_put(&table::removed_key(change.member_id), &[]));
        }
    }
    resident(write.meta_put(table::CONF_STATE, &table::encode_conf_state(&next)));
    drop(write.finish());
    *state = next;
    let position = cluster.members.binary_search_by_key(&change.member_id, |member| member.id);
    let id = format!("{:x}", change.member_id);
    match (row, position) {
        (Some(member), Ok(known)) => {
            let before = std::mem::replace(&mut cluster.members[known], member);
            let now = &cluster.members[known];
            if before.is_learner && !now.is_learner {
                tracing::info!("promoted-member-id" = id, "promote member");
            } else {
                let urls = now.peer_urls.join(",");
                tracing::info!("updated-remote-peer-id" = id, "updated-remote-peer-urls" = urls, "updated member");
            }
        }
        (Some(member), Err(place)) => {
            let (urls, is_learner) = (member.peer_urls.join(","), member.is_learner);
            tracing::info!(
                "added-peer-id" = id,
                "added-peer-peer-urls" = urls,
                "added-peer-is-learner" = is_learner,
                "added member"
            );
            cluster.members.insert(place, member);
        }
        (None, position) => {
            let removed = cluster.members.remove(position.expect("it was found in the table"));
            let urls = removed.peer_urls.join(",");
            tracing::info!("removed-remote-peer-id" = id, "removed-remote-peer-urls" = urls, "removed member");
            cluster.removed.insert(change.member_id);
        }
    }
    Ok(())
}

/// Sets a member's name and client URLs.
pub(super) fn set_attributes(
    cluster: &mut Cluster,
    mvcc: &mut Mvcc,
    request: &membershippb::ClusterMemberAttrSetRequest,
) {
    let Some(member) = cluster.members.iter_mut().find(|member| member.id == request.member_id) else {
        // It published itself, and was removed meanwhile.
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
    put_row(mvcc, |write| write.meta_put(table::CLUSTER_VERSION, request.ver.as_bytes()));
    cluster.version = Some(request.ver.clone());
}

/// Takes down what was decided about a downgrade.
pub(super) fn set_downgrade(cluster: &mut Cluster, mvcc: &mut Mvcc, request: &membershippb::DowngradeInfoSetRequest) {
    let target = if request.enabled { request.ver.clone() } else { String::new() };
    let downgrade = Downgrade { is_enabled: request.enabled, target };
    put_row(mvcc, |write| write.meta_put(table::DOWNGRADE, &table::encode_downgrade(&downgrade)));
    cluster.downgrade = Some(downgrade);
}

fn put_row(mvcc: &mut Mvcc, put: impl FnOnce(&mut Write<'_>) -> Result<(), Fault>) {
    let mut write = mvcc.begin();
    resident(put(&mut write));
    drop(write.finish());
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn member(id: u64, is_learner: bool) -> Member {
        Member { id, peer_urls: vec![format!("http://{id}:2380")], is_learner, ..Member::default() }
    }

    /// A cluster of voters 1, 2 and 3 and learner 4. Member 9 was removed.
    struct Tables {
        cluster: Cluster,
        state: ConfState,
        mvcc: Mvcc,
    }

    impl Tables {
        fn new() -> Self {
            let mut tables = Self { cluster: Cluster::default(), state: ConfState::default(), mvcc: Mvcc::in_memory() };
            for id in [1, 2, 3, 9] {
                tables.change(ConfChangeKind::AddNode, &member(id, false)).unwrap();
            }
            tables.change(ConfChangeKind::AddLearnerNode, &member(4, true)).unwrap();
            tables.change(ConfChangeKind::RemoveNode, &member(9, false)).unwrap();
            tables
        }

        fn change(&mut self, kind: ConfChangeKind, member: &Member) -> Result<(), Error> {
            let context = match kind {
                ConfChangeKind::RemoveNode => Bytes::new(),
                _ => Bytes::from(member.to_json()),
            };
            let change = ConfChange { id: 7, kind, member_id: member.id, context };
            let named = change.named().unwrap();
            apply((&mut self.cluster, &mut self.state), &mut self.mvcc, &change, named.as_ref(), 1)
        }

        /// Who votes, who listens, who was removed.
        fn ids(&self) -> (Vec<u64>, Vec<u64>, Vec<u64>) {
            let of = |is_learner| {
                let members = self.cluster.members.iter();
                members.filter(|member| member.is_learner == is_learner).map(|member| member.id).collect::<Vec<_>>()
            };
            assert_eq!((of(false), of(true)), (self.state.voters.clone(), self.state.learners.clone()));
            (of(false), of(true), self.cluster.removed.iter().copied().collect())
        }
    }

    #[test]
    fn what_etcd_refuses_is_refused_with_its_error_and_changes_nothing() {
        use ConfChangeKind::{AddLearnerNode, AddNode, RemoveNode, UpdateNode};
        let promote = |id| Member { id, is_promote: true, ..Member::default() };
        let with_url =
            |id, of: u64, is_learner| Member { peer_urls: vec![format!("http://{of}:2380")], ..member(id, is_learner) };
        let refused = [
            (AddNode, member(9, false), Error::MemberRemoved),
            (AddLearnerNode, member(9, true), Error::MemberRemoved),
            (RemoveNode, member(9, false), Error::MemberRemoved),
            (UpdateNode, with_url(9, 1, false), Error::MemberRemoved),
            (AddNode, promote(9), Error::MemberRemoved),
            (AddNode, promote(5), Error::MemberNotFound),
            (AddNode, promote(1), Error::MemberNotLearner),
            (AddNode, with_url(1, 2, false), Error::MemberExists),
            (AddNode, with_url(5, 2, false), Error::PeerUrlExists),
            (AddLearnerNode, with_url(5, 2, true), Error::PeerUrlExists),
            (AddLearnerNode, member(5, true), Error::TooManyLearners),
            (RemoveNode, member(5, false), Error::MemberNotFound),
            (UpdateNode, with_url(5, 1, false), Error::MemberNotFound),
            (UpdateNode, with_url(3, 2, false), Error::PeerUrlExists),
        ];
        let mut tables = Tables::new();
        let before = (tables.cluster.members.clone(), tables.ids());
        for (kind, member, error) in refused {
            assert_eq!(tables.change(kind, &member), Err(error), "{kind:?} {member:?}");
            assert_eq!((tables.cluster.members.clone(), tables.ids()), before, "{kind:?} {member:?}");
        }
        tables.change(RemoveNode, &member(1, false)).unwrap();
        tables.change(RemoveNode, &member(2, false)).unwrap();
        assert_eq!(tables.change(RemoveNode, &member(3, false)), Err(Error::NotEnoughStarted));
        assert_eq!(tables.ids(), (vec![3], vec![4], vec![1, 2, 9]));
    }

    #[test]
    fn what_is_changed_is_stored_as_it_is_held() {
        use ConfChangeKind::{AddNode, RemoveNode, UpdateNode};
        let mut tables = Tables::new();
        let moved = Member { peer_urls: vec!["http://4:9".to_owned()], ..member(4, false) };
        tables.change(UpdateNode, &moved).unwrap();
        assert_eq!(tables.cluster.members[3], Member { is_learner: true, ..moved.clone() }, "its URLs alone");
        tables.change(AddNode, &Member { id: 4, is_promote: true, ..Member::default() }).unwrap();
        tables.change(RemoveNode, &member(2, false)).unwrap();
        assert_eq!(tables.cluster.members[2], moved);
        assert_eq!(tables.ids(), (vec![1, 3, 4], vec![], vec![2, 9]));
        let view = tables.mvcc.publish(1, 1);
        let restored =
            super::super::restore::restore::<super::super::restore::Damaged>(&view, |fault| panic!("{fault:?}"));
        let restored = restored.unwrap();
        assert_eq!((restored.cluster.members, restored.conf_state), (tables.cluster.members, tables.state));
        assert_eq!(restored.cluster.removed, tables.cluster.removed);
    }

    #[test]
    fn a_change_whose_member_is_another_one_is_no_change() {
        let context = Bytes::from(member(2, false).to_json());
        let change = ConfChange { id: 7, kind: ConfChangeKind::AddNode, member_id: 1, context };
        change.named().unwrap_err();
        ConfChange { context: Bytes::from_static(b"{"), ..change.clone() }.named().unwrap_err();
        assert_eq!(ConfChange { kind: ConfChangeKind::RemoveNode, ..change }.named().unwrap(), None);
    }
}
