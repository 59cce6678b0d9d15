//! Runs on: apply core.
//!
//! What apply proposes by itself: the end of leases and the time that they have left, its member's name and URLs, its
//! NOSPACE alarm; and what its leader has found out about the members.
//!
//! Invariant: nothing is proposed here while apply stands still, and no revocation whose pages cannot be read.

use std::time::Duration;

use engine::Fault;
use prost::Message;
use proto::{
    etcdserverpb::{self as pb, alarm_request::AlarmAction},
    internal::Kind,
    membershippb,
};

use super::{lease, machine::Apply, own::Own};
use crate::{lease::grant_key, quota::Purpose, shared::Alarm};

/// How long an expired lease lives on that cannot be revoked, because of a page that cannot be read.
const LEASE_PUT_OFF: Duration = Duration::from_secs(60);

/// Keys of an expired lease that are looked at at once, and how often in one turn a lease has more.
const ATTACHED_MAX: usize = 256;
const LOOKS_PER_TURN: usize = 8;

/// Requests of the server's own that are timed at once. Those beyond are not counted.
const OWN_TIMED_MAX: usize = 1024;

/// Leases whose time one entry takes down. **Source** etcd v3.7.1 `server/lease/lessor.go`.
const CHECKPOINTS_MAX: usize = 1000;

impl Apply {
    /// Asks raft to propose a request that only the leader may ask for.
    pub(super) fn propose_as_leader(&mut self, kind: Kind, message: &impl Message) {
        self.propose(Purpose::Other, kind, message);
        let own = self.report.own.last_mut().expect("just asked for");
        own.of_leader_in = Some(self.standing.term);
    }

    /// Asks raft to propose a request of the server's own.
    pub(super) fn propose(&mut self, purpose: Purpose, kind: Kind, message: &impl Message) {
        let id = self.shared.next_request_id();
        if self.own_since.len() == OWN_TIMED_MAX {
            self.own_since.pop_front();
        }
        self.own_since.push_back((id, self.options.clock.now()));
        self.report.own.push(Own::new(id, purpose, kind, message));
    }

    /// Proposes to revoke the leases that have expired. What a revocation changes is read before: once it is in the
    /// log, a page that cannot be read would bring apply to a standstill. A lease with such a page lives on for a
    /// while. Returns the page that must be read.
    pub(super) fn expire_leases(&mut self, now: Duration) -> Option<Fault> {
        if self.standstill.is_on() {
            return None;
        }
        if self.applier.lessor.next_wake().is_some_and(|due| due <= now) {
            let mut expired = Vec::new();
            self.applier.lessor.expired(now, &mut expired);
            self.expiring.extend(expired);
        }
        let mut looks = 0;
        while let Some(id) = self.expiring.front().copied()
            && looks < LOOKS_PER_TURN
        {
            let fault = match self.look_at_expired(id) {
                Ok(true) => None,
                Ok(false) => {
                    looks += 1;
                    continue;
                }
                Err(fault) if !self.store.unreadable().avoids(fault.place()) => return Some(fault),
                Err(fault) => Some(fault),
            };
            self.expiring.pop_front();
            self.expiring_at = None;
            if let Some(fault) = fault {
                self.applier.lessor.put_off(id, now + LEASE_PUT_OFF);
                tracing::warn!(lease = format!("{id:x}"), ?fault, "a lease cannot be revoked: a page cannot be read");
            } else {
                self.propose_as_leader(Kind::LeaseRevoke, &pb::LeaseRevokeRequest { id });
            }
        }
        None
    }

    /// Brings into memory what the revocation of the lease needs, a bounded number of keys at a time. Returns whether
    /// that was all.
    fn look_at_expired(&mut self, id: i64) -> Result<bool, Fault> {
        if !self.applier.lessor.contains(id) {
            return Ok(true);
        }
        let view = self.store.mvcc().live();
        view.touch_meta(&grant_key(id))?;
        let next = lease::touch_more(view, id, self.expiring_at.as_ref(), ATTACHED_MAX)?;
        self.expiring_at = next;
        Ok(self.expiring_at.is_none())
    }

    /// Proposes to take down how much time leases have left that live for long, so that the next leader does not give
    /// them their whole time again. What is proposed holds in this term alone: if it is committed, it is before the
    /// first entry of the next leader.
    pub(super) fn checkpoint_leases(&mut self, now: Duration) {
        let due = self.applier.lessor.checkpoints(now, CHECKPOINTS_MAX);
        if !due.is_empty() {
            let checkpoints = due.into_iter().map(|(id, remaining_ttl)| pb::LeaseCheckpoint { id, remaining_ttl });
            let request = pb::LeaseCheckpointRequest { checkpoints: checkpoints.collect() };
            self.propose_as_leader(Kind::LeaseCheckpoint, &request);
        }
    }

    /// Proposes to take back the time that a lease was said to have left, unless that is under way.
    pub(super) fn take_back(&mut self, lease: i64, now: Duration) {
        if self.applier.lessor.takes_back(lease, now) {
            let checkpoints = vec![pb::LeaseCheckpoint { id: lease, remaining_ttl: 0 }];
            self.propose_as_leader(Kind::LeaseCheckpoint, &pb::LeaseCheckpointRequest { checkpoints });
        }
    }

    /// Publishes this member's name and URLs, as etcd does, until the table has them; and the cluster's version, if it
    /// is alone.
    pub(super) fn publish_attributes(&mut self, now: Duration) {
        // Entries that are still to be applied may change the table. Only after them is it known what to publish.
        if !self.is_caught_up() || self.published_at.is_some_and(|at| now < at + self.shared.limits.request_timeout) {
            return;
        }
        let member_id = self.shared.identity.member_id;
        let Some(own) = self.applier.cluster.members.iter().find(|member| member.id == member_id) else { return };
        let (name, client_urls) = (self.options.name.clone(), self.options.client_urls.clone());
        if own.name != name || own.client_urls != client_urls {
            let member_attributes = Some(membershippb::Attributes { name, client_urls });
            let request = membershippb::ClusterMemberAttrSetRequest { member_id, member_attributes };
            self.propose(Purpose::Other, Kind::ClusterMemberAttrSet, &request);
            self.published_at = Some(now);
        }
        // Among several, they are asked first.
        if self.applier.cluster.members.len() == 1 && self.decide_version(crate::CLUSTER_VERSION.to_owned()) {
            self.published_at = Some(now);
        }
    }

    /// Proposes this version of the cluster, if this member leads, and it is another one. Returns whether it does.
    pub(super) fn decide_version(&mut self, ver: String) -> bool {
        let may = self.standing.leads && self.is_caught_up() && !self.standstill.is_on();
        let is_due = may && self.applier.cluster.version.as_ref() != Some(&ver);
        if is_due {
            self.propose_as_leader(Kind::ClusterVersionSet, &membershippb::ClusterVersionSetRequest { ver });
        }
        is_due
    }

    /// Proposes that the downgrade is over, if this member leads, and there is one.
    pub(super) fn end_downgrade(&mut self) {
        let is_on = self.applier.cluster.downgrade.as_ref().is_some_and(|known| known.is_enabled);
        if is_on && self.standing.leads && !self.standstill.is_on() {
            self.propose_as_leader(Kind::DowngradeInfoSet, &membershippb::DowngradeInfoSetRequest::default());
        }
    }

    /// Proposes the CORRUPT alarm for `member_id`, if this member leads.
    pub(super) fn accuse(&mut self, member_id: u64) {
        if self.standing.leads {
            let (action, alarm) = (AlarmAction::Activate as i32, Alarm::Corrupt as i32);
            self.propose_as_leader(Kind::Alarm, &pb::AlarmRequest { action, member_id, alarm });
        }
    }

    /// Raises this member's NOSPACE alarm or disarms it, when that is due.
    pub(super) fn keep_alarm(&mut self, now: Duration) {
        if !self.is_caught_up() {
            return;
        }
        let recent = self.store.mvcc().recent_bytes();
        if let Some(request) = self.taken.alarm_due(recent, &self.applier.cluster.alarms, now) {
            self.propose(Purpose::Alarm, Kind::Alarm, &request);
        }
    }
}
