//! A server of the smallest kind, for tests of the whole loop over real sockets: it answers every call with an empty
//! message.
//!
//! It reads no header, gives all the window at the start, and says nothing unasked, so that nothing but the loop's own
//! timer can wake the loop.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread::Builder,
    time::Duration,
};

use crate::{
    client::Endpoint,
    clock,
    load::{self, Plan, Report},
    report::Tally,
    workload::{Keys, Kind, Workload},
};

const EMPTY_SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// The connection's window raised by 1 GiB, once and for all.
const WIDE_WINDOW: &[u8] = &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0x40, 0, 0, 0];
const SETTINGS_ACK: &[u8] = &[0, 0, 0, 4, 1, 0, 0, 0, 0];
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Listens on a free port; each connection is closed after `replies_max` replies.
fn serve(replies_max: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let accept = move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            Builder::new().spawn(move || answer(stream, replies_max)).unwrap();
        }
    };
    Builder::new().spawn(accept).unwrap();
    address
}

fn answer(mut stream: TcpStream, replies_max: usize) -> Option<()> {
    stream.write_all(EMPTY_SETTINGS).ok()?;
    stream.write_all(WIDE_WINDOW).ok()?;
    stream.read_exact(&mut [0; 24]).ok()?;
    let mut replies = 0;
    while replies < replies_max {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let payload_bytes = usize::from(head[1]) << 8 | usize::from(head[2]);
        stream.read_exact(&mut vec![0; payload_bytes]).ok()?;
        let (kind, flags, id) = (head[3], head[4], &head[5..]);
        if kind == 4 && flags == 0 {
            stream.write_all(SETTINGS_ACK).ok()?;
        } else if kind == 0 && flags & 1 != 0 {
            let head = [&[0, 0, 1, 1, 4], id, &[0x88]].concat();
            let message = [&[0, 0, 5, 0, 0], id, &[0; 5]].concat();
            let trailers = [&[0, 0, 15, 1, 5], id, b"\x00\x0bgrpc-status\x010"].concat();
            stream.write_all(&[head, message, trailers].concat()).ok()?;
            replies += 1;
        }
    }
    Some(())
}

/// Runs a load of puts to its end, which must come.
fn load(address: SocketAddr, conns: usize, clients: usize, total: u64, rate: u64) -> Tally {
    load_over_connections_of(u32::MAX, address, conns, clients, total, rate)
}

fn load_over_connections_of(
    calls_per_conn: u32,
    address: SocketAddr,
    conns: usize,
    clients: usize,
    total: u64,
    rate: u64,
) -> Tally {
    let endpoint = Endpoint { authority: address.to_string(), address, secure: None };
    let keys = Keys::new(8, 100, false).unwrap();
    let plan = Plan {
        endpoints: vec![endpoint],
        conns,
        clients,
        threads: 1,
        total,
        duration_ns: None,
        rate,
        timeout_ns: 20_000_000_000,
        calls_per_conn,
        workload: Workload { kind: Kind::Put, keys, value_bytes: 64, seed: 1 },
    };
    let start_ns = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = sync_channel(2);
    let started = Arc::clone(&start_ns);
    Builder::new().spawn(move || load::run(&plan, 0, &started, &sender)).unwrap();
    let mut tally = Tally::new(1);
    let deadline_ns = clock::now_ns() + clock::duration_ns(WAIT_MAX);
    loop {
        let left = Duration::from_nanos(deadline_ns.saturating_sub(clock::now_ns()));
        match receiver.recv_timeout(left).expect("the load is over in time") {
            Report::Ready => start_ns.store(clock::now_ns() + 1, Ordering::Release),
            Report::Second(second) => tally.merge(&second),
            Report::Finished { tally: last, .. } => {
                tally.merge(&last);
                return tally;
            }
            Report::Failed(error) => panic!("{error}"),
        }
    }
}

#[test]
fn open_loop_keeps_its_timetable_though_nothing_wakes_it() {
    let tally = load(serve(usize::MAX), 3, 3, 200, 1_000);
    assert_eq!((tally.ended, tally.errors()), (200, 0));
    assert_eq!((tally.latencies[0].count(), tally.lag.count()), (200, 200));
}

#[test]
fn closed_loop_ends_with_every_request_answered() {
    let tally = load(serve(usize::MAX), 4, 40, 5_000, 0);
    assert_eq!((tally.ended, tally.errors()), (5_000, 0));
    assert_eq!(tally.latencies[0].count(), 5_000);
}

#[test]
fn connections_that_have_had_their_calls_are_replaced_and_nothing_is_lost() {
    for rate in [0, 1_000] {
        let tally = load_over_connections_of(3, serve(3), 4, 4, 200, rate);
        assert_eq!((tally.ended, tally.errors()), (200, 0), "{:?}", tally.errors_by_kind);
    }
}

#[test]
fn lost_connections_are_replaced_and_every_request_accounted_for() {
    for rate in [0, 1_000] {
        let tally = load(serve(40), 2, 4, 200, rate);
        let count = |prefix: &str| -> u64 {
            let kinds = tally.errors_by_kind.iter().filter(|(kind, _)| kind.starts_with(prefix));
            kinds.map(|(_, count)| count).sum()
        };
        let (answered, lost, losses) = (tally.latencies[0].count(), count("Unavailable: "), count("connection: "));
        assert_eq!((answered + lost, tally.ended), (200, 200), "{:?}", tally.errors_by_kind);
        assert_eq!(lost + losses, tally.errors());
        // A server that closes with requests unread resets the connection, and replies on their way are lost with it:
        // in an open loop any number of them, in a closed one no more than there are clients.
        assert!(losses >= 2);
        assert!(rate > 0 || lost <= 2 * losses);
    }
}
