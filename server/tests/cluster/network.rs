//! Simulated TCP between members: bytes in order, late, cut anywhere, held up, reset.
//!
//! Between each two members there are, each way, a stream of appends and one of other messages, as etcd has them. What
//! is sent is encoded and arrives in pieces; the receiver's decoder puts it together. A link that is blocked holds
//! bytes back, as TCP does, until it is free again or the connection is reset. A reset loses what had not arrived.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use consensus::{
    Message, MessageKind,
    peer::{
        frames::{self, Frame, Frames},
        msgapp::{Decoder, Encoder},
        pieces::Pieces,
    },
};
use engine::disk::sim::Random;

const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// What waits in a link that is held up. Beyond it, messages are dropped.
const HELD_BYTES_MAX: usize = 4 << 20;
/// From a reset to the next connection.
const RECONNECT: Duration = Duration::from_millis(100);

enum Reading {
    Appends(Decoder),
    Messages(Frames),
}

/// One stream, from one member to another.
pub(crate) struct Link {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// The members at both ends.
    ids: (u64, u64),
    is_appends: bool,
    encoder: Encoder,
    reading: Reading,
    /// Pieces on their way, in order, with the time at which each arrives.
    flying: VecDeque<(Duration, Bytes)>,
    held_bytes: usize,
    is_blocked: bool,
    /// There is no connection before this time.
    down_until: Duration,
    last_arrival: Duration,
    random: Random,
}

/// What became of a message that was to be sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Its last piece arrives then, if nothing comes in between.
    Arrives(Duration),
    /// It waits in a link that is held up.
    Held,
    Dropped,
}

impl Link {
    pub(crate) fn new(from: usize, to: usize, is_appends: bool, random: Random) -> Self {
        let mut link = Self {
            from,
            to,
            ids: (from as u64 + 1, to as u64 + 1),
            is_appends,
            encoder: Encoder::default(),
            reading: Reading::Messages(Frames::new(0)),
            flying: VecDeque::new(),
            held_bytes: 0,
            is_blocked: false,
            down_until: Duration::ZERO,
            last_arrival: Duration::ZERO,
            random,
        };
        link.begin();
        link
    }

    /// Both sides begin a new connection.
    fn begin(&mut self) {
        self.encoder = Encoder::default();
        self.reading = match self.is_appends {
            true => Reading::Appends(Decoder::new(self.ids, MESSAGE_BYTES_MAX)),
            false => Reading::Messages(Frames::new(MESSAGE_BYTES_MAX)),
        };
        self.flying.clear();
        self.held_bytes = 0;
    }

    /// Another member is at one of its ends.
    pub(crate) fn join(&mut self, ids: (u64, u64), now: Duration) {
        self.ids = ids;
        self.reset(now);
    }

    pub(crate) fn carries(&self, kind: MessageKind) -> bool {
        self.is_appends == (kind == MessageKind::Append)
    }

    pub(crate) fn send(&mut self, message: &Message, now: Duration) -> Sent {
        if now < self.down_until || self.held_bytes > HELD_BYTES_MAX {
            return Sent::Dropped;
        }
        let mut out = Pieces::default();
        match self.is_appends {
            true => self.encoder.encode(message, &mut out),
            false => frames::encode(message, &mut out),
        }
        let random = &mut self.random;
        let mut bytes = Bytes::from(out.take().concat());
        self.held_bytes += bytes.len();
        while !bytes.is_empty() {
            // Mostly whole, at times in pieces.
            let len = if random.chance(1, 8) { 1 + random.below(bytes.len() as u64) } else { bytes.len() as u64 };
            let piece = bytes.split_to(usize::try_from(len).expect("small"));
            let late = if random.chance(1, 200) { random.below(80_000) } else { 200 + random.below(1500) };
            self.last_arrival = self.last_arrival.max(now + Duration::from_micros(late));
            self.flying.push_back((self.last_arrival, piece));
        }
        if self.is_blocked { Sent::Held } else { Sent::Arrives(self.last_arrival) }
    }

    /// The messages whose last pieces have arrived by `now`.
    pub(crate) fn arrived(&mut self, now: Duration) -> Vec<Message> {
        let mut messages = Vec::new();
        while !self.is_blocked && self.flying.front().is_some_and(|(at, _)| *at <= now) {
            let (_, piece) = self.flying.pop_front().expect("just seen");
            self.held_bytes -= piece.len();
            match &mut self.reading {
                Reading::Appends(decoder) => {
                    decoder.push(&piece);
                    while let Some(frame) = decoder.next().expect("honest members") {
                        messages.extend(message_of(frame));
                    }
                }
                Reading::Messages(frames) => {
                    frames.push(&piece);
                    while let Some(frame) = frames.next().expect("honest members") {
                        messages.extend(message_of(frame));
                    }
                }
            }
        }
        messages
    }

    /// When the next piece arrives.
    pub(crate) fn next_arrival(&self) -> Option<Duration> {
        self.flying.front().filter(|_| !self.is_blocked).map(|(at, _)| *at)
    }

    /// The connection is reset: what has not arrived is lost.
    pub(crate) fn reset(&mut self, now: Duration) {
        self.begin();
        self.down_until = now + RECONNECT;
    }

    pub(crate) fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    pub(crate) fn block(&mut self, is_blocked: bool) {
        self.is_blocked = is_blocked;
    }
}

fn message_of(frame: Frame) -> Option<Message> {
    match frame {
        Frame::Message(message) => Some(message),
        Frame::Heartbeat => None,
    }
}
