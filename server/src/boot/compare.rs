//! Runs on: core 0, before the member's threads.
//!
//! What a member with data compares before it serves, where `InitialCorruptCheck` is on: its hash with those of the
//! other members, at the revision that it has on disk. If one of them differs, this member does not start, as nobody
//! can tell whose data is right.
//!
//! Who does not answer, is behind, or has compacted to elsewhere is passed by.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/corrupt.go` (`InitialCheck`).

use std::time::Duration;

use consensus::{Identity, Member};
use engine::{Store, disk::Disk, load_for};

use super::error::Error;
use crate::{
    api::others::Others,
    peer::hashes::{PeerHash, Told, of_members},
};

/// Records that are hashed between two looks at how much is in memory.
const RECORDS: usize = 4096;

/// Nodes of trees that are looked at for eviction at once.
const NODES: usize = 4096;

/// Compares `store` with what the other `members` hold. Each has `wait` to answer.
///
/// **Errors** they differ; damaged data.
pub async fn check(
    store: &mut Store,
    disk: &mut dyn Disk,
    (identity, members): (Identity, &[Member]),
    others: &dyn Others,
    wait: Duration,
) -> Result<(), Error> {
    let id = format!("{:x}", identity.member_id);
    tracing::info!("local-member-id" = id, timeout = ?wait, "starting initial corruption check");
    let (hash, compact_revision) = hash_of(store, disk).await?;
    let revision = store.mvcc().view().revision();
    let own = PeerHash { hash, compact_revision, revision };
    let ids = (identity.member_id, identity.cluster_id);
    let told = of_members(others, members, ids, revision, wait).await;
    let differing = differing(&own, &told);
    if !differing.is_empty() {
        let (peers, own) = (format!("{differing:?}"), format!("{own:?}"));
        tracing::error!("local-member-id" = id, own, peers, "found different hash values from remote peer");
        return Err(Error::Inconsistent { member: id });
    }
    tracing::info!("local-member-id" = id, "initial corruption checking passed; no corruption");
    Ok(())
}

/// The hash of everything, and its compact revision.
async fn hash_of(store: &mut Store, disk: &mut dyn Disk) -> Result<(u32, i64), Error> {
    let (dir, view) = (store.dir().to_path_buf(), store.mvcc().view());
    let mut hash = view.hash_kv(view.revision());
    drop(view);
    loop {
        let view = store.mvcc().view();
        if let Some(hashed) = load_for(disk, &dir, || hash.step(&view, RECORDS))? {
            return Ok(hashed);
        }
        let at = (view.applied_index(), view.applied_term());
        drop(view);
        store.balance();
        while store.wants_eviction() && store.evict(NODES) {
            drop(store.mvcc_mut().publish(at.0, at.1));
        }
        // Who asks meanwhile is told that this member does not serve yet.
        tokio::task::yield_now().await;
    }
}

/// Those who hold something else.
fn differing<'a>(own: &PeerHash, told: &'a [Told]) -> Vec<&'a Told> {
    let differs = |hash: &PeerHash| hash.compact_revision == own.compact_revision && hash.hash != own.hash;
    told.iter().filter(|told| told.hash.as_ref().is_ok_and(differs)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_differ_who_have_compacted_to_the_same_revision() {
        let own = PeerHash { hash: 7, compact_revision: 3, revision: 9 };
        let told =
            |id, hash, compact_revision| Told { id, hash: Ok(PeerHash { hash, compact_revision, revision: 12 }) };
        let silent = Told { id: 4, hash: Err("mvcc: required revision is a future revision".to_owned()) };
        let all = [told(2, 7, 3), told(3, 6, 4), silent, told(5, 6, 3)];
        assert_eq!(differing(&own, &all), [&all[3]]);
    }
}
