//! Runs on: connection core, threads of its own.
//!
//! What members say to each other.
//!
//! - `dial`: connections to peer URLs
//! - `ask`: one request to a member's peer port; `hashes`: what others hold
//! - `resolve`: whether URLs lead to the same places
//! - `links`: the connections with all other members
//! - `exchange`: what raft and `links` have for each other
//! - `incoming`, `outgoing`: streams from another member, and to it
//! - `lives`: which life of a member's process a connection is of
//! - `port`: the peer port; `message`: what it hands over to `links`
//! - `state/`: a whole state, from one member to another; `snapshot/`: one in etcd's form

pub mod ask;
pub mod dial;
pub mod exchange;
pub mod hashes;
pub mod incoming;
pub mod links;
pub mod lives;
pub mod message;
pub mod outgoing;
pub mod port;
pub mod resolve;
pub mod snapshot;
pub mod state;
#[cfg(test)]
mod tests;
