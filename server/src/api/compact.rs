//! Runs on: connection core.
//!
//! Compact goes through the log. A physical compaction is answered when the sweep has dropped everything that it made
//! invisible.

use bytes::Bytes;
use proto::{etcdserverpb as pb, internal::Request};

use super::desk::{Desk, Draft};
use crate::{apply::outcome::Outcome, error::Error, protobuf::framed, quota::Purpose};

/// Answers Compact.
///
/// **Errors** a compacted or a future revision; the errors of proposing and of waiting for the sweep.
pub(super) async fn serve(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let Request::Compaction(request) = draft.request() else { unreachable!("asked for a compaction") };
    let physical = request.physical.then_some(request.revision);
    let outcome = desk.propose(draft, Purpose::Other).await?;
    let Outcome::Compaction { revision } = outcome else { unreachable!("it was compacted, not {outcome:?}") };
    let header = Some(desk.header(revision));
    if let Some(compacted) = physical {
        desk.swept(compacted).await?;
    }
    Ok(framed(&pb::CompactionResponse { header }))
}
