//! Runs on: connection core.
//!
//! RangeStream: a Range whose keys come in chunks; merged, the chunks are the unary response.
//!
//! Invariants: every chunk answers for one revision; header, count and `more` come in the last chunk only.
//! Chunks adapt as etcd's: 10 keys first, doubled while small, halved when large.
//! **Source** etcd v3.7.1 `server/etcdserver/v3_server.go rangeStream`.

use std::rc::Rc;

use bytes::Bytes;
use h2::server::SendResponse;
use prost::Message;
use proto::{etcdserverpb as pb, mvccpb::KeyValue};

use super::{
    check, key_only, key_value, keys, range,
    scan::{Batch, Bounds, Scan},
};
use crate::{
    core::Core,
    error::{Code, Error, Status},
    rpc,
    wire::{
        grpc::{Messages, Sender, framed},
        method::Method,
    },
};

const FIRST_CHUNK_KEYS: usize = 10;
/// Records of one chunk, whatever their number. **Units** bytes.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// Serves one RangeStream call.
pub async fn serve(core: Rc<Core>, mut messages: Messages, reply: SendResponse<Bytes>) {
    let Some(mut sender) = rpc::start(reply) else { return };
    let result = match messages.next().await {
        Ok(Some(body)) => match rpc::decode(body) {
            Ok(request) => send(&core, request, &mut sender).await,
            Err(error) => Err(error),
        },
        Ok(None) => Err(Error::Undecodable("unexpected EOF".into())),
        Err(error) => Err(error),
    };
    let status = result.err().map(Status::from);
    core.counters.handled(Method::RangeStream, status.as_ref().map_or(Code::Ok, |status| status.code));
    rpc::drop_gone(sender.finish(status.as_ref()));
}

async fn send(core: &Core, request: pb::RangeRequest, sender: &mut Sender) -> Result<(), Error> {
    check::range(&request)?;
    if !range::has_default_order(&request) {
        return Err(Error::StreamSort);
    }
    if range::is_filtered(&request) {
        return Err(Error::StreamFilter);
    }
    if !request.serializable {
        core.read_index()?;
    }
    core.counters.ranges.add(1);
    let range = keys(&request.key, &request.range_end);
    let (scan, at, header_revision) = Scan::new(core, &request, &range)?;
    let total = range::count(core, &scan, &range, at).await?;
    let mut last = pb::RangeResponse {
        header: Some(core.header(header_revision)),
        count: i64::try_from(total).expect("counts fit"),
        ..Default::default()
    };
    if !request.count_only {
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        let mut chunks = Chunks { scan, keys_only: request.keys_only, keys_per_chunk: FIRST_CHUNK_KEYS, left: limit };
        loop {
            let (kvs, is_last) = chunks.next(core).await?;
            if is_last {
                last.kvs = kvs;
                last.more = limit.is_some_and(|limit| total > limit as u64);
                break;
            }
            let chunk = pb::RangeResponse { kvs, ..Default::default() };
            chunks.adapt(chunk.encoded_len(), core.shared.limits.request_bytes_max);
            send_one(sender, chunk).await?;
        }
    }
    send_one(sender, last).await
}

async fn send_one(sender: &mut Sender, response: pb::RangeResponse) -> Result<(), Error> {
    let message = framed(&pb::RangeStreamResponse { range_response: Some(response) });
    sender.send(message).await.map_err(|gone| {
        tracing::debug!(%gone, "client went away inside a RangeStream");
        Error::WatchCanceled
    })
}

/// Chunks of a scan.
struct Chunks {
    scan: Scan,
    keys_only: bool,
    keys_per_chunk: usize,
    /// Keys that the limit still lets through.
    left: Option<usize>,
}

impl Chunks {
    fn adapt(&mut self, chunk_bytes: usize, request_bytes_max: usize) {
        if chunk_bytes < request_bytes_max / 2 {
            self.keys_per_chunk = self.keys_per_chunk.saturating_mul(2);
        } else if chunk_bytes > request_bytes_max * 2 {
            self.keys_per_chunk = (self.keys_per_chunk / 2).max(1);
        }
    }

    /// The next chunk, and whether it is the last.
    async fn next(&mut self, core: &Core) -> Result<(Vec<KeyValue>, bool), Error> {
        let keys = self.keys_per_chunk.min(self.left.unwrap_or(usize::MAX));
        let mut batch = Batch::default();
        self.scan.batch(core, Bounds { keys, bytes: CHUNK_BYTES_MAX }, &mut batch).await?;
        self.left = self.left.map(|left| left - batch.len());
        let is_last = batch.is_last || self.left == Some(0);
        let kvs = if self.keys_only {
            batch.iter().map(|(key, outline)| key_only(Bytes::copy_from_slice(key), outline)).collect()
        } else {
            self.scan.records(core, &batch).await?.into_iter().map(key_value).collect()
        };
        Ok((kvs, is_last))
    }
}
