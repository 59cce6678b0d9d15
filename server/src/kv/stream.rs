//! Runs on: connection core.
//!
//! RangeStream: a Range whose keys come in chunks; merged, the chunks are the unary response.
//!
//! Invariants: every chunk answers for one revision; header, count and `more` come in the last chunk only.
//! Chunks adapt as etcd's: 10 keys first, doubled while small, halved when large.
//! **Source** etcd v3.7.1 `server/etcdserver/v3_server.go rangeStream`.

use std::rc::Rc;

use bytes::Bytes;
use engine::{Cursor, Fault, KeyRange, ReadView, Version};
use h2::server::SendResponse;
use prost::Message;
use proto::{etcdserverpb as pb, mvccpb::KeyValue};

use super::{check, key_only, key_value, keys, range};
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
    let view = core.view();
    let at = range::read_at(&view, request.revision)?;
    let header_revision = view.revision();
    let range = keys(&request.key, &request.range_end);
    let mut count = view.counter(&range, at);
    let total = core.step_through(&view, |_, budget| count.step(budget)).await?;
    let mut last = pb::RangeResponse {
        header: Some(core.header(header_revision)),
        count: i64::try_from(total).expect("counts fit"),
        ..Default::default()
    };
    if !request.count_only {
        let limit = usize::try_from(request.limit).unwrap_or(0);
        drop(view);
        let mut chunks = Chunks::new(core.view().as_ref(), request, range, at, limit);
        loop {
            // Each chunk is read on the newest view: what a revision shows does not change, and no old view is held while
            // a slow client takes its time.
            let view = core.view();
            if at < view.compact_revision() {
                return Err(Error::Compacted);
            }
            let kvs = chunks.next(core, &view).await?;
            if chunks.is_done {
                last.kvs = kvs;
                last.more = chunks.more;
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

struct Chunks {
    request: pb::RangeRequest,
    range: KeyRange,
    at: i64,
    cursor: Cursor,
    waiting: Option<Version>,
    last_key: Option<Bytes>,
    keys_per_chunk: usize,
    left: Option<usize>,
    is_done: bool,
    more: bool,
}

impl Chunks {
    fn new(view: &ReadView, request: pb::RangeRequest, range: KeyRange, at: i64, limit: usize) -> Self {
        let cursor = view.cursor(&range, at);
        let left = (limit > 0).then_some(limit);
        let (waiting, last_key, is_done, more) = (None, None, false, false);
        let keys_per_chunk = FIRST_CHUNK_KEYS;
        Self { request, range, at, cursor, waiting, last_key, keys_per_chunk, left, is_done, more }
    }

    fn adapt(&mut self, chunk_bytes: usize, request_bytes_max: usize) {
        if chunk_bytes < request_bytes_max / 2 {
            self.keys_per_chunk = self.keys_per_chunk.saturating_mul(2);
        } else if chunk_bytes > request_bytes_max * 2 {
            self.keys_per_chunk = (self.keys_per_chunk / 2).max(1);
        }
    }

    async fn next(&mut self, core: &Core, view: &std::sync::Arc<ReadView>) -> Result<Vec<KeyValue>, Error> {
        self.cursor = match &self.last_key {
            Some(last) => view.cursor_after(&self.range, self.at, last),
            None => view.cursor(&self.range, self.at),
        };
        let mut kvs = Vec::new();
        core.step_through(view, |view, budget| self.fill(view, budget, &mut kvs)).await?;
        Ok(kvs)
    }

    fn fill(&mut self, view: &ReadView, budget: usize, kvs: &mut Vec<KeyValue>) -> Result<Option<()>, Fault> {
        for _ in 0..budget {
            if kvs.len() >= self.keys_per_chunk {
                return Ok(Some(()));
            }
            let version = match self.waiting.take() {
                Some(version) => version,
                None => match self.cursor.next()? {
                    Some(version) => version,
                    None => {
                        self.is_done = true;
                        return Ok(Some(()));
                    }
                },
            };
            if self.left == Some(0) {
                (self.is_done, self.more) = (true, true);
                return Ok(Some(()));
            }
            let kv = if self.request.keys_only {
                key_only(&version)
            } else {
                match view.record(version.revision) {
                    Ok(record) => key_value(record.expect("a live version has its record")),
                    Err(fault) => {
                        self.waiting = Some(version);
                        return Err(fault);
                    }
                }
            };
            self.last_key = Some(kv.key.clone());
            self.left = self.left.map(|left| left - 1);
            kvs.push(kv);
        }
        Ok(None)
    }
}
