//! Runs on: connection core.
//!
//! Compact goes through the log. A physical compaction is answered when the sweep has dropped everything that it made
//! invisible, but for what readers hold. A physical one that finds its revision compacted waits for the compactions
//! before it in the same way.
//! **Source** etcd v3.7.1 `server/storage/mvcc/kvstore.go updateCompactRev`, `server/etcdserver/v3_server.go Compact`.

use bytes::Bytes;
use proto::{etcdserverpb as pb, internal::Request};

use super::{
    desk::{Desk, Draft},
    propose::propose,
};
use crate::{apply::outcome::Outcome, error::Error, protobuf::framed, quota::Purpose};

/// Answers Compact.
///
/// **Errors** a compacted or a future revision; the errors of proposing and of waiting for the sweep.
pub(super) async fn serve(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let Request::Compaction(request) = draft.request() else { unreachable!("asked for a compaction") };
    let is_physical = request.physical;
    let compacted = propose(desk, draft, Purpose::Other).await;
    if is_physical && matches!(compacted, Ok(_) | Err(Error::Compacted)) {
        desk.swept().await?;
    }
    let Outcome::Compaction { revision } = compacted? else { unreachable!("a compaction has one kind of outcome") };
    Ok(framed(&pb::CompactionResponse { header: Some(desk.header(revision)) }))
}
