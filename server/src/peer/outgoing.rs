//! Runs on: raft core.
//!
//! A stream that this member fills: the answer to a member that has asked for its appends, or for its other messages.
//!
//! Invariants:
//! - What waits, here and in the hands of who writes, has at most `bytes_max`; a message that comes then is refused.
//!   So a member that does not read costs a bounded amount.
//! - All that has gathered leaves as one chunk. The data of entries is shared with the log.
//! - A heartbeat is due once in [`BEAT_EVERY`]: both sides give up a stream on which nothing moves.

use std::time::Duration;

use bytes::Bytes;
use consensus::{
    Message,
    peer::{
        frames,
        hello::{Channel, Hello},
        http1::{CHUNK_END, chunk_head},
        msgapp::Encoder,
        pieces::Pieces,
    },
};

/// Time between two heartbeats of a stream. **Source** etcd v3.7.1 `server/etcdserver/api/rafthttp/stream.go`,
/// `ConnReadTimeout / 3`.
pub const BEAT_EVERY: Duration = Duration::from_millis(1667);

/// See the head of this file.
#[derive(Debug)]
pub struct Outgoing {
    channel: Channel,
    encoder: Encoder,
    /// The head of the answer, until it leaves.
    head: Option<Bytes>,
    /// What has gathered.
    gathered: Pieces,
    /// What was taken to be written. **Units** bytes.
    in_hand: usize,
    bytes_max: usize,
    beat_at: Duration,
    /// Since when what is in hand waits for the socket.
    waits_since: Duration,
}

impl Outgoing {
    /// A stream that begins at `now`, and what says so. **Units** of `bytes_max`: bytes.
    pub fn new(channel: Channel, own: &Hello, bytes_max: usize, now: Duration) -> Self {
        Self {
            channel,
            encoder: Encoder::default(),
            head: Some(own.begin_stream().into()),
            gathered: Pieces::default(),
            in_hand: 0,
            bytes_max,
            beat_at: now,
            waits_since: now,
        }
    }

    /// What waits to be written. **Units** bytes.
    pub fn waiting(&self) -> usize {
        self.gathered.len() + self.in_hand
    }

    /// Appends a message to the stream. Returns false if too much waits: then it is lost.
    pub fn push(&mut self, message: &Message) -> bool {
        if self.waiting() >= self.bytes_max {
            return false;
        }
        match self.channel {
            Channel::Appends if message.kind == consensus::MessageKind::Append => {
                self.encoder.encode(message, &mut self.gathered);
            }
            Channel::Appends => unreachable!("the stream is for appends"),
            Channel::Messages => frames::encode(message, &mut self.gathered),
        }
        true
    }

    /// Appends a heartbeat, if one is due.
    pub fn beat(&mut self, now: Duration) {
        if now < self.beat_at {
            return;
        }
        self.beat_at = now + BEAT_EVERY;
        // Where something waits already, a heartbeat says nothing.
        if self.gathered.is_empty() && self.in_hand == 0 {
            match self.channel {
                Channel::Appends => Encoder::encode_heartbeat(&mut self.gathered),
                Channel::Messages => frames::encode_heartbeat(&mut self.gathered),
            }
        }
    }

    /// Whether there is something to write.
    pub fn has_bytes(&self) -> bool {
        self.head.is_some() || !self.gathered.is_empty()
    }

    /// Takes what is to be written next, in order.
    pub fn take(&mut self, now: Duration, out: &mut Vec<Bytes>) {
        let before = out.len();
        out.extend(self.head.take());
        if !self.gathered.is_empty() {
            out.push(chunk_head(self.gathered.len()));
            out.append(&mut self.gathered.take());
            out.push(Bytes::from_static(CHUNK_END));
        }
        if self.in_hand == 0 {
            self.waits_since = now;
        }
        self.in_hand += out[before..].iter().map(Bytes::len).sum::<usize>();
    }

    /// So much of what was taken is written.
    pub fn written(&mut self, bytes: usize, now: Duration) {
        self.in_hand = self.in_hand.checked_sub(bytes).expect("it was taken before");
        self.waits_since = now;
    }

    /// How long the socket has taken nothing of what waits for it.
    pub fn waits_for(&self, now: Duration) -> Duration {
        if self.in_hand == 0 { Duration::ZERO } else { now.saturating_sub(self.waits_since) }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use consensus::{
        Entry, EntryKind, MessageKind,
        peer::{
            frames::{Frame, Frames},
            http1::take_answer,
        },
    };

    use super::*;

    fn own() -> Hello {
        Hello { cluster_id: 1, member_id: 2, version: "3.7.1".into(), peer_urls: "http://a:1".into(), life: 9 }
    }

    fn taken(outgoing: &mut Outgoing) -> Vec<u8> {
        let mut out = Vec::new();
        outgoing.take(Duration::ZERO, &mut out);
        out.concat()
    }

    #[test]
    fn what_gathers_leaves_as_one_chunk_behind_the_head() {
        let second = Duration::from_secs;
        let mut outgoing = Outgoing::new(Channel::Messages, &own(), 1000, second(0));
        let message =
            |index| Message { kind: MessageKind::AppendResponse, to: 3, from: 2, index, ..Message::default() };
        outgoing.beat(second(0));
        assert!(outgoing.push(&message(1)) && outgoing.push(&message(2)));
        let mut buffer = BytesMut::from(&taken(&mut outgoing)[..]);
        assert!(!outgoing.has_bytes());
        let (answer, mut body) = take_answer(&mut buffer).unwrap().unwrap();
        assert_eq!((answer.status, answer.headers.get("x-server-version")), (200, "3.7.1"));
        let mut frames = Frames::new(1000);
        while let Some(part) = body.take(&mut buffer).unwrap() {
            frames.push(&part);
        }
        for expected in [Frame::Heartbeat, Frame::Message(message(1)), Frame::Message(message(2))] {
            assert_eq!(frames.next().unwrap(), Some(expected));
        }
    }

    #[test]
    fn who_does_not_read_costs_a_bounded_amount_and_is_noticed() {
        let second = Duration::from_secs;
        let mut outgoing = Outgoing::new(Channel::Appends, &own(), 5000, second(0));
        drop(taken(&mut outgoing));
        outgoing.written(outgoing.in_hand, second(0));
        let entry = Entry { index: 8, term: 1, kind: EntryKind::Normal, data: vec![0; 3000].into() };
        let append = Message { kind: MessageKind::Append, entries: vec![entry], ..Message::default() };
        assert!(outgoing.push(&append));
        let len = taken(&mut outgoing).len();
        assert!(outgoing.push(&append) && !outgoing.push(&append), "it waits, written or not");
        assert_eq!((outgoing.waits_for(second(0)), outgoing.waits_for(second(4))), (second(0), second(4)));
        outgoing.written(len, second(5));
        assert!(outgoing.push(&append));
        assert_eq!(outgoing.waits_for(second(9)), second(0), "nobody has taken it");
        drop(taken(&mut outgoing));
        // A heartbeat would only wait behind it.
        outgoing.beat(second(9));
        assert!(!outgoing.has_bytes());
        outgoing.written(outgoing.in_hand, second(9));
        outgoing.beat(second(10));
        assert!(!outgoing.has_bytes(), "none is due");
        outgoing.beat(second(11));
        assert_eq!(taken(&mut outgoing), b"1\r\n\0\r\n");
    }
}
