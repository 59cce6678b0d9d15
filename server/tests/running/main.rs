//! The server's binary: over real sockets, spoken to without a gRPC library, and its command lines.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod clusters;
mod commands;
mod damage;
mod flow;
mod grpc;
mod insight;
mod member;
mod ports;
mod posted;
mod starts;

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use crate::member::{Member, WAIT_MAX};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

fn connect(member: &Member) -> TcpStream {
    let mut socket = TcpStream::connect(member.address).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.write_all(PREFACE).unwrap();
    // An empty SETTINGS.
    socket.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
    socket
}

/// The next frame: its type and payload; `None` at the end.
fn next_frame(socket: &mut TcpStream) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    socket.read_exact(&mut head).ok()?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    socket.read_exact(&mut payload).ok()?;
    Some((head[3], payload))
}

fn ping(socket: &mut TcpStream) {
    socket.write_all(&[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
}

#[test]
fn a_client_that_pings_too_often_is_told_to_go_away_in_grpcs_words() {
    let member = Member::start(&[]);
    let mut socket = connect(&member);
    let (mut answers, mut farewell) = (0, None);
    // The first is free and two strikes are borne; each ping is answered before the next one is sent.
    for _ in 0..4 {
        ping(&mut socket);
        loop {
            match next_frame(&mut socket) {
                Some((6, _)) => {
                    answers += 1;
                    break;
                }
                Some((7, payload)) => {
                    farewell = Some(payload);
                    break;
                }
                Some(_) => {}
                None => break,
            }
        }
    }
    assert!(answers >= 3, "{answers} pings were answered");
    let farewell = farewell.or_else(|| next_frame(&mut socket).filter(|frame| frame.0 == 7).map(|frame| frame.1));
    let farewell = farewell.expect("it is told why");
    assert_eq!(&farewell[4..8], [0, 0, 0, 11], "ENHANCE_YOUR_CALM");
    assert_eq!(&farewell[8..], b"too_many_pings");
    assert!(next_frame(&mut socket).is_none(), "the connection ends");
}

#[test]
fn several_cores_start_on_one_path_that_was_tried_once() {
    for _ in 0..5 {
        let member = Member::start(&["--server-cores", "6"]);
        let log = member.log_text();
        let paths: Vec<&str> = log.lines().filter(|line| line.contains("\"I/O path\"")).collect();
        let [path] = paths[..] else { panic!("said {} times: {paths:?}", paths.len()) };
        // A member alone on a directory loses nothing to itself: one that could have io_uring has it on all threads.
        let alone = Member::start(&["--server-cores", "1"]).log_text();
        assert_eq!(path.contains("io_uring, O_DIRECT"), alone.contains("io_uring, O_DIRECT"), "{path}");
    }
}
