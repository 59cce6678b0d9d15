//! Runs on: main thread.
//!
//! What a member must know before it starts: who it is, and its tables, as far as they can be read.
//!
//! Invariants: a new store has its identity durably before anything else is written. A page that cannot be read keeps
//! no member from starting that knows its identity and its configuration: both stand in the superblock, too (`vital`).

use consensus::{ConfState, Identity};
use engine::{ReadView, Store, disk::Disk, load, load_for};

use super::{
    restore::{Damaged, Restore, Tables},
    table,
};

/// What the store says about its member.
#[derive(Debug)]
pub struct Start {
    /// The member, and its cluster.
    pub identity: Identity,
    /// The replicated state beside the keys.
    pub tables: Tables,
    /// What of the tables cannot be read, if anything. The member then starts, serves what it has, and applies nothing.
    pub unread: Option<String>,
}

/// Why a store cannot say what a member must know.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A table does not decode.
    #[error(transparent)]
    Table(#[from] Damaged),
}

/// Reads what `store` says about its member. If the store is new, it becomes that of `fresh`. Blocks.
///
/// **Errors** the identity or the configuration cannot be read, and is not in the superblock either; a table that does
/// not decode; a write fails.
pub fn read(store: &mut Store, disk: &mut dyn Disk, fresh: Identity) -> Result<Start, Error> {
    let identity = identity_of(store, disk, fresh)?;
    let view = store.mvcc().view();
    let (tables, unread) = read_tables(&view, store, disk)?;
    if unread.is_none() {
        store.set_vital(table::encode_vital(&identity, &tables.conf_state));
    }
    Ok(Start { identity, tables, unread })
}

/// The identity of the member, as its store has it. If the store is new, it is `fresh`.
fn identity_of(store: &mut Store, disk: &mut dyn Disk, fresh: Identity) -> Result<Identity, Error> {
    let view = store.mvcc().view();
    let row = load_for(disk, store.dir(), || view.meta_get(table::IDENTITY));
    if let (Err(error), (Some(identity), _)) = (&row, table::decode_vital(store.vital()))
        && is_damage(error)
    {
        return Ok(identity);
    }
    if let Some(bytes) = row? {
        return Ok(table::decode_identity(&bytes).ok_or(Damaged { what: "identity" })?);
    }
    first_checkpoint(store, disk, &fresh)?;
    Ok(fresh)
}

/// Writes the identity of the member, before anything else is written.
fn first_checkpoint(store: &mut Store, disk: &mut dyn Disk, identity: &Identity) -> Result<(), Error> {
    let mut write = store.mvcc_mut().begin();
    write
        .meta_put(table::IDENTITY, &table::encode_identity(identity))
        .unwrap_or_else(|fault| panic!("{fault:?}: a fresh store is resident"));
    drop(write.finish());
    store.set_vital(table::encode_vital(identity, &ConfState::default()));
    drop(store.mvcc_mut().publish(0, 0));
    let done = store.checkpoint_begin().run(disk)?;
    store.checkpoint_end(done);
    Ok(())
}

/// The tables of `view`, as far as they can be read, and what cannot.
fn read_tables(view: &ReadView, store: &Store, disk: &mut dyn Disk) -> Result<(Tables, Option<String>), Error> {
    let mut restore = Restore::new(view);
    let mut unread: Option<engine::Error> = None;
    loop {
        match restore.step(usize::MAX) {
            Ok(Some(tables)) => {
                let mut tables = tables?;
                let Some(error) = unread else { return Ok((tables, None)) };
                if tables.conf_state.voters.is_empty() {
                    let (_, conf_state) = table::decode_vital(store.vital());
                    let Some(conf_state) = conf_state.filter(|state| !state.voters.is_empty()) else {
                        return Err(error.into());
                    };
                    tables.conf_state = conf_state;
                }
                return Ok((tables, Some(format!("a table cannot be read: {error}"))));
            }
            Ok(None) => {}
            Err(fault) => match load(disk, store.dir(), fault) {
                Ok(()) => {}
                Err(error) if is_damage(&error) => {
                    restore.pass_by();
                    unread.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            },
        }
    }
}

/// Whether a page cannot be read, and everything else can.
fn is_damage(error: &engine::Error) -> bool {
    matches!(error, engine::Error::Corrupt { .. } | engine::Error::Io { .. })
}
