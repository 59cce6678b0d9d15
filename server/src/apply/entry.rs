//! Runs on: apply core.
//!
//! One entry: the state machine beside the key trees, and the changes that an entry makes in both.
//!
//! Invariants:
//! - Every change of keys, leases, members and alarms comes from an entry, in log order. The same entries give the same
//!   state on every member. No clock, no randomness, no hash order and no setting of this member decides a result.
//! - A refused entry changes nothing and consumes no revision.
//! - Everything that an entry needs is brought into memory before it begins ([`touch`]), so that it never
//!   stops half-way. A plain put of one key needs no such step: it is done in one descent of the tree, or not at all.
//!   An entry that deletes or reads very many keys is made in steps, each of which is such a whole (`long`).
//!
//! This file does not know who waits for an entry. It does not publish; its caller does, once per batch.

use std::time::Duration;

use bytes::Bytes;
use consensus::{ConfChange, ConfState, Member};
use engine::{Fault, Mvcc, PutPlain, ReadView, Write};
use proto::{etcdserverpb as pb, internal::Request};

use super::{
    alarms,
    count::Written,
    kv, lease,
    long::{Long, Steps},
    members,
    outcome::Outcome,
    restore::Tables,
    table,
    touch::Pinned,
    users,
};
use crate::{
    auth::{Users, check::Asker, logins},
    error::Error,
    kv::txn,
    lease::{self as leases, Lessor},
    quota,
    shared::{Cluster, RaisedBy},
    watch::batch::Event,
};

/// The state machine beside the key trees.
#[derive(Debug)]
pub struct Applier {
    /// Leases and their expiry.
    pub lessor: Lessor,
    /// Members, alarms, version.
    pub cluster: Cluster,
    /// Users and roles.
    pub users: Users,
    /// What has happened to logins since they were taken.
    pub(super) logins: Vec<logins::Change>,
    /// Raft's configuration at the applied index.
    pub conf_state: ConfState,
    /// Why this is not all of the state, if a table could not be read. Nothing may be applied then.
    pub unread: Option<String>,
    /// The entry under way, if it is made in several steps.
    pub(super) long: Option<Long>,
    /// What is made in several steps.
    pub steps: Steps,
    /// More learners cannot be added. It decides results, so it must be the same on all members, as in etcd.
    pub learners_max: usize,
}

/// `learners_max` if nothing else is said. **Source** etcd v3.7.1 `server/etcdserver/api/membership/cluster.go`.
const LEARNERS_MAX: usize = 1;

/// What became of a call of [`Applier::execute`].
#[derive(Debug)]
pub enum Executed {
    /// The entry was applied.
    Done {
        /// The client's result.
        result: Result<Outcome, Error>,
        /// What the entry wrote.
        written: Written,
        /// Its events are not listed, but can be read from the store. The lowest and the highest key of them, if they
        /// are known.
        unlisted: Option<Option<(Bytes, Bytes)>>,
    },
    /// A step of it was made, or of what is decided about it. The next call goes on.
    Paused,
}

/// The request of an entry, and who the request says it comes from.
#[derive(Debug)]
pub struct Asked {
    /// The request.
    pub request: Request,
    /// Who raised the alarm, if the request raises one.
    pub raised_by: RaisedBy,
    /// Who asks, where anybody must say so.
    pub asker: Asker,
}

/// Whether this release applies such a request. A member that meets another one in its log stops: to pass it over would
/// be to hold another state than the other members.
pub fn is_applied(request: &Request) -> bool {
    match request {
        Request::Put(_)
        | Request::DeleteRange(_)
        | Request::Txn(_)
        | Request::Compaction(_)
        | Request::LeaseGrant(_)
        | Request::LeaseRevoke(_)
        | Request::LeaseCheckpoint(_)
        | Request::Alarm(_)
        | Request::ClusterMemberAttrSet(_)
        | Request::DowngradeInfoSet(_) => true,
        // A cluster of a later version has what this release does not know. etcd stops there, too.
        Request::ClusterVersionSet(set) => is_known_version(&set.ver),
        // They ask, and change nothing. etcd's members log them.
        Request::Range(_)
        | Request::AuthStatus(_)
        | Request::AuthUserGet(_)
        | Request::AuthUserList(_)
        | Request::AuthRoleGet(_)
        | Request::AuthRoleList(_)
        | Request::DowngradeVersionTest(_) => true,
        Request::AuthEnable(_)
        | Request::AuthDisable(_)
        | Request::Authenticate(_)
        | Request::AuthUserAdd(_)
        | Request::AuthUserDelete(_)
        | Request::AuthUserChangePassword(_)
        | Request::AuthUserGrantRole(_)
        | Request::AuthUserRevokeRole(_)
        | Request::AuthRoleAdd(_)
        | Request::AuthRoleDelete(_)
        | Request::AuthRoleGrantPermission(_)
        | Request::AuthRoleRevokePermission(_) => false,
    }
}

/// Whether a cluster of this version, such as `3.6.0`, is at most of this release's.
fn is_known_version(version: &str) -> bool {
    let minor_of = |version: &str| {
        let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
        numbers.next().flatten().zip(numbers.next().flatten())
    };
    minor_of(version).is_some_and(|version| Some(version) <= minor_of(crate::CLUSTER_VERSION))
}

impl Applier {
    /// The state machine over the tables of a store. `lessor` has no leases yet.
    pub fn new(mut lessor: Lessor, tables: Tables, unread: Option<String>) -> Self {
        let Tables { cluster, users, conf_state, leases } = tables;
        lessor.restore(leases);
        let (long, steps, learners_max) = (None, Steps::default(), LEARNERS_MAX);
        let logins = Vec::new();
        Self { lessor, cluster, users, logins, conf_state, unread, long, steps, learners_max }
    }

    /// Executes the entry at `index`, or a step of it, or returns the page that it needs first. Called again then, it
    /// goes on with what is missing. It appends its events to `events`.
    ///
    /// **Errors** a page that is not resident. Nothing was changed then, unless a step was made before.
    pub fn execute(
        &mut self,
        mvcc: &mut Mvcc,
        (index, asked): (u64, &Asked),
        pinned: &mut Pinned,
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<Executed, Fault> {
        if self.long.is_some() {
            return self.go_on(mvcc, &asked.request, pinned);
        }
        let before = events.len();
        let done = |result, events: &[Event]| {
            Ok(Executed::Done { result, written: Written::of(&events[before..]), unlisted: None })
        };
        // An entry under way is gone on with, whatever it would be in the state that it has reached.
        if self.users.is_enabled()
            && !mvcc.is_unfinished()
            && let Err(error) =
                users::judge(mvcc.live(), (&self.users, &self.cluster.alarms), &asked.request, &asked.asker)?
        {
            return done(Err(error), events);
        }
        if users::is_of_users(&asked.request) {
            let state = (&mut self.users, &mut self.logins);
            return done(users::execute(mvcc, state, (index, &asked.request), now)?, events);
        }
        if !mvcc.is_unfinished()
            && let Some(outcome) = self.put_plain(mvcc, &asked.request, events)?
        {
            return done(Ok(outcome), events);
        }
        if !mvcc.is_unfinished()
            && let Request::Txn(txn) = &asked.request
            && !pinned.decide(mvcc.live(), txn, self.steps.keys)?
        {
            return Ok(Executed::Paused);
        }
        let facts = (&self.lessor, &self.cluster.alarms);
        match Long::begin(mvcc, facts, self.steps, (index, &asked.request), pinned)? {
            None => {}
            Some(Err(error)) => return done(Err(error), events),
            Some(Ok(long)) => {
                self.long = Some(long);
                return Ok(Executed::Paused);
            }
        }
        touch(mvcc.live(), &asked.request, pinned)?;
        let result = self.apply(mvcc, asked, pinned, now, events);
        done(result, events)
    }

    /// Makes the next step of the entry under way.
    fn go_on(&mut self, mvcc: &mut Mvcc, request: &Request, pinned: &mut Pinned) -> Result<Executed, Fault> {
        let long = self.long.as_mut().expect("one is under way");
        if !long.step(mvcc, self.steps, !self.lessor.is_empty(), pinned)? {
            return Ok(Executed::Paused);
        }
        let ended = long.end(mvcc, &mut self.lessor, request)?;
        self.long = None;
        Ok(Executed::Done { result: Ok(ended.outcome), written: ended.written, unlisted: ended.unlisted })
    }

    /// The pages to read after `fault`, at which [`Applier::execute`] has stopped; that one first.
    pub(super) fn wanted(&mut self, view: &ReadView, pinned: &Pinned, fault: Fault) -> Vec<Fault> {
        match &mut self.long {
            Some(long) => long.wanted(fault),
            None => pinned.wanted(view, fault),
        }
    }

    /// Executes a put of one key without a lease in one descent. Executes a txn that only asks whether the key was
    /// changed in two descents. Returns `None` for anything else, for a key with a lease, and for a txn that does not
    /// put.
    fn put_plain(&self, mvcc: &mut Mvcc, request: &Request, events: &mut Vec<Event>) -> Result<Option<Outcome>, Fault> {
        if !self.cluster.alarms.is_empty() {
            return Ok(None);
        }
        let (put, is_txn) = match request {
            Request::Put(put) if kv::is_plain(put) => (put, false),
            Request::Txn(request) => {
                let Some((put, expected)) = kv::as_put_if_unchanged(request) else { return Ok(None) };
                // The key is looked up first. A put that is given up changes nothing, but it has copied its path to the
                // leaf.
                let live = kv::live_version(mvcc.live(), &put.key)?;
                if live.as_ref().map_or(0, |live| live.revision.main) != expected {
                    return Ok(None);
                }
                (put, true)
            }
            _ => return Ok(None),
        };
        let done = mvcc.put_plain(put.key.clone(), put.value.clone())?;
        let PutPlain::Done { record, previous } = done else { return Ok(None) };
        let revision = record.revision.main;
        events.push(Event::new(record, previous));
        Ok(Some(if is_txn {
            Outcome::Txn(Box::new(kv::one_put(revision)))
        } else {
            Outcome::Put { revision, previous: None }
        }))
    }

    /// Executes one request that was touched before.
    ///
    /// **Errors** the error that the client gets; nothing was changed then.
    pub(super) fn apply(
        &mut self,
        mvcc: &mut Mvcc,
        asked: &Asked,
        pinned: &Pinned,
        now: Duration,
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Error> {
        let request = &asked.request;
        quota::check(&self.cluster.alarms, request)?;
        match request {
            Request::Put(request) => {
                kv::check_put(mvcc.live(), &self.lessor, request)?;
                let mut write = mvcc.begin();
                let previous = kv::put(&mut write, request, pinned);
                Ok(Outcome::Put { revision: finish(write, events), previous: previous.map(Box::new) })
            }
            Request::DeleteRange(request) => {
                let mut write = mvcc.begin();
                let mut response = kv::delete_range(&mut write, request, pinned);
                response.header = Some(txn::inner_header(finish(write, events)));
                Ok(Outcome::DeleteRange(Box::new(response)))
            }
            Request::Txn(request) => {
                let path = pinned.path();
                kv::check_txn(mvcc.live(), &self.lessor, request, &mut path.iter(), &mut None)?;
                let mut write = mvcc.begin();
                let mut response = kv::execute_txn(&mut write, request, &mut path.iter(), pinned);
                response.header = Some(txn::inner_header(finish(write, events)));
                Ok(Outcome::Txn(Box::new(response)))
            }
            Request::Compaction(request) => compact(mvcc, request),
            Request::LeaseGrant(request) => lease::grant(&mut self.lessor, mvcc, request, now),
            Request::LeaseRevoke(request) => {
                if !self.lessor.revoke(request.id) {
                    return Err(Error::LeaseNotFound);
                }
                let mut write = mvcc.begin();
                lease::revoke(&mut write, request.id);
                Ok(Outcome::LeaseRevoke { revision: finish(write, events) })
            }
            Request::Alarm(request) => {
                let alarms = alarms::apply(&mut self.cluster.alarms, mvcc, request, asked.raised_by)?;
                Ok(Outcome::Alarm { revision: mvcc.live().revision(), alarms })
            }
            Request::ClusterMemberAttrSet(request) => {
                members::set_attributes(&mut self.cluster, mvcc, request);
                Ok(Outcome::Internal)
            }
            Request::ClusterVersionSet(request) => {
                members::set_version(&mut self.cluster, mvcc, request);
                Ok(Outcome::Internal)
            }
            Request::LeaseCheckpoint(request) => {
                lease::checkpoint(&mut self.lessor, mvcc, request);
                Ok(Outcome::Internal)
            }
            Request::DowngradeInfoSet(request) => {
                members::set_downgrade(&mut self.cluster, mvcc, request);
                Ok(Outcome::Internal)
            }
            other => {
                assert!(is_applied(other), "{:?} is met before it comes here", other.kind());
                Ok(Outcome::Internal)
            }
        }
    }

    /// Applies a configuration change, whose context names the member `named`, to the members table and to raft's
    /// configuration. Returns etcd's error if the change is refused. A refused change must not reach raft.
    ///
    /// **Errors** a page that is not resident; nothing was changed then.
    pub(super) fn change_configuration(
        &mut self,
        mvcc: &mut Mvcc,
        (change, named): (&ConfChange, Option<&Member>),
    ) -> Result<Result<(), Error>, Fault> {
        members::touch(mvcc.live(), change)?;
        let tables = (&mut self.cluster, &mut self.conf_state);
        Ok(members::apply(tables, mvcc, change, named, self.learners_max))
    }
}

/// Brings into memory what `request` will need. Called again after a fault, it goes on with what is missing.
///
/// **Errors** a page that is not resident.
pub(super) fn touch(view: &ReadView, request: &Request, pinned: &mut Pinned) -> Result<(), Fault> {
    pinned.begin();
    match request {
        Request::Put(put) => kv::touch_put(view, put, pinned),
        Request::DeleteRange(delete) => kv::touch_delete(view, delete, pinned),
        Request::Txn(request) => {
            assert!(pinned.decide(view, request, usize::MAX)?, "the budget has no end");
            kv::touch_txn(view, request, pinned)
        }
        Request::LeaseGrant(grant) => view.touch_meta(&leases::grant_key(grant.id)),
        Request::LeaseRevoke(revoke) => lease::touch_revoke(view, revoke.id),
        Request::ClusterMemberAttrSet(request) => view.touch_meta(&table::member_key(request.member_id)),
        Request::ClusterVersionSet(_) => view.touch_meta(table::CLUSTER_VERSION),
        Request::DowngradeInfoSet(_) => view.touch_meta(table::DOWNGRADE),
        Request::LeaseCheckpoint(request) => {
            request.checkpoints.iter().try_for_each(|each| view.touch_meta(&leases::grant_key(each.id)))
        }
        Request::Alarm(alarm) => view.touch_meta(&table::alarm_key(alarm.member_id, alarm.alarm)),
        _ => Ok(()),
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
    Ok(Outcome::Compaction { revision: mvcc.live().revision() })
}

/// Ends a write. Appends its events, and returns the store's revision after it.
fn finish(write: Write<'_>, events: &mut Vec<Event>) -> i64 {
    let changes = write.finish();
    events.extend(changes.records.into_iter().map(|change| {
        let previous = change.previous.map(|version| version.revision);
        Event::new(change.record, previous)
    }));
    changes.revision
}
