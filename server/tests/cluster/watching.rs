//! The watch streams of a member, as one connection core has them.

use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb::{WatchRequest, watch_request::RequestUnion};
use server::{
    header::Ids,
    watch::{
        encode::Responder,
        hub::{Bounds, Hub},
        stream::StreamId,
    },
};

use super::member::Member;

/// Bytes that a step of catching up reads.
const CATCH_UP_BYTES: usize = 4096;

/// A hub with room for little, so that watchers fall behind.
pub(crate) fn hub(revision: i64) -> Hub {
    let bounds = Bounds { stream_buffer_bytes_max: 4096, fragment_bytes_max: 2048, watchers_max: 1000 };
    Hub::new(bounds, Responder { ids: Ids::default(), raft_term: 0 }, revision)
}

impl Member {
    /// Opens a stream that is told of progress so often.
    pub(crate) fn open_watch(&mut self, progress: Duration) -> StreamId {
        self.hub.open_stream(self.clock.now(), progress)
    }

    pub(crate) fn ask_watch(&mut self, stream: StreamId, request: RequestUnion) {
        let view = self.shared.view.load();
        self.hub.on_request(stream, WatchRequest { request_union: Some(request) }, None, &*view);
    }

    /// The next bytes of the stream.
    pub(crate) fn take_watch(&mut self, stream: StreamId) -> Option<Bytes> {
        self.hub.take_output(stream).map(|piece| piece.bytes)
    }

    /// Whether no request may be sent now.
    pub(crate) fn is_watch_open(&self, stream: StreamId) -> bool {
        self.hub.is_open(stream)
    }

    pub(crate) fn is_watch_broken(&self, stream: StreamId) -> bool {
        self.hub.is_broken(stream)
    }

    pub(crate) fn close_watch(&mut self, stream: StreamId) {
        self.hub.close_stream(stream);
    }

    /// Makes a step for those who are behind. Returns whether there is more to do.
    pub(crate) fn catch_up(&mut self) -> bool {
        if !self.hub.wants_catch_up() {
            return false;
        }
        let view = self.shared.view.load();
        loop {
            let fault = match self.hub.catch_up(&*view, CATCH_UP_BYTES) {
                Ok(more) => return more,
                Err(fault) => fault,
            };
            if !self.load(fault) {
                // The page cannot be read. It is tried again with the next batch.
                self.hub.fail_open();
                return false;
            }
        }
    }
}
