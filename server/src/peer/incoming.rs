//! Runs on: raft core.
//!
//! A stream from another member, which this one has asked for.
//!
//! Invariants: the member at the other end is the one that was dialled, and says nothing in the name of others but what
//! it forwards. What it sends and does not end is bounded by the decoders. Appends that arrive together are handed on
//! in the order of the log: etcd 3.7 sends those of one turn the newest first.

use bytes::BytesMut;
use consensus::{
    Error, Message, MessageKind,
    peer::{
        frames::{Frame, Frames},
        hello::{self, Channel, Told},
        http1::{self, Body},
        msgapp::Decoder,
    },
};

#[derive(Debug)]
enum Reading {
    Appends(Decoder),
    Messages(Frames),
}

impl Reading {
    fn push(&mut self, bytes: &[u8]) {
        match self {
            Self::Appends(decoder) => decoder.push(bytes),
            Self::Messages(frames) => frames.push(bytes),
        }
    }

    fn next(&mut self) -> Result<Option<Frame>, Error> {
        match self {
            Self::Appends(decoder) => decoder.next(),
            Self::Messages(frames) => frames.next(),
        }
    }
}

/// What the head of the answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeted {
    /// Whether there is a stream.
    pub told: Told,
    /// The status of the answer.
    pub status: u16,
    /// The cluster of the member at the other end, in hexadecimal.
    pub cluster_id: String,
    /// The life of the member at the other end; 0 if it says nothing of one.
    pub life: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Incoming {
    from: u64,
    to: u64,
    buffer: BytesMut,
    /// The body of the answer, once its head has come.
    body: Option<Body>,
    reading: Reading,
}

impl Incoming {
    /// A stream from the member `from` to `to`, which is asked for. A message has at most `bytes_max` bytes.
    pub fn new(channel: Channel, (from, to): (u64, u64), bytes_max: usize) -> Self {
        let reading = match channel {
            Channel::Appends => Reading::Appends(Decoder::new((from, to), bytes_max)),
            Channel::Messages => Reading::Messages(Frames::new(bytes_max)),
        };
        Self { from, to, buffer: BytesMut::new(), body: None, reading }
    }

    /// Takes in what has arrived. [`Incoming::greeted`] and then [`Incoming::messages`] give what it completes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What the head of the answer says, once: when it has come.
    ///
    /// **Errors** `Malformed`: the stream is over.
    pub fn greeted(&mut self) -> Result<Option<Greeted>, Error> {
        if self.body.is_some() {
            return Ok(None);
        }
        let Some((answer, body)) = http1::take_answer(&mut self.buffer)? else { return Ok(None) };
        self.body = Some(body);
        let (told, life) = (hello::stream_answered(&answer)?, hello::life(&answer.headers));
        let cluster_id = answer.headers.get("x-etcd-cluster-id").to_owned();
        Ok(Some(Greeted { told, status: answer.status, cluster_id, life }))
    }

    /// Moves the messages that have arrived to the end of `out`.
    ///
    /// **Errors** `Malformed`: the stream is over. Those before what is malformed are in `out`.
    pub fn messages(&mut self, out: &mut Vec<Message>) -> Result<(), Error> {
        let Some(body) = &mut self.body else { return Ok(()) };
        let before = out.len();
        let mut taken = Ok(());
        'bytes: while let Some(bytes) = body.take(&mut self.buffer)? {
            self.reading.push(&bytes);
            loop {
                match self.reading.next() {
                    Ok(Some(Frame::Message(message))) if is_of(&message, self.from, self.to) => out.push(message),
                    Ok(Some(Frame::Message(_))) => {
                        taken = Err(Error::Malformed { what: "message in the name of another member" });
                        break 'bytes;
                    }
                    Ok(Some(Frame::Heartbeat)) => {}
                    Ok(None) => break,
                    Err(error) => {
                        taken = Err(error);
                        break 'bytes;
                    }
                }
            }
        }
        if matches!(self.reading, Reading::Appends(_)) {
            let came = &mut out[before..];
            if !came.is_sorted_by_key(|message| (message.term, message.index)) {
                came.sort_by_key(|message| (message.term, message.index));
            }
        }
        taken
    }

    /// Whether the other side has ended the stream.
    pub fn is_over(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_over)
    }
}

/// Whether `from` may send `message` to `to`. Some kinds are forwarded for others.
pub fn is_of(message: &Message, from: u64, to: u64) -> bool {
    use MessageKind::{Propose, ReadIndex, TransferLeader};
    let is_forwarded = matches!(message.kind, Propose | ReadIndex | TransferLeader);
    message.to == to && (message.from == from || is_forwarded)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use consensus::{Entry, EntryKind, peer::hello::Hello};

    use super::{super::outgoing::Outgoing, *};

    const SMALL: usize = 10_000;

    fn sent(channel: Channel, messages: &[Message]) -> Vec<u8> {
        let own =
            Hello { cluster_id: 1, member_id: 2, version: "3.7.1".into(), peer_urls: "http://a:1".into(), life: 9 };
        let mut outgoing = Outgoing::new(channel, &own, SMALL, Duration::ZERO);
        messages.iter().for_each(|message| assert!(outgoing.push(message)));
        let mut out = Vec::new();
        outgoing.take(Duration::ZERO, &mut out);
        out.concat()
    }

    fn append(index: u64, term: u64) -> Message {
        let entries = vec![Entry { index: index + 1, term, kind: EntryKind::Normal, data: Bytes::new() }];
        Message {
            kind: MessageKind::Append,
            from: 2,
            to: 3,
            term,
            log_term: term,
            index,
            entries,
            ..Message::default()
        }
    }

    #[test]
    fn whatever_arrives_first_the_same_is_handed_on() {
        let (heartbeat, vote) = (MessageKind::Heartbeat, MessageKind::Vote);
        let expected = Greeted { told: Told::Done, status: 200, cluster_id: "1".into(), life: 9 };
        let messages = [heartbeat, vote].map(|kind| Message { kind, from: 2, to: 3, term: 4, ..Message::default() });
        for (channel, messages) in
            [(Channel::Messages, messages.to_vec()), (Channel::Appends, vec![append(4, 2), append(5, 2)])]
        {
            let bytes = sent(channel, &messages);
            for cut in 0..bytes.len() {
                let mut incoming = Incoming::new(channel, (2, 3), SMALL);
                let (mut greeted, mut out) = (Vec::new(), Vec::new());
                for part in [&bytes[..cut], &bytes[cut..]] {
                    incoming.push(part);
                    greeted.extend(incoming.greeted().unwrap());
                    incoming.messages(&mut out).unwrap();
                }
                assert_eq!((greeted, &out), (vec![expected.clone()], &messages), "{cut}");
            }
        }
    }

    #[test]
    fn appends_of_one_read_come_in_the_order_of_the_log() {
        let mut incoming = Incoming::new(Channel::Appends, (2, 3), SMALL);
        incoming.push(&sent(Channel::Appends, &[append(9, 3), append(7, 3), append(8, 3), append(20, 2)]));
        assert!(incoming.greeted().unwrap().is_some());
        let mut out = Vec::new();
        incoming.messages(&mut out).unwrap();
        assert_eq!(out, [append(20, 2), append(7, 3), append(8, 3), append(9, 3)]);
    }

    #[test]
    fn nobody_speaks_for_another_but_for_what_it_forwards() {
        let message = |kind, from, to| Message { kind, from, to, ..Message::default() };
        for (kind, from, to, is_taken) in [
            (MessageKind::Vote, 2, 3, true),
            (MessageKind::Vote, 4, 3, false),
            (MessageKind::Vote, 2, 4, false),
            (MessageKind::Propose, 4, 3, true),
            (MessageKind::ReadIndex, 4, 3, true),
            (MessageKind::ReadIndexResponse, 4, 3, false),
        ] {
            let mut incoming = Incoming::new(Channel::Messages, (2, 3), SMALL);
            incoming.push(&sent(Channel::Messages, &[message(kind, from, to)]));
            assert!(incoming.greeted().unwrap().is_some());
            let mut out = Vec::new();
            assert_eq!((incoming.messages(&mut out).is_ok(), out.len()), (is_taken, usize::from(is_taken)), "{kind:?}");
        }
    }
}
