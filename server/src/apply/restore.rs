//! Runs on: connection core (the Snapshot call), main thread (a start, offline tools).
//!
//! Reads back the replicated state that the meta tree holds: everything except the keys.
//!
//! [`Restore`] reads in bounded steps, for a core that serves others meanwhile. [`restore`] reads everything in one go,
//! for a caller that may block.
//!
//! Invariants: everything comes from one view. A step that ends in a fault has taken everything before the place of the
//! fault, so the next step goes on there, or behind the table ([`Restore::pass_by`]).
//!
//! This file does not read the identity of the member, which is not replicated (see `table`). It does not read the
//! attachments of keys to leases either; a revocation reads them.

use consensus::{ConfState, Member};
use engine::{Fault, MetaCursor, ReadView};

use super::table;
use crate::{
    auth::{self, Users},
    lease::{self, Grant},
    shared::Cluster,
};

/// The replicated state beside the keys.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Members, alarms, version.
    pub cluster: Cluster,
    /// Users and roles.
    pub users: Users,
    /// Voters and learners at the applied index; empty for an empty store.
    pub conf_state: ConfState,
    /// Leases in the order of their ids as unsigned numbers. Each takes 24 bytes, less than the lessor needs for it.
    pub leases: Vec<(i64, Grant)>,
}

/// A table that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store's table of {what} is damaged")]
pub struct Damaged {
    /// The name of the table.
    pub what: &'static str,
}

#[derive(Debug)]
enum Stage {
    Members(MetaCursor),
    Removed(MetaCursor),
    Alarms(MetaCursor),
    Values,
    Users(MetaCursor),
    Roles(MetaCursor),
    Leases(MetaCursor),
    End,
}

/// A restore under way.
pub struct Restore<'a> {
    view: &'a ReadView,
    stage: Stage,
    tables: Tables,
}

impl<'a> Restore<'a> {
    /// Begins a restore. It starts with the members.
    pub fn new(view: &'a ReadView) -> Self {
        let stage = Stage::Members(view.meta_cursor(table::MEMBER_PREFIX));
        Self { view, stage, tables: Tables::default() }
    }

    /// Goes on for at most `budget` rows of the tables, and at least one. Returns `None` before the end. Must not be
    /// called after the end.
    ///
    /// **Errors** a page that is not resident; load it and call again.
    pub fn step(&mut self, budget: usize) -> Result<Option<Result<Tables, Damaged>>, Fault> {
        for _ in 0..budget.max(1) {
            match self.row() {
                Ok(false) => {}
                Ok(true) => return Ok(Some(Ok(std::mem::take(&mut self.tables)))),
                Err(Stop::Fault(fault)) => return Err(fault),
                Err(Stop::Damaged(damaged)) => return Ok(Some(Err(damaged))),
            }
        }
        Ok(None)
    }

    /// Gives up the rest of the present table, because a page of it cannot be read. No member can start without its
    /// configuration, which is empty then.
    pub fn pass_by(&mut self) {
        let view = self.view;
        self.stage = match &self.stage {
            Stage::Members(_) => Stage::Removed(view.meta_cursor(table::REMOVED_PREFIX)),
            Stage::Removed(_) => Stage::Alarms(view.meta_cursor(table::ALARM_PREFIX)),
            Stage::Alarms(_) => Stage::Values,
            Stage::Values => Stage::Users(view.meta_cursor(auth::USERS)),
            Stage::Users(_) => Stage::Roles(view.meta_cursor(auth::ROLES)),
            Stage::Roles(_) => Stage::Leases(view.meta_cursor(lease::GRANTS)),
            Stage::Leases(_) | Stage::End => Stage::End,
        };
    }

    /// Takes one row, or goes on to the next table. Returns whether that was everything.
    fn row(&mut self) -> Result<bool, Stop> {
        let (view, tables) = (self.view, &mut self.tables);
        match &mut self.stage {
            Stage::Members(rows) => match rows.next()? {
                Some((_, json)) => tables.cluster.members.extend(member(&json)),
                None => self.stage = Stage::Removed(view.meta_cursor(table::REMOVED_PREFIX)),
            },
            Stage::Removed(rows) => match rows.next()? {
                Some((key, _)) => {
                    let id = table::decode_removed(&key).ok_or(Damaged { what: "former members" })?;
                    tables.cluster.removed.insert(id);
                }
                None => self.stage = Stage::Alarms(view.meta_cursor(table::ALARM_PREFIX)),
            },
            Stage::Alarms(rows) => match rows.next()? {
                Some((key, value)) => match table::decode_alarm(&key, &value) {
                    Some((alarm, raised_by)) => drop(tables.cluster.alarms.insert(alarm, raised_by)),
                    None => tracing::error!("an alarm in the meta tree cannot be read"),
                },
                None => self.stage = Stage::Values,
            },
            Stage::Values => {
                let version = view.meta_get(table::CLUSTER_VERSION)?;
                tables.cluster.version = version.and_then(|text| String::from_utf8(text.to_vec()).ok());
                if let Some(bytes) = view.meta_get(table::DOWNGRADE)? {
                    let downgrade = table::decode_downgrade(&bytes);
                    tables.cluster.downgrade = Some(downgrade.ok_or(Damaged { what: "the downgrade" })?);
                }
                if let Some(bytes) = view.meta_get(table::CONF_STATE)? {
                    let state = table::decode_conf_state(&bytes);
                    tables.conf_state = state.ok_or(Damaged { what: "configuration" })?;
                }
                if let Some(bytes) = view.meta_get(auth::STATE)? {
                    tables.users.take_state(&bytes)?;
                }
                self.stage = Stage::Users(view.meta_cursor(auth::USERS));
            }
            Stage::Users(rows) => match rows.next()? {
                Some((_, value)) => tables.users.take_user(&value)?,
                None => self.stage = Stage::Roles(view.meta_cursor(auth::ROLES)),
            },
            Stage::Roles(rows) => match rows.next()? {
                Some((_, value)) => tables.users.take_role(&value)?,
                None => {
                    tables.users.taken();
                    self.stage = Stage::Leases(view.meta_cursor(lease::GRANTS));
                }
            },
            Stage::End => return Ok(true),
            Stage::Leases(rows) => match rows.next()? {
                Some((key, value)) => {
                    let grant = lease::stored_grant(&key, &value);
                    tables.leases.push(grant.ok_or(Damaged { what: "leases" })?);
                }
                None => return Ok(true),
            },
        }
        Ok(false)
    }
}

enum Stop {
    Fault(Fault),
    Damaged(Damaged),
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<auth::Undecodable> for Stop {
    fn from(auth::Undecodable(what): auth::Undecodable) -> Self {
        Self::Damaged(Damaged { what })
    }
}

impl From<Damaged> for Stop {
    fn from(damaged: Damaged) -> Self {
        Self::Damaged(damaged)
    }
}

/// Skips a member that cannot be read: the log knows it too, and a member without it can still be inspected.
fn member(json: &[u8]) -> Option<Member> {
    match Member::from_json(json) {
        Ok(member) => Some(member),
        Err(error) => {
            tracing::error!(%error, "a member in the meta tree cannot be read");
            None
        }
    }
}

/// Reads all tables of `view` in one go. `load` loads the page that a fault names.
///
/// **Errors** those of `load`; a table that does not decode.
pub fn restore<E: From<Damaged>>(view: &ReadView, mut load: impl FnMut(Fault) -> Result<(), E>) -> Result<Tables, E> {
    let mut restore = Restore::new(view);
    loop {
        match restore.step(usize::MAX) {
            Ok(Some(tables)) => return Ok(tables?),
            Ok(None) => {}
            Err(fault) => load(fault)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use engine::Mvcc;

    use super::*;
    use crate::shared::{Downgrade, RaisedBy};

    fn store(rows: &[(&[u8], &[u8])]) -> Mvcc {
        let mut mvcc = Mvcc::in_memory();
        let mut write = mvcc.begin();
        rows.iter().for_each(|(key, value)| write.meta_put(key, value).unwrap());
        drop(write.finish());
        drop(mvcc.publish(0, 0));
        mvcc
    }

    fn in_steps(view: &ReadView, budget: usize) -> Result<Tables, Damaged> {
        let mut restore = Restore::new(view);
        for _ in 0..100 {
            if let Some(tables) = restore.step(budget).unwrap() {
                return tables;
            }
        }
        panic!("a restore ends");
    }

    #[test]
    fn all_tables_are_restored_in_steps_of_any_size() {
        let members: Vec<Member> =
            (1..5).map(|id| Member { id, name: format!("m{id}"), ..Member::default() }).collect();
        let conf_state = ConfState { voters: vec![1, 2, 3], learners: vec![4] };
        let downgrade = Downgrade { is_enabled: true, target: "3.6.0".to_owned() };
        let grant = |id: i64| Grant { ttl_s: 60 + id.abs(), remaining_s: 5 };
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = vec![
            (table::alarm_key(2, 1), table::encode_raised_by(RaisedBy::Quota).to_vec()),
            (table::alarm_key(1, 2), table::encode_raised_by(RaisedBy::Hand).to_vec()),
            (table::CLUSTER_VERSION.to_vec(), b"3.7.0".to_vec()),
            (table::CONF_STATE.to_vec(), table::encode_conf_state(&conf_state)),
            (table::DOWNGRADE.to_vec(), table::encode_downgrade(&downgrade)),
            (table::removed_key(9), Vec::new()),
            (table::removed_key(8), Vec::new()),
            (lease::attachment_key(7, b"key"), Vec::new()),
        ];
        rows.extend(members.iter().map(|member| (table::member_key(member.id), member.to_json())));
        rows.extend([-1, 7, 9].map(|id| (lease::grant_key(id).to_vec(), grant(id).encode().to_vec())));
        let rows: Vec<(&[u8], &[u8])> = rows.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
        let view = store(&rows).view();
        let none: fn(Fault) -> Result<(), Damaged> = |fault| panic!("{fault:?}: all is in memory");
        let whole = restore(&view, none).unwrap();
        assert_eq!(whole.cluster.members, members);
        assert_eq!(whole.cluster.alarms, [((1, 2), RaisedBy::Hand), ((2, 1), RaisedBy::Quota)].into());
        assert_eq!(whole.cluster.version.as_deref(), Some("3.7.0"));
        assert_eq!((whole.cluster.removed.clone(), whole.cluster.downgrade.clone()), ([8, 9].into(), Some(downgrade)));
        assert_eq!(whole.conf_state, conf_state);
        assert_eq!(whole.leases, [7, 9, -1].map(|id| (id, grant(id))));
        for budget in [0, 1, 2, 5, 1000] {
            let stepped = in_steps(&view, budget).unwrap();
            assert_eq!(format!("{stepped:?}"), format!("{whole:?}"), "{budget}");
        }
        assert!(restore(&store(&[]).view(), none).unwrap().leases.is_empty());
    }

    #[test]
    fn a_damaged_table_is_named() {
        let (configuration, lease) = (table::CONF_STATE, lease::grant_key(7));
        let rows: [(&[u8], &str); 3] =
            [(configuration, "configuration"), (&lease, "leases"), (b"x7", "former members")];
        for (key, what) in rows {
            assert_eq!(in_steps(&store(&[(key, b"x")]).view(), 1).unwrap_err(), Damaged { what });
        }
    }
}
