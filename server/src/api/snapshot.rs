//! Runs on: connection core.
//!
//! Snapshot sends this member's newest state as the file that etcd would send, followed by its SHA-256.
//!
//! The first message announces the length of the file, and the first pages of the file name what comes last. So there
//! are two walks over the records: one for the layout, one to send. Between two steps only a revision is held
//! ([`crate::floor`]) and about `PIECE_BYTES`. So a slow client costs no more than a fast one.
//!
//! Most clients write the file to a disk of this host and sync it at the end. If that is the log's disk, puts would
//! wait until all of the file is written. So the log's file system is written back as the file grows
//! ([`engine::disk::FileSystem`]), and the stream waits for it.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/maintenance.go Snapshot`.

use bytes::Bytes;
use engine::{ReadView, disk::FileSystem};
use proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
    desk::{Consistency, Desk},
};
use crate::{
    apply::restore::Restore,
    error::Error,
    etcd_files::{
        bolt::writer::{FileWriter, Layout, PAGE_SIZE},
        content::Walk,
        state::State,
    },
    floor::Floor,
    protobuf::framed,
};

/// Bytes of the file in one message, as etcd's.
const MESSAGE_BYTES: usize = 32 << 10;
/// Bytes of the file that are made before they are sent. A single node or record may be longer.
const PIECE_BYTES: usize = 64 << 10;
/// Records that one step looks at. Each may take a search in the key tree, and other requests wait until the step ends.
const STEP_RECORDS: usize = 256;

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
    let mut blobs = Blobs { outbound, waiting: Vec::new(), left: bytes, digest: Sha256::new() };
    let write_back_bytes = desk.shared.limits.snapshot_write_back_bytes;
    let mut written_back_at = bytes;
    loop {
        let is_done = step(desk, &floor, &mut walk).await?;
        blobs.send(walk.writer().take(), false).await?;
        if is_done {
            break;
        }
        if write_back_bytes > 0 && written_back_at - blobs.left >= write_back_bytes {
            written_back_at = blobs.left;
            write_back(&desk.shared.log_file_system).await;
        }
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

/// Takes the newest state, and a floor that keeps it readable.
async fn capture(desk: &Desk) -> Result<(State, Floor), Error> {
    loop {
        let view = desk.view(Consistency::Serializable).await?;
        match desk.hold(view.compact_revision().max(0)) {
            Ok(floor) => return Ok((read_state(desk, &view).await?, floor)),
            // A compaction came between the two. The newest state has changed.
            Err(Error::Compacted) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

async fn read_state(desk: &Desk, view: &ReadView) -> Result<State, Error> {
    let mut restore = Restore::new(view);
    let tables = desk.step_through(view, |_, budget| restore.step(budget)).await?;
    Ok(State::of(view, tables.map_err(|_damaged| Error::Corrupt)?))
}

async fn measure(desk: &Desk, state: &State, floor: &Floor) -> Result<Layout, Error> {
    let mut walk = Walk::new(state, FileWriter::measuring(PAGE_SIZE));
    while !step(desk, floor, &mut walk).await? {}
    let (_, layout) = walk.finish().finish().expect("nothing was announced");
    Ok(layout)
}

/// Waits until what clients have written to the log's file system is on its medium.
async fn write_back(file_system: &FileSystem) {
    let file_system = file_system.clone();
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || file_system.write_back()).await {
        tracing::debug!(%error, "what others wrote beside the log was not written back");
    }
}

/// Makes one step on the newest view. Returns whether it was the last one.
async fn step(desk: &Desk, floor: &Floor, walk: &mut Walk<'_>) -> Result<bool, Error> {
    let piece = |view: &ReadView, _| match walk.step(view, STEP_RECORDS, PIECE_BYTES) {
        Ok(done) => Ok(Some(done.is_some())),
        Err(fault) => Err([fault]),
    };
    let is_done = desk.step_along(floor, piece).await?;
    // A client that takes everything at once gives the core no other pause.
    tokio::task::yield_now().await;
    Ok(is_done)
}

/// The file, sent message by message.
struct Blobs<'a, 'd, A> {
    outbound: &'a mut Outbound<'d, A>,
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
        let version = crate::STORAGE_VERSION.to_owned();
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
