//! What members say to each other, as bytes: etcd's messages and the frames of its streams.
//!
//! Sans-io: bytes come in as they arrive, cut anywhere, and go out as pieces to be written one after the other. Sockets
//! and HTTP belong to whoever holds a connection.
//!
//! Invariants:
//! - What a peer sends is decoded strictly into this crate's own types, or refused; bytes of peers reach no other
//!   parser. A refusal costs the connection, never the process.
//! - Memory is taken for what has arrived. A length that is announced takes none, and is refused beyond its bound.
//! - The data of an entry is not copied: what is sent shares it with the log, what is received shares its frame.
//! - Every scalar is written, zero or not, as etcd 3.6 does. Members of 3.7 leave out what was not set, and read both.
//!
//! Files, each importing only files above it:
//!
//! - `pieces`: bytes on their way out.
//! - `http1`: heads and bodies of HTTP/1.1.
//! - `hello`: what a request says of its sender, and the checks of the one who is asked.
//! - `raftpb`: messages, entries and snapshots in etcd's protobuf. A bare message is the body of a POST /raft.
//! - `frames`: the message stream, and the head of a snapshot's body.
//! - `msgapp`: the stream of appends.
//! - `hostile`: for the fuzz targets.
//!
//! **Source**: etcd v3.7.1 `server/etcdserver/api/rafthttp`, `raft/v3 raftpb/raft.proto`.

pub mod frames;
pub mod hello;
#[doc(hidden)]
pub mod hostile;
pub mod http1;
pub mod msgapp;
pub mod pieces;
pub mod raftpb;
