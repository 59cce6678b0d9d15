//! Runs on: connection core.
//!
//! Turns a member's state and its records into the content of a bbolt file, in bounded steps.
//!
//! Records are read at the state's revision, each step on a newer view. Meanwhile the caller holds the state's compact
//! revision as a floor. The parts without versions (leases, members, the place in the log) were read before, as a
//! [`State`].
//!
//! Invariants:
//! - Two walks over the same `State` push the same keys and values into their writers, whatever is written, compacted
//!   or swept meanwhile.
//! - Nothing is pushed twice. `next` is the first revision that is not pushed yet, and it is still right after a step
//!   that ends in a fault.

use consensus::EntryId;
use engine::{Fault, ReadView, Revision};
use prost::Message;
use proto::etcdserverpb::AlarmMember;

use super::{bolt::writer::FileWriter, schema, state::State};
use crate::apply::restore::Tables;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Records,
    Leases(usize),
    Small,
    Done,
}

/// Pushes a [`State`] and its records into a writer.
#[derive(Debug)]
pub struct Walk<'a> {
    state: &'a State,
    stage: Stage,
    next: Revision,
    writer: FileWriter,
    value: Vec<u8>,
}

impl<'a> Walk<'a> {
    /// A walk that begins at the first record.
    pub fn new(state: &'a State, writer: FileWriter) -> Self {
        Self { state, stage: Stage::Records, next: Revision::MIN, writer, value: Vec::new() }
    }

    /// Goes on over about `budget` records or leases, or until `bytes_max` wait in the writer. `None` before the end.
    ///
    /// **Errors** a page that is not resident; load it and call again.
    pub fn step(&mut self, view: &ReadView, budget: usize, bytes_max: usize) -> Result<Option<()>, Fault> {
        match self.stage {
            Stage::Records => self.records(view, budget, bytes_max)?,
            Stage::Leases(from) => self.leases(from, budget),
            Stage::Small => self.small(),
            Stage::Done => return Ok(Some(())),
        }
        Ok(None)
    }

    /// The writer, to take the bytes that wait in it.
    pub fn writer(&mut self) -> &mut FileWriter {
        &mut self.writer
    }

    /// The writer, once everything is in it.
    pub fn finish(self) -> FileWriter {
        assert_eq!(self.stage, Stage::Done, "a walk is finished at its end");
        self.writer
    }

    fn records(&mut self, view: &ReadView, budget: usize, bytes_max: usize) -> Result<(), Fault> {
        assert!(view.revision() >= self.state.revision, "newer views follow");
        let mut records = view.records_from(self.next);
        for _ in 0..budget.max(1) {
            let next = records.next()?;
            let Some(record) = next.filter(|record| record.revision.main <= self.state.revision) else {
                self.writer.end_bucket(schema::KEY);
                self.stage = Stage::Leases(0);
                return Ok(());
            };
            assert!(record.revision >= self.next, "records come in revision order");
            let revision = record.revision;
            if view.is_kept(&record, self.state.compact_revision)? {
                let key = schema::revision_key(revision, record.is_tombstone);
                self.value.clear();
                schema::write_record(record, &mut self.value);
                self.writer.push(&key, &self.value);
            }
            self.next = Revision::new(revision.main, revision.sub + 1);
            if self.writer.waiting() >= bytes_max {
                return Ok(());
            }
        }
        Ok(())
    }

    fn leases(&mut self, from: usize, budget: usize) {
        let leases = &self.state.tables.leases;
        let to = from.saturating_add(budget.max(1)).min(leases.len());
        for (id, grant) in &leases[from..to] {
            self.writer.push(&id.to_be_bytes(), &schema::Lease::of(*id, *grant).encode_to_vec());
        }
        self.stage = Stage::Leases(to);
        if to == leases.len() {
            self.writer.end_bucket(schema::LEASE);
            self.stage = Stage::Small;
        }
    }

    fn bucket(&mut self, name: schema::Name, mut pairs: Vec<(Vec<u8>, Vec<u8>)>) {
        pairs.sort();
        for (key, value) in pairs {
            self.writer.push(&key, &value);
        }
        self.writer.end_bucket(name);
    }

    fn small(&mut self) {
        let State { tables: Tables { cluster, users, conf_state, .. }, applied, compact_revision, .. } = self.state;
        let EntryId { index, term } = applied;
        let mut meta = vec![
            (schema::CONSISTENT_INDEX.to_vec(), index.to_be_bytes().to_vec()),
            (schema::TERM.to_vec(), term.to_be_bytes().to_vec()),
            (schema::CONF_STATE.to_vec(), schema::conf_state_json(conf_state)),
        ];
        meta.extend(cluster.storage_version().map(|version| (schema::STORAGE_VERSION.to_vec(), version.into())));
        if *compact_revision > 0 {
            // The file holds nothing that this compaction drops, however far the sweep of this member has come.
            let revision = schema::revision_key(Revision::new(*compact_revision, 0), false);
            meta.push((schema::SCHEDULED_COMPACT.to_vec(), revision.clone()));
            meta.push((schema::FINISHED_COMPACT.to_vec(), revision));
        }
        let members = cluster.members.iter().map(|member| (schema::member_key(member.id), member.to_json())).collect();
        let alarm = |(member_id, alarm): &(u64, i32)| AlarmMember { member_id: *member_id, alarm: *alarm };
        let alarms = cluster.alarms.keys().map(|each| (alarm(each).encode_to_vec(), Vec::new())).collect();
        let version =
            cluster.version.iter().map(|version| (schema::CLUSTER_VERSION.to_vec(), version.as_bytes().to_vec()));
        let downgrade = cluster.downgrade.iter();
        let downgrade = downgrade.map(|downgrade| (schema::DOWNGRADE.to_vec(), schema::downgrade_json(downgrade)));
        let decided = version.chain(downgrade).collect();
        let removed = cluster.removed.iter().map(|id| (schema::member_key(*id), schema::REMOVED.to_vec()));
        self.bucket(schema::META, meta);
        self.bucket(schema::MEMBERS, members);
        self.bucket(schema::MEMBERS_REMOVED, removed.collect());
        self.bucket(schema::ALARM, alarms);
        self.bucket(schema::CLUSTER, decided);
        // A member that takes the file over as it runs does not begin the count where there is none.
        let revision = (schema::AUTH_REVISION.to_vec(), users.revision().to_be_bytes().to_vec());
        let enabled = users.is_enabled().then(|| (schema::AUTH_ENABLED.to_vec(), vec![1]));
        self.bucket(schema::AUTH, enabled.into_iter().chain([revision]).collect());
        let named = |(name, row): (&str, Vec<u8>)| (name.as_bytes().to_vec(), row);
        self.bucket(schema::AUTH_USERS, users.user_rows().map(named).collect());
        self.bucket(schema::AUTH_ROLES, users.role_rows().map(named).collect());
        self.stage = Stage::Done;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use consensus::{ConfState, Member};
    use engine::Mvcc;

    use super::*;
    use crate::{auth::Users, etcd_files::bolt::writer::PAGE_SIZE, lease::Grant, shared::Cluster};

    fn write(mvcc: &mut Mvcc, key: &str, value: usize) {
        let mut write = mvcc.begin();
        write.put(Bytes::copy_from_slice(key.as_bytes()), vec![1; value].into(), 0).unwrap();
        drop(write.finish());
    }

    fn walk(state: &State, writer: FileWriter, budget: usize, mut before: impl FnMut() -> Mvcc) -> FileWriter {
        let mut walk = Walk::new(state, writer);
        loop {
            let view = before().view();
            if walk.step(&view, budget, usize::MAX).unwrap().is_some() {
                return walk.finish();
            }
        }
    }

    #[test]
    fn writes_compactions_and_held_sweeps_meanwhile_change_nothing() {
        let build = |later: usize| {
            let mut mvcc = Mvcc::in_memory();
            (0..300).for_each(|number| write(&mut mvcc, &format!("k{}", number % 20), number));
            mvcc.compact(100);
            drop(mvcc.publish(300, 1));
            mvcc.hold_sweep(Some(100));
            // These are changes while the file is written. Each step makes more of them.
            (0..later).for_each(|number| write(&mut mvcc, &format!("k{}", number % 20), 9));
            if later > 0 {
                mvcc.compact(100 + i64::try_from(later).unwrap());
                mvcc.sweep(usize::MAX).unwrap();
            }
            drop(mvcc.publish(301, 1));
            mvcc
        };
        let member = Member { id: 7, name: "m".into(), ..Member::default() };
        let leases = (1..500).map(|id| (id, Grant { ttl_s: 60, remaining_s: 0 })).collect();
        let tables = Tables {
            cluster: Cluster { members: vec![member], version: Some("3.7.0".into()), ..Cluster::default() },
            conf_state: ConfState { voters: vec![7], learners: Vec::new() },
            users: Users::default(),
            leases,
        };
        let applied = EntryId { index: 300, term: 1 };
        let state = State { tables, applied, revision: 301, compact_revision: 100 };
        let (_, layout) = walk(&state, FileWriter::measuring(PAGE_SIZE), 7, || build(0)).finish().unwrap();
        let (quiet, _) = walk(&state, FileWriter::writing(layout), 1000, || build(0)).finish().unwrap();
        let mut steps = 0;
        let busy = walk(&state, FileWriter::writing(layout), 7, || {
            steps += 1;
            build(steps)
        });
        assert_eq!(busy.finish().expect("the layout that was announced").0, quiet);
        assert!(steps > 40);
        assert_eq!(quiet.len() as u64, layout.bytes());
    }
}
