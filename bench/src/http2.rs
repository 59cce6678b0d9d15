//! One HTTP/2 connection seen from the client, as a state machine: bytes in, bytes out, calls opened and ended.
//!
//! It exists because the generator must cost less than what it measures. The h2 crate's client, coalesced and with
//! mimalloc, took 8.5 us of CPU a put at 100 connections x 10 in flight and 25 us at 100 x 1 against stock etcd (2
//! cores, 2026-11-21).
//!
//! - `out` holds what the socket has not taken yet; whoever owns the socket writes it, once for everything gathered.
//! - `streams` holds exactly the calls that have begun and not ended; each ends in exactly one [`Sink::closed`].
//! - `backlog` holds what flow control held back, in order per stream; no call is opened while it is not empty.
//! - An error is final: the connection must be dropped and its calls taken with [`Session::abandon`].
//!
//! Deliberately absent: a clock, sockets, priorities, server push, and sending pings (a server may punish them).

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hasher},
};

use crate::{
    error::Error,
    hpack::{Decoder, Encoder, Fate, Path},
    messages::MessageReader,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD_BYTES: usize = 9;
/// What every peer accepts, and the most we announce.
const FRAME_BYTES_DEFAULT: usize = 16_384;
const WINDOW_DEFAULT: i64 = 65_535;
const WINDOW_MAX: i64 = (1 << 31) - 1;
/// Wide enough that a reply never waits for our window update on a local network.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
const HEADER_BLOCK_BYTES_MAX: usize = 64 << 10;
const STREAM_ID_MAX: u32 = (1 << 31) - 1;
/// Above this no call is opened; a peer that makes us answer this much more without reading is given up.
const OUT_BYTES_HIGH: usize = 256 << 10;
const OUT_BYTES_MAX: usize = 64 << 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const HAS_PRIORITY: u8 = 0x20;
const CANCEL: u32 = 8;

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Ok,
    /// gRPC status other than OK; the message is percent-encoded.
    Status {
        code: u32,
        message: Vec<u8>,
    },
    /// The server is not a gRPC server, or broke its protocol.
    NotGrpc {
        http_status: u32,
    },
    Reset {
        code: u32,
    },
    /// The connection went away, for the reason given.
    Lost {
        reason: String,
    },
    TimedOut,
}

/// Who takes what arrives. `C` is what the caller attached to the call.
pub(crate) trait Sink<C> {
    /// One whole gRPC message of a call that keeps its messages; of others, an empty slice for each.
    fn message(&mut self, call: &mut C, message: &[u8]);
    /// The call is over. Called once a call, after its last message.
    fn closed(&mut self, call: C, end: End);
}

/// How to open a call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) path: Path,
    /// No further message will follow the first.
    pub(crate) is_unary: bool,
    /// The replies' bytes are wanted, not only their arrival.
    pub(crate) keeps_messages: bool,
}

/// Stream ids are already unique and spread; one multiplication makes their low bits differ.
#[derive(Default)]
struct StreamIdHasher(u64);

impl Hasher for StreamIdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u32 keys are hashed");
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

struct Stream<C> {
    call: C,
    is_unary: bool,
    http_status: u32,
    send_window: i64,
    received_bytes: u32,
    reader: MessageReader,
}

struct Backlogged {
    id: u32,
    bytes: Vec<u8>,
    sent_bytes: usize,
    ends_stream: bool,
}

struct HeaderAssembly {
    id: u32,
    ends_stream: bool,
    block: Vec<u8>,
}

/// The protocol state of one connection.
pub(crate) struct Session<C> {
    pub(crate) out: Vec<u8>,
    carry: Vec<u8>,
    encoder: Encoder,
    decoder: Decoder,
    fate: Fate,
    assembly: Option<HeaderAssembly>,
    streams: HashMap<u32, Stream<C>, BuildHasherDefault<StreamIdHasher>>,
    id_next: u32,
    id_max: u32,
    backlog: VecDeque<Backlogged>,
    is_ready: bool,
    is_going_away: bool,
    peer_streams_max: usize,
    peer_frame_bytes_max: usize,
    peer_stream_window: i64,
    send_window: i64,
    received_bytes: u32,
}

impl<C> Session<C> {
    /// A session whose `out` already holds the preface.
    /// A session for at most `calls_max` calls.
    pub(crate) fn new(authority: &str, calls_max: u32) -> Session<C> {
        let mut session = Session {
            out: Vec::with_capacity(4096),
            carry: Vec::new(),
            encoder: Encoder::new(authority),
            decoder: Decoder::new(),
            fate: Fate::default(),
            assembly: None,
            streams: HashMap::default(),
            id_next: 1,
            id_max: calls_max.saturating_mul(2).min(STREAM_ID_MAX),
            backlog: VecDeque::new(),
            is_ready: false,
            is_going_away: false,
            peer_streams_max: usize::MAX,
            peer_frame_bytes_max: FRAME_BYTES_DEFAULT,
            peer_stream_window: WINDOW_DEFAULT,
            send_window: WINDOW_DEFAULT,
            received_bytes: 0,
        };
        session.out.extend_from_slice(PREFACE);
        session.frame_head(12, SETTINGS, 0, 0);
        // ENABLE_PUSH = 0, INITIAL_WINDOW_SIZE.
        session.out.extend_from_slice(&[0, 2, 0, 0, 0, 0, 0, 4]);
        session.out.extend_from_slice(&STREAM_WINDOW_BYTES.to_be_bytes());
        session.window_update(0, CONNECTION_WINDOW_BYTES - 65_535);
        session
    }

    /// The server's SETTINGS have arrived: its limits are known.
    pub(crate) fn is_ready(&self) -> bool {
        self.is_ready
    }

    /// Nothing more can be opened here; once `calls` is 0 the connection is to be replaced.
    pub(crate) fn is_spent(&self) -> bool {
        self.is_going_away || self.id_next > self.id_max
    }

    /// Calls begun and not ended.
    pub(crate) fn calls(&self) -> usize {
        self.streams.len()
    }

    /// Whether a call may be opened now without waiting for the peer.
    pub(crate) fn can_open(&self) -> bool {
        self.is_ready
            && !self.is_spent()
            && self.backlog.is_empty()
            && self.streams.len() < self.peer_streams_max
            && self.out.len() < OUT_BYTES_HIGH
    }

    /// Begins a call with its first message. The caller has asked `can_open`, except while setting a connection up.
    pub(crate) fn open(&mut self, opening: Opening, message: &[u8], call: C) -> u32 {
        assert!(self.is_ready && !self.is_spent());
        let id = self.id_next;
        self.id_next += 2;
        let head_at = self.out.len();
        self.frame_head(0, HEADERS, END_HEADERS, id);
        self.encoder.request(opening.path, &mut self.out);
        let block_bytes = self.out.len() - head_at - FRAME_HEAD_BYTES;
        assert!(block_bytes < FRAME_BYTES_DEFAULT);
        self.out[head_at..head_at + 3].copy_from_slice(&frame_length(block_bytes));
        let stream = Stream {
            call,
            is_unary: opening.is_unary,
            http_status: 0,
            send_window: self.peer_stream_window,
            received_bytes: 0,
            reader: MessageReader::new(opening.keeps_messages),
        };
        let displaced = self.streams.insert(id, stream);
        assert!(displaced.is_none());
        self.send(id, message, opening.is_unary);
        id
    }

    /// Sends one more message on an open call. Answers false when that call has ended.
    pub(crate) fn send(&mut self, id: u32, message: &[u8], ends_stream: bool) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        let bytes = message.len() + 5;
        let window = i64::try_from(bytes).expect("a message is far below 2^63 bytes");
        let length = u32::try_from(message.len()).expect("requests are limited to far below 4 GiB");
        let is_direct = self.backlog.is_empty()
            && window <= self.send_window.min(stream.send_window)
            && bytes <= self.peer_frame_bytes_max;
        if is_direct {
            self.send_window -= window;
            stream.send_window -= window;
            self.frame_head(bytes, DATA, if ends_stream { END_STREAM } else { 0 }, id);
            self.out.push(0);
            self.out.extend_from_slice(&length.to_be_bytes());
            self.out.extend_from_slice(message);
            return true;
        }
        let mut held = Vec::with_capacity(bytes);
        held.push(0);
        held.extend_from_slice(&length.to_be_bytes());
        held.extend_from_slice(message);
        self.backlog.push_back(Backlogged { id, bytes: held, sent_bytes: 0, ends_stream });
        self.send_backlog();
        true
    }

    /// What the caller attached to a call that has not ended.
    pub(crate) fn call_mut(&mut self, id: u32) -> Option<&mut C> {
        self.streams.get_mut(&id).map(|stream| &mut stream.call)
    }

    /// Takes bytes off the wire.
    ///
    /// **Errors**: the peer broke the protocol; the session is then useless.
    pub(crate) fn receive(&mut self, bytes: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        if self.carry.is_empty() {
            let used_bytes = self.frames(bytes, sink)?;
            self.carry.extend_from_slice(&bytes[used_bytes..]);
        } else {
            let mut joined = std::mem::take(&mut self.carry);
            joined.extend_from_slice(bytes);
            let used_bytes = self.frames(&joined, sink)?;
            joined.drain(..used_bytes);
            self.carry = joined;
        }
        assert!(self.carry.len() < FRAME_HEAD_BYTES + FRAME_BYTES_DEFAULT);
        if self.out.len() > OUT_BYTES_MAX {
            return Err(Error::Http2 { reason: "peer makes us answer but does not read" });
        }
        Ok(())
    }

    /// Cancels every call for which `is_late` holds.
    pub(crate) fn expire(&mut self, is_late: impl Fn(&C) -> bool, sink: &mut impl Sink<C>) {
        let late: Vec<u32> = self.streams.iter().filter(|(_, s)| is_late(&s.call)).map(|(id, _)| *id).collect();
        for id in late {
            self.frame_head(4, RST_STREAM, 0, id);
            self.out.extend_from_slice(&CANCEL.to_be_bytes());
            self.end(id, End::TimedOut, sink);
        }
    }

    /// Ends every call because the connection is gone.
    pub(crate) fn abandon(&mut self, reason: &str, sink: &mut impl Sink<C>) {
        for (_, stream) in self.streams.drain() {
            sink.closed(stream.call, End::Lost { reason: reason.to_owned() });
        }
        self.is_going_away = true;
    }

    fn end(&mut self, id: u32, end: End, sink: &mut impl Sink<C>) {
        if let Some(stream) = self.streams.remove(&id) {
            sink.closed(stream.call, end);
        }
        if !self.backlog.is_empty() {
            self.backlog.retain(|held| held.id != id);
        }
    }

    fn frame_head(&mut self, bytes: usize, kind: u8, flags: u8, id: u32) {
        let [a, b, c] = frame_length(bytes);
        let [i, j, k, l] = id.to_be_bytes();
        self.out.extend_from_slice(&[a, b, c, kind, flags, i, j, k, l]);
    }

    fn window_update(&mut self, id: u32, bytes: u32) {
        assert!(bytes > 0);
        self.frame_head(4, WINDOW_UPDATE, 0, id);
        self.out.extend_from_slice(&bytes.to_be_bytes());
    }

    /// Sends as much of the backlog as the windows allow. A stream without window does not hold up the others.
    fn send_backlog(&mut self) {
        let mut backlog = std::mem::take(&mut self.backlog);
        backlog.retain_mut(|held| {
            let Some(stream) = self.streams.get_mut(&held.id) else { return false };
            while held.sent_bytes < held.bytes.len() {
                let window = usize::try_from(self.send_window.min(stream.send_window)).unwrap_or(0);
                let bytes = (held.bytes.len() - held.sent_bytes).min(window).min(self.peer_frame_bytes_max);
                if bytes == 0 {
                    return true;
                }
                let is_last = held.sent_bytes + bytes == held.bytes.len();
                let flags = if is_last && held.ends_stream { END_STREAM } else { 0 };
                let [a, b, c] = frame_length(bytes);
                let [i, j, k, l] = held.id.to_be_bytes();
                self.out.extend_from_slice(&[a, b, c, DATA, flags, i, j, k, l]);
                self.out.extend_from_slice(&held.bytes[held.sent_bytes..held.sent_bytes + bytes]);
                held.sent_bytes += bytes;
                let window_bytes = i64::try_from(bytes).expect("at most a frame");
                self.send_window -= window_bytes;
                stream.send_window -= window_bytes;
            }
            false
        });
        assert!(self.backlog.is_empty());
        self.backlog = backlog;
    }

    /// Takes all whole frames; answers how many bytes they were.
    fn frames(&mut self, bytes: &[u8], sink: &mut impl Sink<C>) -> Result<usize, Error> {
        let mut at = 0;
        while let Some(head) = bytes.get(at..at + FRAME_HEAD_BYTES) {
            let payload_bytes = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            if payload_bytes > FRAME_BYTES_DEFAULT {
                return Err(Error::Http2 { reason: "frame larger than we allow" });
            }
            let payload_at = at + FRAME_HEAD_BYTES;
            let Some(payload) = bytes.get(payload_at..payload_at + payload_bytes) else { break };
            let id = u32_at(head, 5)? & STREAM_ID_MAX;
            self.frame(head[3], head[4], id, payload, sink)?;
            at = payload_at + payload_bytes;
        }
        Ok(at)
    }

    fn frame(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        if self.assembly.is_some() && kind != CONTINUATION {
            return Err(Error::Http2 { reason: "header block interrupted" });
        }
        let is_stream_frame = matches!(kind, DATA | HEADERS | RST_STREAM | CONTINUATION);
        if is_stream_frame && (id.is_multiple_of(2) || id >= self.id_next) {
            return Err(Error::Http2 { reason: "frame on a stream we never opened" });
        }
        match kind {
            DATA => self.data(flags, id, payload, sink),
            HEADERS => self.headers(flags, id, payload, sink),
            CONTINUATION => self.continuation(flags, id, payload, sink),
            RST_STREAM => {
                let code = u32_at(payload, 0)?;
                self.end(id, End::Reset { code }, sink);
                Ok(())
            }
            SETTINGS => self.settings(flags, payload),
            PUSH_PROMISE => Err(Error::Http2 { reason: "push, which we disabled" }),
            PING if payload.len() != 8 => Err(Error::Http2 { reason: "ping of the wrong size" }),
            PING => {
                if flags & ACK == 0 {
                    self.frame_head(8, PING, ACK, 0);
                    self.out.extend_from_slice(payload);
                }
                Ok(())
            }
            GOAWAY => self.go_away(payload, sink),
            WINDOW_UPDATE => self.credit(id, u32_at(payload, 0)? & STREAM_ID_MAX),
            PRIORITY => Ok(()),
            _ => Ok(()),
        }
    }

    fn data(&mut self, flags: u8, id: u32, payload: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        let payload_bytes = u32::try_from(payload.len()).expect("at most a frame");
        self.received_bytes += payload_bytes;
        if self.received_bytes >= CONNECTION_WINDOW_BYTES / 2 {
            self.window_update(0, self.received_bytes);
            self.received_bytes = 0;
        }
        // Late frames of a call we cancelled count for the connection's window only.
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.received_bytes += payload_bytes;
        let owed_bytes = stream.received_bytes;
        let is_owed = owed_bytes >= STREAM_WINDOW_BYTES / 2 && flags & END_STREAM == 0;
        if is_owed {
            stream.received_bytes = 0;
        }
        let call = &mut stream.call;
        stream.reader.feed(unpad(flags, payload)?, |message| sink.message(call, message))?;
        if flags & END_STREAM != 0 {
            let http_status = stream.http_status;
            self.end(id, End::NotGrpc { http_status }, sink);
        } else if is_owed {
            self.window_update(id, owed_bytes);
        }
        Ok(())
    }

    fn headers(&mut self, flags: u8, id: u32, payload: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        let mut block = unpad(flags, payload)?;
        if flags & HAS_PRIORITY != 0 {
            block = block.get(5..).ok_or(Error::Http2 { reason: "priority cut off" })?;
        }
        let ends_stream = flags & END_STREAM != 0;
        if flags & END_HEADERS != 0 {
            return self.header_block(id, ends_stream, block, sink);
        }
        self.assembly = Some(HeaderAssembly { id, ends_stream, block: block.to_vec() });
        Ok(())
    }

    fn continuation(&mut self, flags: u8, id: u32, payload: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        let assembly = self.assembly.take().filter(|assembly| assembly.id == id);
        let mut assembly = assembly.ok_or(Error::Http2 { reason: "continuation of nothing" })?;
        // An empty continuation would cost us nothing to hold, and the peer nothing to repeat for ever.
        if payload.is_empty() || assembly.block.len() + payload.len() > HEADER_BLOCK_BYTES_MAX {
            return Err(Error::Http2 { reason: "header block too long" });
        }
        assembly.block.extend_from_slice(payload);
        if flags & END_HEADERS != 0 {
            return self.header_block(id, assembly.ends_stream, &assembly.block, sink);
        }
        self.assembly = Some(assembly);
        Ok(())
    }

    fn header_block(&mut self, id: u32, ends_stream: bool, block: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        self.fate.http_status = None;
        self.fate.grpc_status = None;
        // Also for a call that has ended: the block changes the shared table.
        self.decoder.block(block, &mut self.fate)?;
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        if let Some(status) = self.fate.http_status {
            stream.http_status = status;
        }
        if ends_stream {
            let is_whole = stream.reader.is_between_messages() && (!stream.is_unary || stream.reader.messages() == 1);
            let end = match self.fate.grpc_status {
                Some(0) if is_whole => End::Ok,
                Some(0) | None => End::NotGrpc { http_status: stream.http_status },
                Some(code) => End::Status { code, message: std::mem::take(&mut self.fate.grpc_message) },
            };
            self.end(id, end, sink);
        }
        Ok(())
    }

    fn settings(&mut self, flags: u8, payload: &[u8]) -> Result<(), Error> {
        if flags & ACK != 0 {
            return Ok(());
        }
        if !payload.len().is_multiple_of(6) {
            return Err(Error::Http2 { reason: "settings cut off" });
        }
        for setting in payload.chunks_exact(6) {
            let value = u32_at(setting, 2)?;
            let size = usize::try_from(value).unwrap_or(usize::MAX);
            match u16::from_be_bytes([setting[0], setting[1]]) {
                1 => self.encoder.limit_table(value),
                3 => self.peer_streams_max = size,
                4 => self.rebase_windows(i64::from(value))?,
                5 if !(FRAME_BYTES_DEFAULT..1 << 24).contains(&size) => {
                    return Err(Error::Http2 { reason: "impossible frame size" });
                }
                5 => self.peer_frame_bytes_max = size,
                _ => {}
            }
        }
        self.frame_head(0, SETTINGS, ACK, 0);
        self.is_ready = true;
        self.send_backlog();
        Ok(())
    }

    fn rebase_windows(&mut self, window: i64) -> Result<(), Error> {
        if window > WINDOW_MAX {
            return Err(Error::Http2 { reason: "impossible window" });
        }
        let change = window - self.peer_stream_window;
        self.peer_stream_window = window;
        for stream in self.streams.values_mut() {
            stream.send_window += change;
        }
        Ok(())
    }

    fn go_away(&mut self, payload: &[u8], sink: &mut impl Sink<C>) -> Result<(), Error> {
        let id_last = u32_at(payload, 0)? & STREAM_ID_MAX;
        let code = u32_at(payload, 4)?;
        self.is_going_away = true;
        let refused: Vec<u32> = self.streams.keys().copied().filter(|id| *id > id_last).collect();
        for id in refused {
            self.end(id, End::Lost { reason: Error::GoAway { code }.to_string() }, sink);
        }
        if code == 0 { Ok(()) } else { Err(Error::GoAway { code }) }
    }

    fn credit(&mut self, id: u32, bytes: u32) -> Result<(), Error> {
        let window = if id == 0 {
            &mut self.send_window
        } else {
            let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
            &mut stream.send_window
        };
        *window += i64::from(bytes);
        if bytes == 0 || *window > WINDOW_MAX {
            return Err(Error::Http2 { reason: "impossible window update" });
        }
        if !self.backlog.is_empty() {
            self.send_backlog();
        }
        Ok(())
    }
}

fn frame_length(bytes: usize) -> [u8; 3] {
    let [zero, a, b, c] = u32::try_from(bytes).expect("a frame is below 2^24 bytes").to_be_bytes();
    assert!(zero == 0);
    [a, b, c]
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, Error> {
    let four = bytes.get(at..at + 4).and_then(|slice| slice.first_chunk::<4>());
    four.map(|four| u32::from_be_bytes(*four)).ok_or(Error::Http2 { reason: "frame cut off" })
}

fn unpad(flags: u8, payload: &[u8]) -> Result<&[u8], Error> {
    if flags & PADDED == 0 {
        return Ok(payload);
    }
    let unpadded = payload.split_first().and_then(|(pad_bytes, rest)| {
        let kept_bytes = rest.len().checked_sub(usize::from(*pad_bytes))?;
        rest.get(..kept_bytes)
    });
    unpadded.ok_or(Error::Http2 { reason: "padding longer than its frame" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen {
        messages: Vec<(u8, Vec<u8>)>,
        ends: Vec<(u8, End)>,
    }

    impl Sink<u8> for Seen {
        fn message(&mut self, call: &mut u8, message: &[u8]) {
            self.messages.push((*call, message.to_vec()));
        }

        fn closed(&mut self, call: u8, end: End) {
            self.ends.push((call, end));
        }
    }

    const GET: Opening = Opening { path: Path::Range, is_unary: true, keeps_messages: true };
    const OK_HEAD: &[u8] = &[0x88];
    const OK_TRAILERS: &[u8] = b"\x00\x0bgrpc-status\x010";

    fn frame(kind: u8, flags: u8, id: u32, payload: &[u8]) -> Vec<u8> {
        let [a, b, c] = frame_length(payload.len());
        [&[a, b, c, kind, flags], &id.to_be_bytes()[..], payload].concat()
    }

    fn reply(id: u32, message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [
            frame(HEADERS, END_HEADERS, id, OK_HEAD),
            frame(DATA, 0, id, &[&[0], &length[..], message].concat()),
            frame(HEADERS, END_HEADERS | END_STREAM, id, OK_TRAILERS),
        ]
        .concat()
    }

    fn ready() -> Session<u8> {
        let mut session = Session::new("localhost:2379", u32::MAX);
        assert!(!session.can_open());
        session.receive(&frame(SETTINGS, 0, 0, &[]), &mut Seen::default()).unwrap();
        session.out.clear();
        session
    }

    /// Bytes of DATA in `out`, and whether the last of them ends its stream.
    fn sent_bytes(out: &[u8]) -> (usize, bool) {
        let (mut at, mut sent, mut is_ended) = (0, 0, false);
        while at < out.len() {
            let bytes = usize::from(out[at]) << 16 | usize::from(out[at + 1]) << 8 | usize::from(out[at + 2]);
            if out[at + 3] == DATA {
                sent += bytes;
                is_ended |= out[at + 4] & END_STREAM != 0;
            }
            at += FRAME_HEAD_BYTES + bytes;
        }
        (sent, is_ended)
    }

    #[test]
    fn replies_are_the_same_however_the_bytes_are_cut() {
        for cut in [1, 2, 3, 7, 10, 1_000] {
            let (mut session, mut seen) = (ready(), Seen::default());
            let (one, two) = (session.open(GET, b"a", 1), session.open(GET, b"b", 2));
            let padded = frame(DATA, PADDED, two, &[&[3, 0, 0, 0, 0, 0], &[9; 3][..]].concat());
            let bytes = [
                frame(HEADERS, 0, two, &[]),
                frame(CONTINUATION, END_HEADERS, two, OK_HEAD),
                reply(one, b"first"),
                frame(PING, 0, 0, &[7; 8]),
                padded,
                frame(HEADERS, END_HEADERS | END_STREAM, two, OK_TRAILERS),
            ]
            .concat();
            session.out.clear();
            for piece in bytes.chunks(cut) {
                session.receive(piece, &mut seen).unwrap();
            }
            assert_eq!(seen.messages, [(1, b"first".to_vec()), (2, Vec::new())]);
            assert_eq!(seen.ends, [(1, End::Ok), (2, End::Ok)]);
            assert_eq!(session.out, frame(PING, ACK, 0, &[7; 8]));
            assert_eq!(session.calls(), 0);
        }
    }

    #[test]
    fn no_more_is_sent_than_the_windows_allow_and_all_in_the_end() {
        let mut session = ready();
        let id = session.open(GET, &[5; 200_000], 1);
        assert_eq!(sent_bytes(&session.out), (65_535, false));
        assert!(!session.can_open());
        let window = |id, bytes: u32| frame(WINDOW_UPDATE, 0, id, &bytes.to_be_bytes());
        session.receive(&window(0, 1_000_000), &mut Seen::default()).unwrap();
        assert_eq!(sent_bytes(&session.out), (65_535, false));
        session.receive(&window(id, 100_000), &mut Seen::default()).unwrap();
        assert_eq!(sent_bytes(&session.out), (165_535, false));
        let settings = [&[0, 4][..], &200_000_u32.to_be_bytes()].concat();
        session.receive(&frame(SETTINGS, 0, 0, &settings), &mut Seen::default()).unwrap();
        assert_eq!(sent_bytes(&session.out), (200_005, true));
        session.out.clear();
        assert!(session.can_open());
    }

    #[test]
    fn go_away_ends_what_the_server_never_saw_and_nothing_else() {
        let (mut session, mut seen) = (ready(), Seen::default());
        let (one, _) = (session.open(GET, b"a", 1), session.open(GET, b"b", 2));
        let payload = [&one.to_be_bytes()[..], &[0; 4]].concat();
        session.receive(&frame(GOAWAY, 0, 0, &payload), &mut seen).unwrap();
        assert!(session.is_spent() && !session.can_open());
        assert!(matches!(seen.ends[..], [(2, End::Lost { .. })]));
        session.receive(&reply(one, b"x"), &mut seen).unwrap();
        assert_eq!(seen.ends[1], (1, End::Ok));
        assert_eq!(session.calls(), 0);
    }

    #[test]
    fn a_call_ends_once_whatever_ends_it() {
        let (mut session, mut seen) = (ready(), Seen::default());
        let ids: Vec<u32> = (0..5).map(|call| session.open(GET, b"a", call)).collect();
        let status = b"\x88\x00\x0bgrpc-status\x018\x00\x0cgrpc-message\x04full";
        session.receive(&frame(HEADERS, END_HEADERS | END_STREAM, ids[0], status), &mut seen).unwrap();
        session.receive(&frame(RST_STREAM, 0, ids[1], &[0, 0, 0, 7]), &mut seen).unwrap();
        session.expire(|call| *call == 2, &mut seen);
        // The server's answer crosses our cancellation; a reply without its message is no success.
        session.receive(&reply(ids[2], b"late"), &mut seen).unwrap();
        session
            .receive(&frame(HEADERS, END_HEADERS | END_STREAM, ids[3], b"\x88\x00\x0bgrpc-status\x010"), &mut seen)
            .unwrap();
        session.abandon("gone", &mut seen);
        session.abandon("gone", &mut seen);
        let wanted = [
            (0, End::Status { code: 8, message: b"full".to_vec() }),
            (1, End::Reset { code: 7 }),
            (2, End::TimedOut),
            (3, End::NotGrpc { http_status: 200 }),
            (4, End::Lost { reason: "gone".to_owned() }),
        ];
        assert_eq!(seen.ends, wanted);
    }

    #[test]
    fn a_peer_that_breaks_the_protocol_is_refused() {
        for bytes in [
            frame(DATA, 0, 1, b"x"),
            frame(HEADERS, END_HEADERS, 2, OK_HEAD),
            frame(PUSH_PROMISE, END_HEADERS, 1, &[0; 8]),
            frame(SETTINGS, 0, 0, &[0; 5]),
            frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]),
            frame(WINDOW_UPDATE, 0, 0, &[0; 4]),
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11]),
            frame(PING, 0, 0, &[0; 7]),
            vec![0xff; 20],
        ] {
            assert!(ready().receive(&bytes, &mut Seen::default()).is_err(), "{bytes:?}");
        }
    }
}
