//! Runs on: commit core.
//!
//! Apply: the one place where committed entries change state.
//!
//! Invariants:
//! - Every change of keys, leases, members and alarms comes from an entry, in log order; the same entries give the same
//!   state on every member: no clock, no randomness, no hash order, no setting of this member decides a result.
//! - A refused entry changes nothing and consumes no revision.
//! - What an entry needs is brought into memory before it begins ([`Applier::touch`]), so that it never stops half-way.
//!
//! Does not know who waits for an entry, and does not publish: its caller does, once per batch.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, Member};
use engine::{Fault, Mvcc, ReadView, Record, Revision, Version, Write};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{alarm_request::AlarmAction, request_op},
    internal::{Request, RequestHeader},
    membershippb,
};

use crate::{
    core::{Alarm, Cluster, Outcome},
    error::Error,
    kv::txn,
    lease::{self, Lessor},
    quota::{self, Origin},
    watch::batch::Event,
};

mod kv;
pub mod prefetch;
pub mod restore;
pub mod table;
#[cfg(test)]
mod tests;

/// Records that the entry at hand needs, held from the moment they were read until it was applied.
#[derive(Default)]
pub struct Pinned {
    records: HashMap<Revision, Record>,
    /// How far each delete of the entry has been touched: its last key, so that a fault does not begin it anew.
    deletes: Vec<Option<Bytes>>,
    /// Deletes met in the touch under way.
    deletes_met: usize,
    /// Whether anybody waits for the entry's answer. If not, as in a replay, what only the answer would hold is not read: no state
    /// depends on it.
    is_awaited: bool,
}

impl Pinned {
    /// Nothing yet, for an entry whose answer is awaited or not.
    pub fn new(is_awaited: bool) -> Self {
        Self { is_awaited, ..Self::default() }
    }

    /// Number of the next delete of a touch.
    fn next_delete(&mut self) -> usize {
        let number = self.deletes_met;
        self.deletes_met += 1;
        if number == self.deletes.len() {
            self.deletes.push(None);
        }
        number
    }

    fn pin(&mut self, view: &ReadView, version: &Version) -> Result<Record, Fault> {
        if let Some(record) = self.records.get(&version.revision) {
            return Ok(record.clone());
        }
        let record = view.record(&version.key, version.revision)?.expect("a live version has its record");
        self.records.insert(version.revision, record.clone());
        Ok(record)
    }

    /// The record of `version`, which is in memory: pinned, or written a moment ago.
    fn record(&self, view: &ReadView, version: &Version) -> Record {
        if let Some(record) = self.records.get(&version.revision) {
            return record.clone();
        }
        let record =
            view.record(&version.key, version.revision).unwrap_or_else(|fault| panic!("{fault:?} was not touched"));
        record.expect("a live version has its record")
    }
}

/// The state machine beside the key trees.
pub struct Applier {
    /// Leases and their expiry.
    pub lessor: Lessor,
    /// Members, alarms, version.
    pub cluster: Cluster,
}

/// Whether this release applies such a request; [`Applier::apply`] passes over others with a warning.
pub fn is_applied(request: &Request) -> bool {
    matches!(
        request,
        Request::Put(_)
            | Request::DeleteRange(_)
            | Request::Txn(_)
            | Request::Compaction(_)
            | Request::LeaseGrant(_)
            | Request::LeaseRevoke(_)
            | Request::Alarm(_)
            | Request::ClusterMemberAttrSet(_)
            | Request::ClusterVersionSet(_)
    )
}

/// What applying one entry gave.
pub struct Applied {
    /// Its request id; 0 for a configuration change.
    pub id: u64,
    /// Its result.
    pub result: Result<Outcome, Error>,
}

impl Applier {
    /// Brings into memory what `request` will need; called again after each fault, it goes on with what is missing.
    ///
    /// **Errors** a page that is not resident.
    pub fn touch(&self, mvcc: &Mvcc, request: &Request, pinned: &mut Pinned) -> Result<(), Fault> {
        pinned.deletes_met = 0;
        match request {
            Request::Put(put) => kv::touch_put(mvcc, put, pinned),
            Request::DeleteRange(delete) => kv::touch_delete(mvcc, delete, pinned),
            Request::Txn(request) => {
                let view = mvcc.live();
                let path = txn::decide(view, request)?;
                kv::touch_txn(mvcc, request, &path, pinned)
            }
            Request::LeaseGrant(grant) => mvcc.touch_meta(&lease::grant_key(grant.id)),
            Request::LeaseRevoke(revoke) => kv::touch_revoke(mvcc, revoke.id),
            Request::ClusterMemberAttrSet(request) => mvcc.touch_meta(&table::member_key(request.member_id)),
            Request::ClusterVersionSet(_) => mvcc.touch_meta(table::CLUSTER_VERSION),
            Request::Alarm(alarm) => mvcc.touch_meta(&table::alarm_key(alarm.member_id, alarm.alarm)),
            _ => Ok(()),
        }
    }

    /// Executes one request. Its events are appended to `events`.
    ///
    /// **Errors** what the client is told; nothing was changed then.
    pub fn apply(
        &mut self,
        mvcc: &mut Mvcc,
        header: &RequestHeader,
        request: Request,
        pinned: &Pinned,
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Error> {
        quota::check(&self.cluster.alarms, &request)?;
        match request {
            Request::Put(request) => {
                kv::check_put(mvcc.live(), &self.lessor, &request)?;
                let mut write = mvcc.begin();
                let mut response = kv::put(&mut write, request, pinned);
                response.header = Some(finish(write, events));
                Ok(Outcome::Put(response))
            }
            Request::DeleteRange(request) => {
                let mut write = mvcc.begin();
                let mut response = kv::delete_range(&mut write, &request, pinned);
                response.header = Some(finish(write, events));
                Ok(Outcome::DeleteRange(response))
            }
            Request::Txn(request) => {
                let path = txn::decide(mvcc.live(), &request).expect("the compares were touched");
                kv::check_txn(mvcc.live(), &self.lessor, &request, &mut path.iter(), &mut None)?;
                let mut write = mvcc.begin();
                let mut response = kv::execute_txn(&mut write, &request, &mut path.iter(), pinned);
                response.header = Some(finish(write, events));
                Ok(Outcome::Txn(response))
            }
            Request::Compaction(request) => compact(mvcc, &request),
            Request::LeaseGrant(request) => self.grant(mvcc, &request, now),
            Request::LeaseRevoke(request) => self.revoke(mvcc, &request, events),
            Request::Alarm(request) => self.alarm(mvcc, &request, quota::origin(header)),
            Request::ClusterMemberAttrSet(request) => Ok(self.set_attributes(mvcc, request)),
            Request::ClusterVersionSet(request) => {
                let mut write = mvcc.begin();
                resident(write.meta_put(table::CLUSTER_VERSION, request.ver.as_bytes()));
                drop(write.finish());
                self.cluster.version = Some(request.ver);
                Ok(Outcome::Internal)
            }
            other => {
                tracing::warn!(kind = ?other.kind(), "an entry of a kind that this release does not apply");
                Ok(Outcome::Internal)
            }
        }
    }

    fn grant(&mut self, mvcc: &mut Mvcc, request: &pb::LeaseGrantRequest, now: Duration) -> Result<Outcome, Error> {
        if request.ttl > lease::TTL_MAX_S {
            return Err(Error::LeaseTtlTooLarge);
        }
        let ttl = self.lessor.grant(request.id, request.ttl, now).ok_or(Error::LeaseExists)?;
        let mut write = mvcc.begin();
        resident(write.meta_put(&lease::grant_key(request.id), &lease::encode_grant(ttl)));
        let revision = write.finish().revision;
        let header = Some(txn::inner_header(revision));
        Ok(Outcome::LeaseGrant(pb::LeaseGrantResponse { header, id: request.id, ttl, error: String::new() }))
    }

    fn revoke(
        &mut self,
        mvcc: &mut Mvcc,
        request: &pb::LeaseRevokeRequest,
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Error> {
        if !self.lessor.revoke(request.id) {
            return Err(Error::LeaseNotFound);
        }
        let keys = resident(kv::attached(mvcc.live(), request.id));
        let mut write = mvcc.begin();
        for key in &keys {
            resident(write.delete(key));
            resident(write.meta_delete(&lease::attachment_key(request.id, key)));
        }
        resident(write.meta_delete(&lease::grant_key(request.id)));
        Ok(Outcome::LeaseRevoke(pb::LeaseRevokeResponse { header: Some(finish(write, events)) }))
    }

    /// Lists, raises or takes back alarms. An action or an alarm that does not exist changes nothing.
    fn alarm(&mut self, mvcc: &mut Mvcc, request: &pb::AlarmRequest, origin: Origin) -> Result<Outcome, Error> {
        let alarms = &mut self.cluster.alarms;
        let alarm = (request.member_id, request.alarm);
        let mut shown = Vec::new();
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let is_wanted = |kind: i32| request.alarm == Alarm::None as i32 || request.alarm == kind;
                shown.extend(alarms.keys().copied().filter(|(_, kind)| is_wanted(*kind)));
            }
            Ok(AlarmAction::Activate) if request.alarm != Alarm::None as i32 => {
                if alarms.len() >= quota::ALARMS_MAX && !alarms.contains_key(&alarm) {
                    return Err(Error::TooManyRequests);
                }
                // A hand that raises what a quota has raised makes it its own.
                let before = alarms.get(&alarm).copied();
                if before.is_none() || (before, origin) == (Some(Origin::Quota), Origin::Hand) {
                    alarms.insert(alarm, origin);
                    let mut write = mvcc.begin();
                    let value = table::encode_origin(origin);
                    resident(write.meta_put(&table::alarm_key(request.member_id, request.alarm), value));
                    drop(write.finish());
                }
                shown.push(alarm);
            }
            Ok(AlarmAction::Deactivate) if alarms.remove(&alarm).is_some() => {
                let mut write = mvcc.begin();
                resident(write.meta_delete(&table::alarm_key(request.member_id, request.alarm)));
                drop(write.finish());
                shown.push(alarm);
            }
            Ok(AlarmAction::Activate | AlarmAction::Deactivate) | Err(_) => {}
        }
        let alarms = shown.into_iter().map(|(member_id, alarm)| pb::AlarmMember { member_id, alarm }).collect();
        let header = Some(txn::inner_header(mvcc.live().revision()));
        Ok(Outcome::Alarm(pb::AlarmResponse { header, alarms }))
    }

    fn set_attributes(&mut self, mvcc: &mut Mvcc, request: membershippb::ClusterMemberAttrSetRequest) -> Outcome {
        let Some(member) = self.cluster.members.iter_mut().find(|member| member.id == request.member_id) else {
            tracing::warn!(member = request.member_id, "attributes of a member that is not there");
            return Outcome::Internal;
        };
        if let Some(attributes) = request.member_attributes {
            member.name = attributes.name;
            member.client_urls = attributes.client_urls;
        }
        let mut write = mvcc.begin();
        resident(write.meta_put(&table::member_key(member.id), &member.to_json()));
        drop(write.finish());
        Outcome::Internal
    }

    /// Brings into memory what a configuration change will need.
    ///
    /// **Errors** a page that is not resident.
    pub fn touch_conf_change(mvcc: &Mvcc, change: &ConfChange) -> Result<(), Fault> {
        mvcc.touch_meta(&table::member_key(change.member_id))?;
        mvcc.touch_meta(table::CONF_STATE)
    }

    /// A configuration change as the members table sees it; `false` if it is refused and must not reach raft.
    pub fn apply_conf_change(&mut self, mvcc: &mut Mvcc, change: &ConfChange) -> bool {
        if change.kind != ConfChangeKind::AddNode || self.cluster.members.iter().any(|m| m.id == change.member_id) {
            return false;
        }
        let member = match Member::from_json(&change.context) {
            Ok(member) if member.id == change.member_id => member,
            _ => return false,
        };
        let mut write = mvcc.begin();
        resident(write.meta_put(&table::member_key(member.id), &member.to_json()));
        drop(write.finish());
        self.cluster.members.push(member);
        self.cluster.members.sort_by_key(|member| member.id);
        true
    }
}

fn compact(mvcc: &mut Mvcc, request: &pb::CompactionRequest) -> Result<Outcome, Error> {
    if request.revision <= mvcc.live().compact_revision() {
        return Err(Error::Compacted);
    }
    if request.revision > mvcc.live().revision() {
        return Err(Error::FutureRevision);
    }
    mvcc.compact(request.revision);
    let header = Some(txn::inner_header(mvcc.live().revision()));
    Ok(Outcome::Compaction(pb::CompactionResponse { header }))
}

/// Ends a write: its events, and the header of its response (the revision; the rest is filled where it is sent).
fn finish(write: Write<'_>, events: &mut Vec<Event>) -> pb::ResponseHeader {
    let changes = write.finish();
    let revision = changes.revision;
    events.extend(changes.records.into_iter().map(|change| {
        let previous = change.previous.map(|version| version.revision);
        Event::new(change.record, previous)
    }));
    txn::inner_header(revision)
}

/// What was touched is resident; a fault here would be a defect of `touch`, and half an entry.
fn resident<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault:?} was not touched"))
}

/// Fills what a header lacks that was made by apply.
pub fn complete(outcome: &mut Outcome, fill: impl Fn(&mut pb::ResponseHeader)) {
    let header = match outcome {
        Outcome::Put(response) => &mut response.header,
        Outcome::DeleteRange(response) => &mut response.header,
        Outcome::Txn(response) => &mut response.header,
        Outcome::Compaction(response) => &mut response.header,
        Outcome::LeaseGrant(response) => &mut response.header,
        Outcome::LeaseRevoke(response) => &mut response.header,
        Outcome::Alarm(response) => &mut response.header,
        Outcome::Internal => return,
    };
    fill(header.as_mut().expect("apply made the header"));
}

/// Restores what lies in the meta tree beside the keys.
///
/// **Errors** a page that is not resident.
pub fn restore_cluster(view: &ReadView) -> Result<Cluster, Fault> {
    let mut cluster = Cluster::default();
    let mut members = view.meta_cursor(table::MEMBER_PREFIX);
    while let Some((_, json)) = members.next()? {
        match Member::from_json(&json) {
            Ok(member) => cluster.members.push(member),
            Err(error) => tracing::error!(%error, "a member in the meta tree cannot be read"),
        }
    }
    let mut alarms = view.meta_cursor(table::ALARM_PREFIX);
    while let Some((key, value)) = alarms.next()? {
        match table::decode_alarm(&key, &value) {
            Some((alarm, origin)) => drop(cluster.alarms.insert(alarm, origin)),
            None => tracing::error!("an alarm in the meta tree cannot be read"),
        }
    }
    cluster.version = view.meta_get(table::CLUSTER_VERSION)?.and_then(|text| String::from_utf8(text.to_vec()).ok());
    Ok(cluster)
}

/// The branch an iterator over a txn's path says next.
fn next_branch<'a>(request: &'a pb::TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> (bool, &'a [pb::RequestOp]) {
    let succeeded = *path.next().expect("a path has a decision for each txn");
    (succeeded, txn::branch(request, succeeded))
}

/// Shared by the txn walks: what an operation is; an unset one was refused before it was proposed.
fn operation(op: &pb::RequestOp) -> Option<&request_op::Request> {
    op.request.as_ref()
}
