//! Reads bytes that a peer may have sent, which may be anything, with each codec. The fuzz targets and the tests call
//! it.
//!
//! One property holds for all: reading never panics, and what is accepted is read again, the same, from what this crate
//! would send.

use bytes::{Bytes, BytesMut};

use super::{
    frames::{self, Frame, Frames},
    hello::{self, Hello, Standing},
    http1,
    msgapp::{Decoder, Encoder},
    pieces::Pieces,
    raftpb::{decode_message, encode_message},
};
use crate::{entry::Entry, message::Message};

/// Bytes of one message at most. **Units**: bytes.
const BYTES_MAX: usize = 1 << 20;

/// Reads a message stream. True if all of it was accepted.
pub fn messages(bytes: &[u8]) -> bool {
    let mut read = Vec::new();
    let mut stream = Frames::new(BYTES_MAX);
    stream.push(bytes);
    let mut out = Pieces::default();
    let is_accepted = loop {
        match stream.next() {
            Ok(Some(Frame::Heartbeat)) => frames::encode_heartbeat(&mut out),
            Ok(Some(Frame::Message(message))) => {
                frames::encode(&message, &mut out);
                read.push(message);
            }
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    // What was read without zeros is longer with them.
    let mut again = Frames::new(16 * BYTES_MAX);
    again.push(&out.take().concat());
    let mut read = read.into_iter();
    while let Some(frame) = again.next().expect("what is sent can be read") {
        if let Frame::Message(message) = frame {
            assert_eq!(Some(message), read.next(), "what is read again");
        }
    }
    assert_eq!(read.next(), None);
    is_accepted
}

/// Reads a stream of appends. True if all of it was accepted.
pub fn appends(bytes: &[u8]) -> bool {
    let mut read = Vec::new();
    let mut stream = Decoder::new((1, 2), BYTES_MAX);
    stream.push(bytes);
    let (mut encoder, mut out) = (Encoder::default(), Pieces::default());
    let is_accepted = loop {
        match stream.next() {
            Ok(Some(Frame::Heartbeat)) => Encoder::encode_heartbeat(&mut out),
            Ok(Some(Frame::Message(message))) => read.push(message),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    // Only appends that follow each other may leave out what the receiver knows: the log never has others.
    read.retain(|message| {
        let follows = |(entry, offset): (&Entry, u64)| Some(entry.index) == message.index.checked_add(offset);
        message.entries.iter().zip(1..).all(follows) && (message.from, message.to) == (1, 2)
    });
    read.iter().for_each(|message| encoder.encode(message, &mut out));
    let mut again = Decoder::new((1, 2), 64 * BYTES_MAX);
    again.push(&out.take().concat());
    let mut read = read.into_iter();
    while let Some(frame) = again.next().expect("what is sent can be read") {
        if let Frame::Message(message) = frame {
            let read = read.next().expect("no more than was sent");
            // An append that goes on does not carry these. In an append they mean nothing.
            let (reject, reject_hint, context) = (message.reject, message.reject_hint, message.context.clone());
            assert_eq!(message, Message { reject, reject_hint, context, ..read }, "what is read again");
        }
    }
    assert_eq!(read.next(), None);
    is_accepted
}

/// Decodes one message. True if the bytes were one.
pub fn message(bytes: &[u8]) -> bool {
    let Ok(Some(message)) = decode_message(Bytes::copy_from_slice(bytes)) else { return false };
    let mut out = Pieces::default();
    encode_message(&message, &mut out);
    let again = decode_message(out.take().concat().into());
    assert_eq!(again.expect("what is sent can be read"), Some(message));
    true
}

/// Reads the bytes as what a member asks, and as what it is answered. True if they begin with either.
pub fn http(bytes: &[u8]) -> bool {
    let own = Hello { cluster_id: 1, member_id: 2, version: "3.7.0".into(), peer_urls: String::new(), life: 9 };
    let drain = |body: &mut http1::Body, buffer: &mut BytesMut| while let Ok(Some(_)) = body.take(buffer) {};
    let (mut asked, mut answered) = (BytesMut::from(bytes), BytesMut::from(bytes));
    let mut heads = 0;
    while let Ok(Some((request, mut body))) = http1::take_request(&mut asked) {
        heads += 1;
        let verdict = hello::check(&request, &own, |_| Standing::Member);
        drop(verdict);
        drain(&mut body, &mut asked);
        if !body.is_over() {
            break;
        }
    }
    while let Ok(Some((answer, mut body))) = http1::take_answer(&mut answered) {
        heads += 1;
        drop(hello::stream_answered(&answer));
        drain(&mut body, &mut answered);
        if !body.is_over() {
            break;
        }
    }
    heads > 0
}
