//! Runs on: connection core.
//!
//! RangeStream: a Range whose keys come in chunks. Merged, the chunks are the unary response.
//!
//! Invariants: every chunk shows one and the same revision; header, count and `more` come in the last chunk only. Only
//! an answer without keys has a chunk without keys. The size of chunks adapts as in etcd: 10 keys first, twice as many
//! while a chunk is small, half as many when it is large.
//! **Source** etcd v3.7.1 `server/etcdserver/v3_server.go rangeStream`.

use bytes::Bytes;
use prost::Message;
use proto::{etcdserverpb as pb, mvccpb::KeyValue};

use super::{
    super::{
        admit::{Inbound, Outbound},
        call::{Answers, Requests},
        desk::Desk,
    },
    count,
    scan::{Piece, PieceBounds, Scan},
};
use crate::{
    error::Error,
    kv::{
        check, key_only, key_value, keys,
        range::{has_default_order, is_filtered},
    },
    protobuf::framed,
};

const FIRST_CHUNK_KEYS: usize = 10;
/// Bytes of records in one chunk at most, whatever their number. **Units** bytes.
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// Serves one RangeStream call.
///
/// **Errors** the static checks; a request that a stream does not support; a compacted or a future revision; a client
/// that left.
pub(in crate::api) async fn serve<Q: Requests, A: Answers>(
    desk: &Desk,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let request: pb::RangeRequest = inbound.only().await?;
    check::range(&request)?;
    if !has_default_order(&request) {
        return Err(Error::StreamSort);
    }
    if is_filtered(&request) {
        return Err(Error::StreamFilter);
    }
    let range = keys(&request.key, &request.range_end);
    let (scan, at, header_revision) = Scan::new(desk, &request, &range).await?;
    let total = count(desk, &scan, &range, at).await?;
    let mut last = pb::RangeResponse {
        header: Some(desk.header(header_revision)),
        count: i64::try_from(total).expect("counts fit"),
        ..Default::default()
    };
    if !request.count_only {
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        let left = limit.unwrap_or(usize::MAX).min(usize::try_from(total).expect("counts fit"));
        let mut chunks = Chunks { scan, keys_only: request.keys_only, keys_per_chunk: FIRST_CHUNK_KEYS, left };
        loop {
            let (kvs, is_last) = chunks.next(desk).await?;
            if is_last {
                last.kvs = kvs;
                last.more = limit.is_some_and(|limit| total > limit as u64);
                break;
            }
            let chunk = pb::RangeResponse { kvs, ..Default::default() };
            chunks.adapt(chunk.encoded_len(), desk.shared.limits.request_bytes_max);
            outbound.send(message(chunk)).await?;
        }
    }
    outbound.send(message(last)).await?;
    Ok(())
}

fn message(response: pb::RangeResponse) -> Bytes {
    framed(&pb::RangeStreamResponse { range_response: Some(response) })
}

/// The chunks of a scan.
struct Chunks {
    scan: Scan,
    keys_only: bool,
    keys_per_chunk: usize,
    /// Keys that are still to be sent.
    left: usize,
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
    async fn next(&mut self, desk: &Desk) -> Result<(Vec<KeyValue>, bool), Error> {
        let keys = self.keys_per_chunk.min(self.left).max(1);
        let mut piece = Piece::default();
        self.scan.piece(desk, PieceBounds { keys, bytes: CHUNK_BYTES_MAX }, &mut piece).await?;
        assert!(piece.len() <= self.left && (self.left == 0 || !piece.is_empty()), "a revision shows the same");
        self.left -= piece.len();
        let is_last = self.left == 0;
        let kvs = if self.keys_only {
            piece.iter().map(|(key, outline)| key_only(Bytes::copy_from_slice(key), outline)).collect()
        } else {
            self.scan.records(desk, &piece).await?.into_iter().map(key_value).collect()
        };
        Ok((kvs, is_last))
    }
}
