//! What clients may send and leave unread: bursts of small messages that are served, and floods that are bounded.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
};

use crate::{
    PREFACE, connect,
    member::{Member, WAIT_MAX, deadline, is_over},
    next_frame,
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

const FRAME_HEAD_BYTES: usize = 9;

/// The window that a member gives to a stream. **Units** bytes.
const STREAM_WINDOW_BYTES: usize = 65_535;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HEADERS that begin a call. All fields are literals that are not indexed.
fn begin_call(stream: u32, path: &str) -> Vec<u8> {
    let mut fields = vec![0x83, 0x86];
    let len = u8::try_from(path.len()).unwrap();
    fields.extend([0x04, len]);
    fields.extend(path.as_bytes());
    for (name, value) in [("content-type", "application/grpc"), ("te", "trailers"), (":authority", "m")] {
        // The pseudo header comes first.
        let at = if name.starts_with(':') { 2 } else { fields.len() };
        let mut field = vec![0, u8::try_from(name.len()).unwrap()];
        field.extend(name.as_bytes());
        field.push(u8::try_from(value.len()).unwrap());
        field.extend(value.as_bytes());
        fields.splice(at..at, field);
    }
    frame(HEADERS, 4, stream, &fields)
}

/// A WatchRequest that creates a watch of the key `k`, framed as gRPC frames messages.
const CREATE_WATCH: [u8; 10] = [0, 0, 0, 0, 5, 0x0a, 3, 0x0a, 1, b'k'];

#[test]
fn watches_that_a_client_creates_in_one_burst_are_all_created_and_answered_in_few_frames() {
    let member = Member::start(&[]);
    let mut socket = connect(&member);
    let count = STREAM_WINDOW_BYTES / CREATE_WATCH.len();
    let mut burst = begin_call(1, "/etcdserverpb.Watch/Watch");
    (0..count).for_each(|_| burst.extend(frame(DATA, 0, 1, &CREATE_WATCH)));
    socket.write_all(&burst).unwrap();
    let (mut created, mut frames, mut bytes) = (0, 0, Vec::new());
    while created < count {
        let (kind, payload) = next_frame(&mut socket).expect("the connection lives");
        assert_ne!(kind, GOAWAY, "{}", payload[8..].escape_ascii());
        if kind != DATA {
            continue;
        }
        frames += 1;
        let update = u32::try_from(payload.len()).unwrap().to_be_bytes();
        socket.write_all(&[frame(8, 0, 0, &update), frame(8, 0, 1, &update)].concat()).unwrap();
        bytes.extend(payload);
        while bytes.len() >= 5 {
            let len = 5 + u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            if bytes.len() < len {
                break;
            }
            bytes.drain(..len);
            created += 1;
        }
    }
    assert!(frames < count / 20, "{count} answers came in {frames} frames");
}

#[test]
fn small_frames_that_no_call_reads_end_the_connection() {
    let member = Member::start(&[]);
    let mut socket = TcpStream::connect(member.address).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.write_all(PREFACE).unwrap();
    // This client takes no bytes of answers, so its watches wait, and read nothing.
    socket.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).unwrap();
    for stream in [1, 3, 5, 7] {
        socket.write_all(&begin_call(stream, "/etcdserverpb.Watch/Watch")).unwrap();
        socket.write_all(&frame(DATA, 0, stream, &CREATE_WATCH)).unwrap();
        let flood: Vec<u8> = (0..STREAM_WINDOW_BYTES / 10).flat_map(|_| frame(DATA, 0, stream, &[0])).collect();
        if socket.write_all(&flood).is_err() {
            break;
        }
    }
    let farewell = std::iter::from_fn(|| next_frame(&mut socket)).find(|(kind, _)| *kind == GOAWAY);
    let (_, payload) = farewell.expect("it is told why");
    assert_eq!((&payload[4..8], &payload[8..]), (&[0, 0, 0, 11][..], &b"too_many_data_frames"[..]));
}

/// A client that does nothing but send SETTINGS, and read their answers.
struct Flood {
    socket: TcpStream,
    /// Bytes of the next frame that were sent.
    sent: usize,
}

impl Flood {
    fn begin(member: &Member) -> Self {
        let socket = connect(member);
        socket.set_nonblocking(true).unwrap();
        Self { socket, sent: 0 }
    }

    /// Reads the answers that have come, and sends what the member takes at once. Returns the bytes of the answers.
    fn go_on(&mut self, frames: &[u8], answers: &mut [u8]) -> usize {
        let mut answered = 0;
        while let Ok(len) = self.socket.read(answers) {
            assert!(len > 0, "the flood goes on");
            answered += len;
        }
        match self.socket.write(&frames[self.sent..]) {
            Ok(len) => self.sent = (self.sent + len) % FRAME_HEAD_BYTES,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        answered
    }
}

#[test]
fn floods_of_settings_let_other_clients_have_their_turns() {
    const FLOODS: usize = 100;
    const REQUESTS: usize = 10;
    let member = Member::start(&["--server-cores", "1"]);
    let (frames, mut answers) = (frame(SETTINGS, 0, 0, &[]).repeat(1 << 13), vec![0; 1 << 18]);
    let mut floods: Vec<_> = (0..FLOODS).map(|_| Flood::begin(&member)).collect();
    let mut client = TcpStream::connect(member.address).unwrap();
    client.set_nonblocking(true).unwrap();
    let until = deadline();
    let mut answered = [0; REQUESTS];
    for answered in &mut answered {
        for flood in &mut floods {
            flood.go_on(&frames, &mut answers);
        }
        client.write_all(b"GET /version HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
        let mut turn = (0..FLOODS).cycle();
        // Looked at between any two floods: a test that is kept waiting finds the answer before it counts much more.
        while client.read(&mut [0; 4096]).is_err() {
            assert!(!is_over(until), "it is answered");
            *answered += floods[turn.next().unwrap()].go_on(&frames, &mut answers);
        }
    }
    answered.sort_unstable();
    // A turn of each flood is 128 frames: 115 kB in all. Without turns it is 9.7 MB.
    let bytes = answered[REQUESTS / 2];
    assert!(bytes < 2_000_000, "{bytes} bytes of floods are answered before a request is");
}
