//! Runs on: connection core.
//!
//! Snapshot sends this member's newest state as the file that etcd would send, followed by its SHA-256.
//!
//! The first message announces the length of the file (`database`).
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/maintenance.go Snapshot`.

use bytes::Bytes;
use proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
    database::{WriteBack, capture, measure, step},
    desk::Desk,
};
use crate::{
    error::Error,
    etcd_files::{bolt::writer::FileWriter, content::Walk},
    protobuf::framed,
};

/// Bytes of the file in one message, as etcd's.
const MESSAGE_BYTES: usize = 32 << 10;

/// Serves one Snapshot call.
///
/// **Errors** damaged data; a revision that was held for too long; a client that left.
pub(super) async fn serve<Q: Requests, A: Answers>(
    desk: &Desk,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let _: pb::SnapshotRequest = inbound.only().await?;
    Box::pin(send(desk, outbound)).await
}

async fn send<A: Answers>(desk: &Desk, outbound: &mut Outbound<'_, A>) -> Result<(), Error> {
    let began = desk.clock.now();
    let (state, floor) = capture(desk).await?;
    let layout = tokio::select! {
        biased;
        layout = measure(desk, &state, &floor) => layout?,
        () = outbound.left() => return Err(Error::Canceled),
    };
    let bytes = layout.bytes();
    tracing::info!(bytes, revision = state.revision, "sending database snapshot to client");
    let mut walk = Walk::new(&state, FileWriter::writing(layout));
    let version = state.tables.cluster.storage_version().unwrap_or_default();
    let mut blobs = Blobs { outbound, version, waiting: Vec::new(), left: bytes, digest: Sha256::new() };
    let mut write_back = WriteBack::default();
    loop {
        let is_done = step(desk, &floor, &mut walk).await?;
        let piece = walk.writer().take();
        let piece_bytes = piece.len();
        blobs.send(piece, false).await?;
        if is_done {
            break;
        }
        write_back.taken(desk, piece_bytes).await;
    }
    // Both walks are over the same state. A different layout means that the records have changed: they are damaged.
    let (rest, _) = walk.finish().finish().ok_or(Error::Corrupt)?;
    blobs.send(rest, true).await?;
    blobs.finish().await?;
    let took = desk.since(began);
    desk.counters.backups.observe_time(took);
    tracing::info!(bytes, ?took, "successfully sent database snapshot to client");
    Ok(())
}

/// The file, sent message by message.
struct Blobs<'a, 'd, A> {
    outbound: &'a mut Outbound<'d, A>,
    /// The storage version of the file.
    version: &'a str,
    waiting: Vec<u8>,
    /// Bytes of the announced length that are not yet sent. **Units** bytes.
    left: u64,
    digest: Sha256,
}

impl<A: Answers> Blobs<'_, '_, A> {
    /// Sends all full messages. Sends the remainder too, if these are the last bytes.
    async fn send(&mut self, bytes: Vec<u8>, is_last: bool) -> Result<(), Error> {
        let all = if self.waiting.is_empty() { bytes } else { [std::mem::take(&mut self.waiting), bytes].concat() };
        let mut rest = &all[..];
        while rest.len() >= MESSAGE_BYTES || is_last && !rest.is_empty() {
            let (blob, behind) = rest.split_at(rest.len().min(MESSAGE_BYTES));
            rest = behind;
            self.digest.update(blob);
            self.left = self.left.checked_sub(blob.len() as u64).ok_or(Error::Corrupt)?;
            self.send_one(Bytes::copy_from_slice(blob)).await?;
        }
        self.waiting = rest.to_vec();
        Ok(())
    }

    async fn send_one(&mut self, blob: Bytes) -> Result<(), Error> {
        let version = self.version.to_owned();
        let message = framed(&pb::SnapshotResponse { header: None, remaining_bytes: self.left, blob, version });
        Ok(self.outbound.send(message).await?)
    }

    /// Returns the checksum of everything that was sent.
    async fn finish(mut self) -> Result<(), Error> {
        assert!(self.left == 0 && self.waiting.is_empty(), "all that was announced was sent");
        let digest = std::mem::take(&mut self.digest).finalize();
        self.send_one(Bytes::copy_from_slice(&digest)).await
    }
}
