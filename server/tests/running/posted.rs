//! Databases that are posted to a member as etcd's leaders do it, by somebody who lies or goes away. Each is answered
//! with the reason, changes nothing, and leaves nothing behind.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpStream},
};

use bytes::Bytes;
use consensus::{
    ConfState, EntryId, Message, MessageKind, Snapshot,
    peer::{hello::Hello, pieces::Pieces, raftpb},
};
use proto::etcdserverpb::{PutRequest, PutResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse};
use server::wire::client::Client;

use crate::{
    grpc::Raw,
    insight::block_on,
    member::{Member, WAIT_MAX},
    ports::{get, until},
};

/// SHA-256, which follows a database that clients get.
const DIGEST_BYTES: usize = 32;
const PAGE_BYTES: usize = 4096;
/// Who posts: no member.
const STRANGER: u64 = 0x77;

/// A member to whom databases are posted, and what it is.
struct Target {
    member: Member,
    cluster_id: u64,
    id: u64,
    puts: usize,
}

/// A database as a client gets it, and where it stands.
struct Taken {
    at: EntryId,
    bytes: Vec<u8>,
}

impl Target {
    async fn new() -> Self {
        let member = Member::start(&[]);
        let members = get(member.peer_address, "/members");
        let id_of = |line: &str| members.lines().find_map(|own| own.strip_prefix(line).map(str::to_owned)).unwrap();
        let cluster_id = u64::from_str_radix(&id_of("X-Etcd-Cluster-Id: "), 16).unwrap();
        let status = status(&member).await;
        let mut target = Self { member, cluster_id, id: status.header.unwrap().member_id, puts: 0 };
        target.serves().await;
        target
    }

    /// That the member answers, and applies.
    async fn serves(&mut self) {
        self.puts += 1;
        let (key, value) = (format!("{:06}", self.puts).into(), vec![b'v'; 10_000].into());
        let put = PutRequest { key, value, ..PutRequest::default() };
        let mut client = Client::connect(&self.member.address.to_string()).await.unwrap();
        let answer: PutResponse = client.call("/etcdserverpb.KV/Put", &put).await.unwrap();
        assert_eq!(answer.header.unwrap().revision, i64::try_from(self.puts).unwrap() + 1, "nothing was changed");
    }

    async fn take(&self) -> Taken {
        let mut raw = Raw::connect_to(self.member.address).await;
        let before = status(&self.member).await;
        let mut stream = raw.call_with(&SnapshotRequest {}, "/etcdserverpb.Maintenance/Snapshot").await;
        let mut bytes = Vec::new();
        while let Some((_, message)) = stream.next().await {
            bytes.extend_from_slice(&<SnapshotResponse as prost::Message>::decode(message).unwrap().blob);
        }
        bytes.truncate(bytes.len() - DIGEST_BYTES);
        Taken { at: EntryId { index: before.raft_applied_index, term: before.raft_term }, bytes }
    }

    /// The message about a database that stands `at`.
    fn message(&self, at: EntryId) -> Message {
        let conf_state = ConfState { voters: vec![self.id], ..ConfState::default() };
        let snapshot = Some(Box::new(Snapshot { at, conf_state, data: Bytes::new() }));
        Message {
            kind: MessageKind::Snapshot,
            to: self.id,
            from: STRANGER,
            term: at.term,
            snapshot,
            ..Message::default()
        }
    }

    /// A connection on which the head of a post was sent.
    fn begin(&self) -> TcpStream {
        let mut socket = TcpStream::connect(self.member.peer_address).unwrap();
        socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
        let hello = Hello {
            cluster_id: self.cluster_id,
            member_id: STRANGER,
            version: "3.7.1".into(),
            peer_urls: String::new(),
            life: 1,
        };
        socket.write_all(hello.post_snapshot("m").as_bytes()).unwrap();
        socket
    }

    /// Posts all of a body. Returns the answer's status, and its text.
    fn post(&self, body: &[&[u8]]) -> (u16, String) {
        let mut socket = self.begin();
        // Who is refused early may not have read all of it.
        drop(body.iter().try_for_each(|piece| chunk(&mut socket, piece)).and_then(|()| socket.write_all(b"0\r\n\r\n")));
        answer(socket)
    }

    fn leftover(&self) -> Vec<String> {
        let names = fs::read_dir(self.member.data_dir()).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("received-")).collect()
    }
}

async fn status(member: &Member) -> StatusResponse {
    let mut client = Client::connect(&member.address.to_string()).await.unwrap();
    client.call("/etcdserverpb.Maintenance/Status", &StatusRequest {}).await.unwrap()
}

fn chunk(socket: &mut TcpStream, piece: &[u8]) -> std::io::Result<()> {
    write!(socket, "{:x}\r\n", piece.len())?;
    socket.write_all(piece)?;
    socket.write_all(b"\r\n")
}

fn answer(mut socket: TcpStream) -> (u16, String) {
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("an answer: {answer:?}"));
    (head.split(' ').nth(1).unwrap().parse().unwrap(), text.trim_end().to_owned())
}

/// A message with its length before it.
fn framed(message: &Message) -> Vec<u8> {
    let mut pieces = Pieces::default();
    raftpb::encode_message(message, &mut pieces);
    let encoded = pieces.take().concat();
    [&(encoded.len() as u64).to_be_bytes()[..], &encoded].concat()
}

#[test]
fn a_database_that_lies_is_refused_with_the_reason_and_changes_nothing() {
    block_on(async {
        let mut target = Target::new().await;
        let taken = target.take().await;
        let right = framed(&target.message(taken.at));
        let ahead = framed(&target.message(EntryId { index: taken.at.index + 1, ..taken.at }));
        let elsewhere = framed(&Message { to: STRANGER, ..target.message(taken.at) });
        let other_kind = framed(&Message { kind: MessageKind::Heartbeat, snapshot: None, ..target.message(taken.at) });
        let half = &taken.bytes[..taken.bytes.len() / 2];
        let mut bent = taken.bytes.clone();
        // What kind each page is of, behind the two that name the root.
        bent.chunks_mut(PAGE_BYTES).skip(2).for_each(|page| page[8..10].fill(0xff));
        let cases: [(&[&[u8]], u16, &str); 9] = [
            (&[&(1_u64 << 40).to_be_bytes()], 400, "failed to decode raft message"),
            (&[&8_u64.to_be_bytes(), b"nonsense"], 400, "failed to decode raft message"),
            (&[&right[..right.len() - 1]], 400, "failed to decode raft message (unexpected EOF)"),
            (&[&other_kind], 400, "wrong raft message type"),
            (&[&elsewhere], 500, "failed to process raft message (cannot process message to mismatch member)"),
            (&[&right, b"no database"], 500, "failed to save KV snapshot"),
            (&[&ahead, &taken.bytes], 500, "failed to save KV snapshot"),
            (&[&right, half], 500, "failed to save KV snapshot"),
            (&[&right, &bent], 500, "failed to save KV snapshot"),
        ];
        for (number, (body, status, text)) in cases.into_iter().enumerate() {
            let answer = target.post(body);
            assert!(answer.0 == status && answer.1.starts_with(text), "{number}: {answer:?}");
            target.serves().await;
        }
        assert_eq!(target.leftover(), Vec::<String>::new());
    });
}

#[test]
fn a_database_whose_sender_goes_away_makes_place_for_the_next() {
    block_on(async {
        let mut target = Target::new().await;
        let taken = target.take().await;
        let right = framed(&target.message(taken.at));
        // All of it, and no end.
        let mut silent = target.begin();
        for piece in [&right[..], &taken.bytes] {
            chunk(&mut silent, piece).unwrap();
        }
        silent.shutdown(Shutdown::Write).unwrap();
        let (status, text) = answer(silent);
        assert_eq!((status, text.as_str()), (500, "failed to save KV snapshot (the connection ended)"));
        let mut gone = target.begin();
        chunk(&mut gone, &right).unwrap();
        drop(gone);
        target.serves().await;
        // What is older than the member's own state is no fault, and of no use.
        for _ in 0..3 {
            assert_eq!(target.post(&[&right, &taken.bytes]).0, 204);
            target.serves().await;
            assert!(!target.member.log_text().contains("is not taken"), "raft is asked for nothing wrong");
        }
        until("what was received is removed", || target.leftover().is_empty());
    });
}

#[test]
fn a_second_database_takes_the_place_of_the_one_under_way() {
    block_on(async {
        let mut target = Target::new().await;
        let taken = target.take().await;
        let right = framed(&target.message(taken.at));
        let mut first = target.begin();
        chunk(&mut first, &right).unwrap();
        until("the first one has begun", || !target.leftover().is_empty());
        assert_eq!(target.post(&[&right, &taken.bytes]).0, 204);
        let (status, text) = answer(first);
        assert_eq!((status, text.as_str()), (500, "failed to save KV snapshot (another one takes its place)"));
        target.serves().await;
        until("what was received is removed", || target.leftover().is_empty());
    });
}
