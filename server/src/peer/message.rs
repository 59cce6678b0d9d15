//! Runs on: connection core, raft core.
//!
//! What the peer port sends to the connections with other members.

use bytes::BytesMut;
use consensus::{
    Message,
    peer::hello::{Channel, Remote},
};
use tokio::sync::oneshot;

use super::links::ConnectionId;
use crate::wire::{socket::Count, stream::Parked};

/// See the head of this file.
#[derive(Debug)]
pub enum ToPeers {
    /// A member has asked for a stream, and it was granted.
    Stream {
        /// The connection, behind the request.
        stream: Parked,
        /// What has arrived behind the request.
        rest: BytesMut,
        /// Counts the connection.
        count: Count,
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
