//! Runs on: a thread of its own.
//!
//! From the database that an etcd leader sends beside a raft message to a state beside the live one.
//!
//! Invariant: the message and the database speak of the same entry and of the same members. What they do not agree in
//! is refused, as is what this release would lose; nothing has taken the place of this member's state by then.

use std::path::Path;

use consensus::{ConfState, EntryId, Identity};

use super::{build::Builder, error::Error, file::Database, state::State};
use crate::{
    apply::restore::{Tables, restore},
    shared::Cluster,
};

/// What the raft message says of its database.
#[derive(Clone, Debug)]
pub struct Told {
    /// The last entry in it.
    pub at: EntryId,
    /// The configuration behind that entry.
    pub conf_state: ConfState,
}

/// Builds the state in `path` for the member `identity`. All of it is then durable in the store of `builder`, and
/// nothing names it yet.
///
/// **Errors** the database is damaged, or not what `told` says, or it holds what this release does not have; the
/// disk's.
pub fn build(path: &Path, builder: &mut Builder, identity: &Identity, told: &Told) -> Result<Tables, Error> {
    let mut database = Database::open(path)?;
    let cluster = cluster(&mut database, told)?;
    let users = database.users()?;
    let compact_revision = database.meta()?.compact_revision;
    let leases = database.leases()?;
    builder.leases(&leases)?;
    let revision = builder.records(&mut database)?;
    let state = State {
        tables: Tables { cluster, users, conf_state: told.conf_state.clone(), leases },
        applied: told.at,
        revision: revision.max(compact_revision).max(1),
        compact_revision,
    };
    builder.tables(&state.tables)?;
    let (disk, store) = builder.finish_incoming(identity, told.at, (state.revision, compact_revision))?;
    let dir = store.dir().to_path_buf();
    let view = store.mvcc().view();
    restore(&view, |fault| engine::load(disk, &dir, fault).map_err(Error::from))
}

/// What the database says of the cluster, if that is what the message says.
fn cluster(database: &mut Database, told: &Told) -> Result<Cluster, Error> {
    let differs = |what| Err(Error::NotTold { what });
    let meta = database.meta()?;
    let knows_term = meta.applied.term != 0;
    if meta.applied.index != told.at.index || knows_term && meta.applied.term != told.at.term {
        return differs("place in the log");
    }
    let sorted = |ids: &[u64]| {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        ids
    };
    let both = |state: &ConfState| (sorted(&state.voters), sorted(&state.learners));
    if meta.conf_state.is_some_and(|own| both(&own) != both(&told.conf_state)) {
        return differs("configuration");
    }
    let members = database.members()?;
    let ids = |is_learner| members.iter().filter(move |member| member.is_learner == is_learner).map(|member| member.id);
    if (sorted(&ids(false).collect::<Vec<_>>()), sorted(&ids(true).collect::<Vec<_>>())) != both(&told.conf_state) {
        return differs("members");
    }
    Ok(Cluster {
        members,
        removed: database.removed()?,
        alarms: database.alarms()?,
        version: database.cluster_version()?,
        downgrade: database.downgrade()?,
    })
}
