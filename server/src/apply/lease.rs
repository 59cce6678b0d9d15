//! Runs on: apply core.
//!
//! Leases inside an entry: grants, and revocations with the attached keys.

use std::time::Duration;

use bytes::Bytes;
use engine::{Fault, Mvcc, ReadView, Write, planted::is_planted};
use proto::etcdserverpb as pb;

use super::{outcome::Outcome, touch::resident};
use crate::{
    error::Error,
    lease::{self, Lessor},
};

/// Brings into memory what the deletion of the first `max` keys attached to a lease needs. Returns these keys.
///
/// **Errors** a page that is not resident.
pub(super) fn touch_attached(view: &ReadView, lease: i64, max: usize) -> Result<Vec<Bytes>, Fault> {
    let prefix = lease::attachment_prefix(lease);
    let mut keys = Vec::new();
    let mut cursor = view.meta_cursor(&prefix);
    while keys.len() < max
        && let Some((attachment, _)) = cursor.next()?
    {
        let key = attachment.slice(prefix.len()..);
        view.touch(&key)?;
        keys.push(key);
    }
    Ok(keys)
}

/// Brings into memory what the deletion of attached keys needs: of the next `max` after the attached key `last`.
/// Returns the last of these; `None` if no more follow.
///
/// **Errors** a page that is not resident.
pub(super) fn touch_more(
    view: &ReadView,
    lease: i64,
    last: Option<&Bytes>,
    max: usize,
) -> Result<Option<Bytes>, Fault> {
    let prefix = lease::attachment_prefix(lease);
    let mut cursor = match last {
        Some(last) => view.meta_cursor_after(&prefix, &lease::attachment_key(lease, last)),
        None => view.meta_cursor(&prefix),
    };
    let mut met = None;
    for _ in 0..max {
        let Some((attachment, _)) = cursor.next()? else { return Ok(None) };
        let key = attachment.slice(prefix.len()..);
        view.touch(&key)?;
        met = Some(key);
    }
    Ok(met)
}

/// Brings into memory what a revocation needs.
///
/// **Errors** a page that is not resident.
pub(super) fn touch_revoke(view: &ReadView, lease: i64) -> Result<(), Fault> {
    view.touch_meta(&lease::grant_key(lease))?;
    touch_attached(view, lease, usize::MAX).map(drop)
}

/// Grants a lease.
///
/// **Errors** the lease lasts too long, or it exists already.
pub(super) fn grant(
    lessor: &mut Lessor,
    mvcc: &mut Mvcc,
    request: &pb::LeaseGrantRequest,
    now: Duration,
) -> Result<Outcome, Error> {
    if request.ttl > lease::TTL_MAX_S {
        return Err(Error::LeaseTtlTooLarge);
    }
    let ttl = lessor.grant(request.id, request.ttl, now).ok_or(Error::LeaseExists)?;
    let mut write = mvcc.begin();
    resident(write.meta_put(&lease::grant_key(request.id), &lease::encode_grant(ttl)));
    Ok(Outcome::LeaseGrant { revision: write.finish().revision, id: request.id, ttl })
}

/// Takes down how much time leases had left.
pub(super) fn checkpoint(lessor: &mut Lessor, mvcc: &mut Mvcc, request: &pb::LeaseCheckpointRequest) {
    let mut write = mvcc.begin();
    for pb::LeaseCheckpoint { id, remaining_ttl } in &request.checkpoints {
        // One that is gone was revoked meanwhile.
        if let Some(grant) = lessor.checkpointed(*id, *remaining_ttl) {
            resident(write.meta_put(&lease::grant_key(*id), &grant.encode()));
        }
    }
    drop(write.finish());
}

/// Revokes a lease: `write` deletes its keys and the lease itself.
pub(super) fn revoke(write: &mut Write<'_>, lease: i64) {
    let max = if is_planted("a lease that leaves keys behind") { 0 } else { usize::MAX };
    for key in resident(touch_attached(write, lease, max)) {
        resident(write.delete(&key));
        resident(write.meta_delete(&lease::attachment_key(lease, &key)));
    }
    resident(write.meta_delete(&lease::grant_key(lease)));
}
