//! Runs on: connection core.
//!
//! Snapshot: this member's newest state as the file that etcd would send, and its SHA-256 behind it.
//!
//! The file's length is announced with the first message and its first pages name what comes last, so the records are gone over twice:
//! once for the layout, once to send. Between two steps nothing is held but a revision ([`crate::floor`]) and about `PIECE_BYTES`: a client
//! that takes its time costs no more.
//!
//! Most clients write the file to a disk of this host, and sync it at its end: where that is the log's disk, puts would wait until all of
//! it is written. So the log's file system is written back as the file grows ([`engine::disk::FileSystem`]), and the stream waits for it.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/maintenance.go Snapshot`.

use std::rc::Rc;

use bytes::Bytes;
use engine::{ReadView, disk::FileSystem};
use h2::server::SendResponse;
use proto::etcdserverpb as pb;
use sha2::{Digest, Sha256};

use crate::{
    apply::restore::Restore,
    core::Core,
    cores,
    error::{Code, Error, Status},
    etcd_files::{
        bolt::writer::{FileWriter, Layout, PAGE_SIZE},
        content::Walk,
        state::State,
    },
    floor::Floor,
    rpc,
    wire::{
        grpc::{Messages, Sender, framed},
        method::Method,
    },
};

/// Bytes of the file in one message, as etcd's.
const MESSAGE_BYTES: usize = 32 << 10;
/// Bytes of the file that are made before they are sent. A node, or a record, may be longer.
const PIECE_BYTES: usize = 64 << 10;
/// Records that one step looks at: each may take a search in the key tree, and requests wait for a step's end.
const STEP_RECORDS: usize = 256;

/// Serves one Snapshot call.
pub async fn serve(core: Rc<Core>, mut messages: Messages, reply: SendResponse<Bytes>) {
    let Some(mut sender) = rpc::start(reply) else { return };
    let result = match messages.next().await {
        Ok(Some(body)) => match rpc::decode::<pb::SnapshotRequest>(body) {
            Ok(_) => Box::pin(send(&core, &mut sender)).await,
            Err(error) => Err(error),
        },
        Ok(None) => Err(Error::Undecodable("unexpected EOF".into())),
        Err(error) => Err(error),
    };
    let status = result.err().map(Status::from);
    core.counters.handled(Method::Snapshot, status.as_ref().map_or(Code::Ok, |status| status.code));
    rpc::drop_gone(sender.finish(status.as_ref()));
}

async fn send(core: &Core, sender: &mut Sender) -> Result<(), Error> {
    let began = core.clock.now();
    let (state, floor) = capture(core).await?;
    let layout = tokio::select! {
        biased;
        layout = measure(core, &state, &floor) => layout?,
        () = sender.closed() => return Err(Error::WatchCanceled),
    };
    let bytes = layout.bytes();
    tracing::info!(bytes, revision = state.revision, "sending database snapshot to client");
    let mut walk = Walk::new(&state, FileWriter::writing(layout));
    let mut blobs = Blobs { sender, waiting: Vec::new(), left: bytes, digest: Sha256::new() };
    let write_back_bytes = core.shared.limits.snapshot_write_back_bytes;
    let mut written_back_at = bytes;
    loop {
        let is_done = step(core, &floor, &mut walk).await?;
        blobs.send(walk.writer().take(), false).await?;
        if is_done {
            break;
        }
        if write_back_bytes > 0 && written_back_at - blobs.left >= write_back_bytes {
            written_back_at = blobs.left;
            write_back(&core.shared.log_file_system).await;
        }
    }
    // Both walks are over one state: another layout means that records were not what they were.
    let (rest, _) = walk.finish().finish().ok_or(Error::Corrupt)?;
    blobs.send(rest, true).await?;
    blobs.finish().await?;
    let took = core.clock.now() - began;
    tracing::info!(bytes, ?took, "successfully sent database snapshot to client");
    Ok(())
}

/// The newest state, and a floor for what of it is compacted.
async fn capture(core: &Core) -> Result<(State, Floor), Error> {
    loop {
        let view = core.view();
        match core.hold(view.compact_revision().max(0)) {
            Ok(floor) => return Ok((read_state(core, &view).await?, floor)),
            // Compacted between the two: the newest state is another one.
            Err(Error::Compacted) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

async fn read_state(core: &Core, view: &ReadView) -> Result<State, Error> {
    let mut restore = Restore::new(view);
    let tables = core.step_through(view, |_, budget| restore.step(budget)).await?;
    Ok(State::of(view, tables.map_err(|_damaged| Error::Corrupt)?))
}

async fn measure(core: &Core, state: &State, floor: &Floor) -> Result<Layout, Error> {
    let mut walk = Walk::new(state, FileWriter::measuring(PAGE_SIZE));
    while !step(core, floor, &mut walk).await? {}
    let (_, layout) = walk.finish().finish().expect("nothing was announced");
    Ok(layout)
}

/// Waits until what clients have written to the log's file system is on its medium.
async fn write_back(file_system: &FileSystem) {
    let file_system = file_system.clone();
    if let Some(Err(error)) = cores::beside(move || file_system.write_back()).await {
        tracing::debug!(%error, "what others wrote beside the log was not written back");
    }
}

/// One step on the newest view; whether it was the last one.
async fn step(core: &Core, floor: &Floor, walk: &mut Walk<'_>) -> Result<bool, Error> {
    let piece = |view: &ReadView, _| match walk.step(view, STEP_RECORDS, PIECE_BYTES) {
        Ok(done) => Ok(Some(done.is_some())),
        Err(fault) => Err([fault]),
    };
    let is_done = core.step_along(floor, piece).await?;
    // A client that takes all at once leaves the core no other pause.
    tokio::task::yield_now().await;
    Ok(is_done)
}

/// The file, message by message.
struct Blobs<'a> {
    sender: &'a mut Sender,
    waiting: Vec<u8>,
    /// Of the announced length.
    left: u64,
    digest: Sha256,
}

impl Blobs<'_> {
    /// Sends whole messages; what is left over, too, if these are the last bytes.
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
        self.sender.send(message).await.map_err(|gone| {
            tracing::debug!(%gone, "client went away inside a Snapshot");
            Error::WatchCanceled
        })
    }

    /// The checksum of all that was sent.
    async fn finish(mut self) -> Result<(), Error> {
        assert!(self.left == 0 && self.waiting.is_empty(), "all that was announced was sent");
        let digest = std::mem::take(&mut self.digest).finalize();
        self.send_one(Bytes::copy_from_slice(&digest)).await
    }
}
