//! Runs on: connection core.
//!
//! Members compare what they hold. The leader asks the others for their hashes, and has the CORRUPT alarm raised for
//! those that hold something else.
//!
//! - `judge`: what the hashes say
//!
//! Three tasks: the hash of each compaction is taken ([`crate::hashes`]); compactions are compared; and everything is,
//! where that is asked for. What a member finds at its start is in `boot::compare`.
//!
//! Invariants:
//! - Only hashes of the same revisions and the same compact revision are compared. Who does not answer, lags, or has
//!   not taken a hash is passed by, and never accused.
//! - An alarm is proposed by the leader of the term alone, and not again while it is active.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/corrupt.go`, `server.go` (`monitorKVHash`, `monitorCompactHash`).

use std::{rc::Rc, sync::atomic, time::Duration};

use tokio::task::spawn_local;

use self::judge::{Own, Verdict, corrupt, verdict};
use crate::{
    api::{
        desk::{Consistency, Desk},
        maintenance::hash_at,
    },
    apply::message::ToApply,
    error::Error,
    hashes::{Compaction, CompactionHash},
    peer::hashes::{Told, of_members},
    shared::Alarm,
};

mod judge;

/// How often it is looked whether a compaction that was applied is published.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// How often members are compared.
#[derive(Clone, Copy, Debug)]
pub struct Every {
    /// All that they hold; never if it is 0.
    pub whole: Duration,
    /// Their compactions, if their hashes are taken.
    pub compactions: Duration,
}

/// Begins what is asked for. It ends with the core.
pub fn spawn(desk: &Rc<Desk>, every: Every) {
    if desk.shared.limits.takes_hashes {
        spawn_local(take_hashes(Rc::clone(desk)));
        spawn_local(compare_compactions(Rc::clone(desk), every.compactions));
    }
    if !every.whole.is_zero() {
        let id = format!("{:x}", desk.shared.identity.member_id);
        tracing::info!("local-member-id" = id, interval = ?every.whole, "enabled corruption checking");
        spawn_local(compare_all(Rc::clone(desk), every.whole));
    }
}

/// Takes the hash of each compaction.
async fn take_hashes(desk: Rc<Desk>) {
    let hashes = &desk.shared.hashes;
    loop {
        let due = hashes.due().await;
        let hash = match take(&desk, due).await {
            Ok(hash) => hash,
            Err(error) => {
                tracing::warn!(revision = due.revision, %error, "the hash of a compaction cannot be taken");
                None
            }
        };
        hashes.take(due, hash);
    }
}

/// The hash of this compaction, which holds the sweep back; `None` if it is void meanwhile.
///
/// **Errors** damaged data.
async fn take(desk: &Desk, due: Compaction) -> Result<Option<u32>, Error> {
    let shared = &desk.shared;
    while desk.published().compact_revision() < due.revision {
        if !shared.hashes.is_wanted(due) {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let began = desk.clock.now();
    let mut hash = desk.published().hash_compaction(due.previous, due.revision);
    while shared.hashes.is_wanted(due) {
        let view = desk.published();
        // What was read is in memory in the view that missed it: that one is tried again.
        let step = loop {
            match hash.step(&view, shared.limits.scan_entries_per_turn) {
                Ok(step) => break step,
                Err(fault) => desk.load_all([fault]).await?,
            }
        };
        if let Some((hash, _)) = step {
            tracing::debug!(revision = due.revision, took = ?desk.since(began), "the hash of a compaction");
            return Ok(Some(hash));
        }
        drop(view);
        tokio::task::yield_now().await;
    }
    Ok(None)
}

fn leads(desk: &Desk) -> bool {
    desk.shared.raft.leader.load(atomic::Ordering::Acquire) == desk.shared.identity.member_id
}

/// What the other members say of `revision`.
async fn ask(desk: &Desk, revision: i64) -> Vec<Told> {
    let shared = &desk.shared;
    let members = shared.cluster.load().members.clone();
    let ids = (shared.identity.member_id, shared.identity.cluster_id);
    of_members(desk.others.as_ref(), &members, ids, revision, shared.limits.request_timeout).await
}

/// Has the alarm raised for member `id`, unless it is.
async fn raise(desk: &Desk, id: u64) {
    if !desk.shared.cluster.load().alarms.contains_key(&(id, Alarm::Corrupt as i32)) {
        desk.tell_apply(ToApply::Corrupt(id)).await;
    }
}

async fn compare_compactions(desk: Rc<Desk>, every: Duration) {
    let mut checked = 0;
    loop {
        tokio::time::sleep(every).await;
        if leads(&desk) {
            checked = compare_newest(&desk, checked).await;
        }
    }
}

/// Compares the newest compaction above `checked` of which all members know. Returns the newest one that all have.
async fn compare_newest(desk: &Desk, checked: i64) -> i64 {
    let id = desk.shared.identity.member_id;
    let hashes = desk.shared.hashes.above(checked);
    let mut newest = checked;
    for (position, own) in hashes.iter().enumerate() {
        let others = ask(desk, own.revision).await;
        if others.is_empty() {
            continue;
        }
        let CompactionHash { hash, compact_revision, revision } = *own;
        match verdict(id, own, &others) {
            Verdict::Equal => {
                tracing::info!(peers = others.len(), revision, compact_revision, "checked hash on whole cluster");
                newest = revision;
            }
            Verdict::Undecided => {
                tracing::warn!(revision, compact_revision, "not all peers have the hash of a compaction");
                continue;
            }
            Verdict::Corrupt(ids) => {
                let ids_shown: Vec<String> = ids.iter().map(|id| format!("{id:x}")).collect();
                let (peers, ids_shown) = (format!("{others:?}"), ids_shown.join(","));
                tracing::error!(
                    "leader-id" = %format!("{id:x}"),
                    "leader-revision" = revision,
                    "leader-compact-revision" = compact_revision,
                    "leader-hash" = hash,
                    peers,
                    "corrupt-ids" = ids_shown,
                    "Detected compaction hash mismatch"
                );
                for id in ids {
                    raise(desk, id).await;
                }
            }
        }
        tracing::info!("number-of-hashes-checked" = position + 1, "finished compaction hash check");
        break;
    }
    newest
}

async fn compare_all(desk: Rc<Desk>, every: Duration) {
    loop {
        tokio::time::sleep(every).await;
        if !leads(&desk) {
            continue;
        }
        if let Err(error) = compare(&desk).await {
            tracing::warn!(%error, "failed to check hash KV");
        }
    }
}

/// Compares all that the members hold.
///
/// **Errors** this member's own hash cannot be had, or it may lead no more.
async fn compare(desk: &Desk) -> Result<(), Error> {
    let own = async || {
        let (hash, compact_revision, revision) = hash_at(desk, 0).await?;
        Ok::<_, Error>(Own { hash, compact_revision, revision })
    };
    let before = own().await?;
    let others = ask(desk, before.revision).await;
    desk.view(Consistency::Linearizable).await?;
    let mut after = own().await?;
    after.revision = desk.published().revision().max(after.revision);
    if let Some((id, why)) = corrupt(desk.shared.identity.member_id, &before, &after, &others) {
        let (peer, leader, told) = (format!("{id:x}"), format!("{before:?} {after:?}"), format!("{others:?}"));
        tracing::warn!("follower-peer-id" = peer, leader, told, "{why}");
        raise(desk, id).await;
    }
    let answered = others.iter().filter(|told| told.hash.is_ok()).count();
    tracing::info!("number-of-peers-checked" = answered, "finished peer corruption check");
    Ok(())
}
