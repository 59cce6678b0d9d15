//! Runs on: connection core.
//!
//! Put and DeleteRange: this file checks them, apply executes them.
//!
//! A put's permission is checked before it comes here, in `admit::permit`.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/key.go`.

use bytes::Bytes;
use proto::{etcdserverpb as pb, internal::Request};

use super::{
    desk::{Desk, Draft},
    propose::{bring_in, propose_shown},
};
use crate::{
    apply::outcome::Outcome, error::Error, header::framed_under, kv::check, protobuf::framed_answer, quota::Purpose,
};

/// Answers Put.
///
/// **Errors** the static checks; those of proposing.
pub(super) async fn put(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let Request::Put(request) = draft.request() else { unreachable!("asked for a put") };
    check::put(request)?;
    bring_in(desk, &draft).await?;
    let outcome = desk.send(draft, Purpose::Grow).await?;
    let Outcome::Put { revision, previous } = outcome else { unreachable!("a put has been done, not {outcome:?}") };
    let prev_kv = previous.map(|previous| *previous);
    Ok(framed_under(&desk.header_bytes(revision), &pb::PutResponse { header: None, prev_kv }))
}

/// Answers DeleteRange.
///
/// **Errors** the static checks; the errors of proposing.
pub(super) async fn delete_range(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let Request::DeleteRange(request) = draft.request() else { unreachable!("asked for a delete") };
    check::delete(request)?;
    let shown = propose_shown(desk, draft, Purpose::Other, |outcome| {
        let Outcome::DeleteRange(mut response) = outcome else { unreachable!("keys were deleted, not {outcome:?}") };
        desk.complete(&mut response.header);
        framed_answer(&*response)
    });
    // Boxed, or every call would be larger.
    Box::pin(shown).await
}
