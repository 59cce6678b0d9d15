//! Runs on: connection core, raft core.
//!
//! What the peer port and the connections with other members say to each other, and to whoever sends and fetches whole
//! states.

use bytes::BytesMut;
use consensus::{
    Message,
    peer::{
        hello::{Channel, Remote},
        http1::Body,
    },
};
use tokio::sync::oneshot;

use super::links::ConnectionId;
use crate::wire::{http1::Request, socket::Count, stream::Parked};

/// To the connections with other members.
#[derive(Debug)]
pub enum ToPeers {
    /// A member has asked for a stream, and it was granted.
    Stream {
        /// The connection, behind the request.
        stream: Parked,
        /// What has arrived behind the request.
        rest: BytesMut,
        /// Its number.
        id: ConnectionId,
        /// Which stream.
        channel: Channel,
        /// Who asks, and in which life.
        from: (u64, u64),
    },
    /// A member has posted a message.
    Posted {
        /// What it says.
        message: Box<Message>,
        /// Its length. **Units** bytes.
        bytes: usize,
        /// Who has posted it, and in which life.
        from: (u64, u64),
        /// The number of the connection.
        id: ConnectionId,
        /// Whether it was taken.
        taken: oneshot::Sender<bool>,
    },
    /// Somebody has said where it is reached.
    Remote(Remote),
}

/// To whoever sends and fetches whole states.
#[derive(Debug)]
pub enum ToStates {
    /// A follower needs a state of this member, which leads.
    Wanted {
        /// The follower.
        to: u64,
        /// It is etcd's, which fetches nothing.
        is_posted: bool,
    },
    /// The state that was made for a follower of etcd's goes to it with this message.
    Post {
        /// The message.
        message: Box<Message>,
        /// The follower's peer URLs.
        urls: Vec<String>,
    },
    /// The leader holds a state ready for this member.
    Offered {
        /// Its message.
        message: Box<Message>,
        /// The leader's peer URLs.
        urls: Vec<String>,
    },
    /// A member has come to fetch a state.
    Asked {
        /// The connection, behind the request.
        stream: Parked,
        /// Counts the connection.
        count: Count,
        /// The request.
        request: Box<Request>,
    },
    /// A member posts a snapshot in etcd's form.
    Posted {
        /// The connection, behind the request.
        stream: Parked,
        /// Counts the connection.
        count: Count,
        /// The body, of which nothing was taken.
        body: Body,
        /// What has arrived behind the request.
        rest: BytesMut,
    },
}
