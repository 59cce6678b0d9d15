//! The codecs of the peer protocol against what stock members said to each other (`golden/capture.py`), and against
//! bytes that nobody should say.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use bytes::{Bytes, BytesMut};
use consensus::{
    Error, Message, MessageKind,
    peer::{
        frames::{self, Frame, Frames},
        hello::{self, Asked, Channel, Hello, Standing, Told, post_answered, stream_answered},
        hostile, http1,
        msgapp::{Decoder, Encoder},
        pieces::Pieces,
        raftpb::{decode_message, encode_message, message_len},
    },
};
use engine::disk::sim::Random;

const BYTES_MAX: usize = 1 << 20;

/// The bodies of this kind that members of `release` sent.
fn golden(release: &str, kind: &str) -> Vec<Bytes> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{release}.{kind}"));
    let mut rest = Bytes::from(fs::read(file).unwrap());
    let mut bodies = Vec::new();
    while !rest.is_empty() {
        let len = u64::from_be_bytes(rest.split_to(8)[..].try_into().unwrap());
        bodies.push(rest.split_to(usize::try_from(len).unwrap()));
    }
    bodies
}

fn below(random: &mut Random, bound: usize) -> usize {
    usize::try_from(random.below(bound as u64)).unwrap()
}

/// A decoder of either stream.
enum Stream {
    Messages(Frames),
    Appends(Decoder),
}

impl Stream {
    fn of(kind: &str) -> Stream {
        match kind {
            "messages" | "snapshots" => Stream::Messages(Frames::new(BYTES_MAX)),
            "msgapps" => Stream::Appends(Decoder::new((0, 0), BYTES_MAX)),
            _ => unreachable!(),
        }
    }

    /// Adds the frames that end with `bytes`.
    fn read(&mut self, bytes: &[u8], found: &mut Vec<Frame>) -> Result<(), Error> {
        match self {
            Stream::Messages(frames) => frames.push(bytes),
            Stream::Appends(decoder) => decoder.push(bytes),
        }
        loop {
            let next = match self {
                Stream::Messages(frames) => frames.next()?,
                Stream::Appends(decoder) => decoder.next()?,
            };
            match next {
                Some(frame) => found.push(frame),
                None => return Ok(()),
            }
        }
    }

    /// All frames of `body`, which arrives cut at random.
    fn whole(kind: &str, body: &[u8], random: &mut Random) -> Result<Vec<Frame>, Error> {
        let (mut stream, mut found, mut rest) = (Stream::of(kind), Vec::new(), body);
        while !rest.is_empty() {
            let (part, left) = rest.split_at(rest.len().min(1 + below(random, 40)));
            stream.read(part, &mut found)?;
            rest = left;
        }
        Ok(found)
    }
}

/// The frames as this crate sends them.
fn encoded(kind: &str, frames: &[Frame]) -> Vec<u8> {
    let (mut out, mut encoder) = (Pieces::default(), Encoder::default());
    for frame in frames {
        match (kind, frame) {
            ("msgapps", Frame::Heartbeat) => Encoder::encode_heartbeat(&mut out),
            ("msgapps", Frame::Message(message)) => encoder.encode(message, &mut out),
            (_, Frame::Heartbeat) => frames::encode_heartbeat(&mut out),
            (_, Frame::Message(message)) => frames::encode(message, &mut out),
        }
    }
    let len = out.len();
    let bytes = out.take().concat();
    assert_eq!(bytes.len(), len);
    bytes
}

const RELEASES: [&str; 2] = ["3.6", "3.7"];

#[test]
fn what_stock_members_say_is_read_and_said_again() {
    let mut random = Random::new(1);
    for release in RELEASES {
        let mut seen = BTreeSet::new();
        for kind in ["messages", "msgapps", "snapshots"] {
            for (number, body) in golden(release, kind).iter().enumerate() {
                let frames = Stream::whole(kind, body, &mut random).unwrap();
                assert!(!frames.is_empty(), "{release} {kind} {number}");
                for frame in &frames {
                    let Frame::Message(message) = frame else { continue };
                    seen.insert(message.kind as u8);
                    let is_of_kind = match message.kind {
                        MessageKind::Append => kind == "msgapps",
                        MessageKind::Snapshot => kind == "snapshots" && message.snapshot.is_some(),
                        _ => kind == "messages",
                    };
                    assert!(is_of_kind, "{release} {kind}: {message:?}");
                }
                let again = encoded(kind, &frames);
                if release == "3.6" {
                    assert!(again == body[..], "{release} {kind} {number} in the same bytes");
                }
                assert_eq!(Stream::whole(kind, &again, &mut random).unwrap(), frames, "{release} {kind} {number}");
            }
        }
        for body in golden(release, "posts") {
            let message = decode_message(body.clone()).unwrap().unwrap();
            seen.insert(message.kind as u8);
            assert!(release == "3.7" || encode(&message) == body[..], "{release}: {message:?}");
        }
        let missing: Vec<u8> = (2..=9).chain(13..=18).filter(|kind| !seen.contains(kind)).collect();
        // Leadership is handed over by the leader itself; nobody needs to be asked for it.
        assert_eq!(missing, [MessageKind::TransferLeader as u8], "{release}");
    }
}

#[test]
fn what_stock_members_ask_is_granted_and_their_answers_are_understood() {
    for release in RELEASES {
        let mut seen = BTreeSet::new();
        for head in golden(release, "asked") {
            let (request, _) = http1::take_request(&mut BytesMut::from(&head[..])).unwrap().unwrap();
            let id_of = |name: &str| hello::id(request.headers.get(name)).unwrap_or(0);
            let (cluster_id, member_id) = (id_of("x-etcd-cluster-id"), id_of("x-raft-to"));
            let own = Hello { cluster_id, member_id, version: "3.7.1".into(), peer_urls: String::new(), life: 9 };
            let Some(verdict) = hello::check(&request, &own, |_| Standing::Member).unwrap() else {
                assert!(["/version", "/members", "/raft/probing"].contains(&request.path.as_str()), "{request:?}");
                continue;
            };
            let asked = verdict.asked.unwrap();
            if let Asked::Stream { from, .. } = asked {
                assert_eq!(from, id_of("x-server-from"));
            }
            seen.insert(match asked {
                Asked::Stream { channel: Channel::Appends, .. } => 0,
                Asked::Stream { channel: Channel::Messages, .. } => 1,
                Asked::Message => 2,
                Asked::Snapshot => 3,
            });
        }
        assert_eq!(seen.len(), 4, "{release}");
        let answers = golden(release, "answered").into_iter().map(|head| {
            let (answer, _) = http1::take_answer(&mut BytesMut::from(&head[..])).unwrap().unwrap();
            let told = if answer.status == 204 { post_answered(&answer) } else { stream_answered(&answer).unwrap() };
            (answer.status, told)
        });
        let expected = [(200, Told::Done), (204, Told::Done), (404, Told::NotNow)];
        assert_eq!(answers.collect::<BTreeMap<_, _>>(), expected.into(), "{release}");
    }
}

fn encode(message: &Message) -> Vec<u8> {
    let mut out = Pieces::default();
    encode_message(message, &mut out);
    assert_eq!(out.len(), message_len(message));
    out.take().concat()
}

#[test]
fn a_length_beyond_the_bound_is_refused_before_it_arrives() {
    let long = (BYTES_MAX as u64 + 1).to_be_bytes();
    let refused = |kind: &str, bytes: &[u8]| Stream::of(kind).read(bytes, &mut Vec::new()).is_err();
    assert!(refused("messages", &long));
    assert!(refused("msgapps", &[&[2][..], &long].concat()));
    assert!(refused("msgapps", &[&[1][..], &long].concat()), "entries");
    assert!(refused("msgapps", &[&[1, 0, 0, 0, 0, 0, 0, 0, 1][..], &long].concat()), "one entry");
    assert!(refused("msgapps", &[3]));
    // Many empty entries: few bytes that would take much memory.
    let many = [&[1, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0; 8 << 16]].concat();
    assert!(refused("msgapps", &many));
    let many = [&[2][..], &(2_u64 << 17 | 2).to_be_bytes(), &[0x3a, 0].repeat(1 + (1 << 17))].concat();
    assert!(refused("msgapps", &many));
}

#[test]
fn whatever_is_said_ends_a_connection_at_the_worst() {
    let mut random = Random::new(2);
    let readers = [
        ("messages", hostile::messages as fn(&[u8]) -> bool),
        ("snapshots", hostile::messages),
        ("msgapps", hostile::appends),
        ("posts", hostile::message),
        ("asked", hostile::http),
        ("answered", hostile::http),
    ];
    for (kind, read) in readers {
        let (mut refused, mut taken) = (0, 0);
        for body in RELEASES.into_iter().flat_map(|release| golden(release, kind)) {
            assert!(read(&body));
            for _ in 0..200 {
                let mut bytes = body.to_vec();
                for _ in 0..1 + random.below(3) {
                    // What lies behind is mostly data that nobody looks into.
                    let at = below(&mut random, bytes.len().min(300));
                    match random.below(3) {
                        0 => bytes[at] ^= 1 << random.below(8),
                        1 => bytes[at] = bytes[at].wrapping_add(1 << random.below(8)),
                        _ => bytes.truncate(at + 1),
                    }
                }
                *if read(&bytes) { &mut taken } else { &mut refused } += 1;
            }
        }
        assert!(refused > 50 && taken > 50, "{kind}: {refused} refused, {taken} taken");
    }
}
