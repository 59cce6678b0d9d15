//! Ports, and the connections that come to them: what is served where, what waits, and what ends.

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    process::Command,
    thread,
};

use rustix::process::Signal;

use crate::{
    connect,
    member::{Member, WAIT_MAX, deadline, free_addresses, is_over},
    next_frame, ping,
};

/// What an HTTP/1.1 server answers to a GET before it closes: status line, headers and body.
fn ask(mut socket: impl Read + Write, path: &str) -> String {
    let sent = write!(socket, "GET {path} HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n");
    let mut answer = String::new();
    // A port that does not serve HTTP may close before it has read everything.
    match sent.and_then(|()| socket.read_to_string(&mut answer)) {
        Ok(_) => answer,
        Err(error) => error.to_string(),
    }
}

pub(crate) fn get(address: SocketAddr, path: &str) -> String {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    ask(socket, path)
}

/// Waits until `holds` does.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = deadline();
    while !holds() {
        assert!(!is_over(end), "{what}");
        thread::yield_now();
    }
}

#[test]
fn other_members_are_told_version_and_members_and_nothing_else() {
    let member = Member::start(&[]);
    let members = get(member.peer_address, "/members");
    assert!(members.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"), "{members}");
    let body = members.split("\r\n\r\n").nth(1).unwrap();
    let shown: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(shown[0]["name"], "m");
    assert_eq!(shown[0]["peerURLs"][0], format!("http://{}", member.peer_address));
    assert_eq!(shown[0]["clientURLs"][0], format!("http://{}", member.address));
    assert!(get(member.peer_address, "/version").contains("\"etcdserver\""));
    for path in ["/", "/members/", "/health", "/metrics"] {
        assert!(get(member.peer_address, path).starts_with("HTTP/1.1 404 "), "{path}");
    }
}

/// What the log of a start says that must fail before the data is touched.
fn failed_start(flags: &[(&str, &str)]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let [client, peer] = free_addresses().map(|address| format!("http://{address}"));
    let cluster = format!("m={peer}");
    let mut all = vec![("--listen-client-urls", client.as_str()), ("--listen-peer-urls", &peer)];
    all.extend([("--advertise-client-urls", client.as_str()), ("--initial-advertise-peer-urls", &peer)]);
    all.extend([("--name", "m"), ("--initial-cluster", &cluster), ("--data-dir", data.to_str().unwrap())]);
    all.retain(|(name, _)| flags.iter().all(|(given, _)| given != name));
    let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(all.iter().chain(flags).flat_map(|(name, value)| [name, value]))
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(!data.exists(), "{flags:?}: the data directory was made");
    log
}

#[test]
fn a_port_that_is_taken_ends_the_start_before_the_data_is_touched() {
    for flag in ["--listen-peer-urls", "--listen-client-urls", "--listen-client-http-urls", "--listen-metrics-urls"] {
        let taken = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = taken.local_addr().unwrap();
        let log = failed_start(&[(flag, &format!("http://{address}"))]);
        assert!(log.contains(&format!("listen tcp {address}: bind: ")), "{flag}: {log}");
    }
}

#[test]
fn a_certificate_that_cannot_be_read_ends_the_start_before_the_data_is_touched() {
    for (port, cert, key) in [
        ("--listen-client-urls", "--cert-file", "--key-file"),
        ("--listen-metrics-urls", "--cert-file", "--key-file"),
        ("--listen-peer-urls", "--peer-cert-file", "--peer-key-file"),
    ] {
        let [address] = free_addresses();
        let url = format!("https://{address}");
        let log = failed_start(&[(port, &url), (cert, "/no/such/cert.pem"), (key, "/no/such/key.pem")]);
        assert!(log.contains("open /no/such/cert.pem: no such file or directory"), "{port}: {log}");
    }
}

#[test]
fn silent_members_do_not_take_the_places_of_probes() {
    let [metrics] = free_addresses();
    let member = Member::start(&["--listen-metrics-urls", &format!("http://{metrics}")]);
    let _silent: Vec<_> = (0..200).map(|_| TcpStream::connect(member.peer_address).unwrap()).collect();
    for _ in 0..3 {
        assert!(get(metrics, "/livez").starts_with("HTTP/1.1 200 OK"));
    }
}

#[test]
fn idle_connections_do_not_take_the_places_of_members_that_ask() {
    let member = Member::start(&[]);
    // More than the port has places for. Without those that give theirs, nobody is served for a minute.
    let connections = (0..160).map(|_| {
        let mut socket = TcpStream::connect(member.peer_address).unwrap();
        socket.set_read_timeout(Some(WAIT_MAX / 2)).unwrap();
        socket.write_all(b"GET /version HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
        assert!(socket.read(&mut [0; 1000]).unwrap() > 0, "it is served");
        socket
    });
    let mut held: Vec<_> = connections.collect();
    assert_eq!(held[0].read(&mut [0]).unwrap(), 0, "the oldest one has ended");
}

#[test]
fn http_has_ports_of_its_own_where_they_are_given() {
    let [http] = free_addresses();
    let member = Member::start(&["--listen-client-http-urls", &format!("http://{http}")]);
    assert!(get(http, "/health").starts_with("HTTP/1.1 200 OK"));
    assert!(!get(member.address, "/health").contains("HTTP/1.1"), "the other port serves gRPC alone");
    let mut grpc = connect(&member);
    ping(&mut grpc);
    assert!(next_frame(&mut grpc).is_some());
    let mut refused = TcpStream::connect(http).unwrap();
    refused.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    assert!(refused.read_to_end(&mut rest).is_err() || rest.is_empty(), "HTTP/2 is not served here");
}

#[test]
fn a_unix_socket_serves_clients_and_takes_the_place_of_an_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("etcd.sock");
    fs::write(&path, "what a killed member left").unwrap();
    let member = Member::start(&["--listen-client-urls", &format!("unix://{}", path.display())]);
    assert!(ask(UnixStream::connect(&path).unwrap(), "/health").starts_with("HTTP/1.1 200 OK"));
    member.signal(Signal::TERM);
    until("a member that ends takes its socket along", || !path.exists());
}

#[test]
fn a_connection_over_the_bound_waits_in_the_backlog() {
    let member = Member::start(&["--server-connections-max", "2"]);
    let held: Vec<TcpStream> = (0..2).map(|_| connect(&member)).collect();
    for mut socket in held.iter().map(|socket| socket.try_clone().unwrap()) {
        assert!(next_frame(&mut socket).is_some(), "it is served");
    }
    let mut waiting = connect(&member);
    waiting.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    let error = waiting.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "it is neither served nor closed");
    drop(held);
    waiting.set_read_timeout(Some(WAIT_MAX)).unwrap();
    assert!(next_frame(&mut waiting).is_some(), "it is served once there is room");
}

#[test]
fn clients_that_leave_after_a_few_bytes_are_let_go_at_once() {
    let member = Member::start(&[]);
    let files = || fs::read_dir(format!("/proc/{}/fd", member.id())).unwrap().count();
    let before = files();
    for _ in 0..200 {
        let mut socket = TcpStream::connect(member.address).unwrap();
        socket.write_all(b"PRI").unwrap();
    }
    until("no descriptor stays behind", || files() <= before);
}

#[test]
fn at_sigterm_dials_are_refused_and_probes_told_while_calls_end() {
    let [metrics] = free_addresses();
    let member = Member::start(&["--listen-metrics-urls", &format!("http://{metrics}")]);
    let mut probe = TcpStream::connect(metrics).unwrap();
    assert!(get(metrics, "/readyz").ends_with("ok\n"));
    // A connection with a stream that does not end keeps the member draining.
    let mut socket = connect(&member);
    open_a_watch(&mut socket);
    member.signal(Signal::TERM);
    until("dials are refused", || TcpStream::connect(member.address).is_err());
    let answer = get(metrics, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("[-]linearizable_read failed: etcdserver: server stopped"), "{answer}");
    probe.write_all(b"GET /livez HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
    let mut line = [0; 15];
    probe.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"HTTP/1.1 200 OK", "it still lives");
}

/// Opens a stream of `Watch`, with HPACK's literals without names from the table.
fn open_a_watch(socket: &mut TcpStream) {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/etcdserverpb.Watch/Watch"),
        (":authority", "m"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut frame = vec![0, 0, u8::try_from(block.len()).unwrap(), 1, 4, 0, 0, 0, 1];
    frame.extend_from_slice(&block);
    socket.write_all(&frame).unwrap();
    // The answer to a ping behind it says that the stream was seen.
    ping(socket);
    while next_frame(socket).unwrap().0 != 6 {}
}
