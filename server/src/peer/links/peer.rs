//! Runs on: raft core.
//!
//! What is known of another member, and of each connection with it.

use std::{collections::BTreeSet, time::Duration};

use bytes::{Bytes, BytesMut};
use consensus::peer::hello::Channel;

use crate::peer::{incoming::Incoming, lives::Lives, outgoing::Outgoing};

/// A connection for posts that was idle for so long is not used again: the other side closes it soon.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(4);

/// The number of a connection. One that was established later has a higher one.
pub type ConnectionId = u64;

/// What a connection that this member makes is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Stream(Channel),
    Posts,
}

/// What has passed between this member and another one since that is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// It is connected.
    pub is_active: bool,
    /// How often it was connected, and then was not.
    pub disconnections: u64,
    /// Written to it. **Units** bytes.
    pub sent_bytes: u64,
    /// Read from it. **Units** bytes.
    pub received_bytes: u64,
    /// How often messages to it were lost.
    pub send_failures: u64,
    /// How often it sent what no member sends.
    pub receive_failures: u64,
}

#[derive(Debug)]
pub(super) enum Way {
    /// A stream from the member, asked for by `request`.
    Reading { channel: Channel, incoming: Box<Incoming>, request: Option<Bytes>, heard_at: Duration },
    /// A stream to the member.
    Writing { outgoing: Box<Outgoing> },
    /// One message is posted after the other.
    Posting { request: Vec<Bytes>, answer: BytesMut, is_waiting: bool, since: Duration },
}

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) member_id: u64,
    /// The life of the member that it is of; `None` as long as that is not known.
    pub(super) life: Option<u64>,
    /// Which of the member's URLs was dialled for it ([`Peer::picked`]).
    pub(super) picked: usize,
    pub(super) way: Way,
}

/// A message that waits to be posted.
#[derive(Debug)]
pub(super) struct Post {
    pub(super) body: Vec<Bytes>,
    pub(super) len: usize,
}

/// Another member.
#[derive(Debug, Default)]
pub(super) struct Peer {
    pub(super) urls: Vec<String>,
    /// Counts up to choose the next URL, whenever the one that is picked turns out to be of no use.
    pub(super) picked: usize,
    /// It is one of the cluster's, as far as is applied here.
    pub(super) is_member: bool,
    /// It is none any more, and is forgotten then.
    pub(super) leaves_at: Option<Duration>,
    pub(super) lives: Lives,
    /// When each stream was dialled last, and the try that is under way.
    pub(super) dials: [Dialling; 2],
    /// The streams from it and to it.
    pub(super) reading: [Option<ConnectionId>; 2],
    pub(super) writing: [Option<ConnectionId>; 2],
    /// What waits to be posted, the tries to connect for that, and the connections.
    pub(super) posts: Vec<Post>,
    pub(super) posts_bytes: usize,
    pub(super) posting: Vec<ConnectionId>,
    pub(super) post_attempts: BTreeSet<u64>,
    /// Since when it is connected.
    pub(super) active_since: Option<Duration>,
    /// URLs that have refused a connection since one was made.
    pub(super) refused: BTreeSet<String>,
    pub(super) is_gone: bool,
    pub(super) traffic: Traffic,
    /// That it refuses streams was told since it granted one last.
    pub(super) is_refusal_told: bool,
    /// That it cannot be dialled was told since it was connected last.
    pub(super) is_told: bool,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dialling {
    pub(super) last_at: Option<Duration>,
    pub(super) attempt: Option<u64>,
}

impl Connection {
    /// Whether messages are lost with it.
    pub(super) fn loses_messages(&self) -> bool {
        matches!(self.way, Way::Writing { .. } | Way::Posting { is_waiting: true, .. })
    }
}

impl Peer {
    pub(super) fn connections(&self) -> impl Iterator<Item = ConnectionId> {
        self.reading.into_iter().chain(self.writing).flatten().chain(self.posting.iter().copied())
    }

    pub(super) fn url_at(&self, picked: usize) -> &str {
        self.urls.get(picked % self.urls.len().max(1)).map_or("", String::as_str)
    }

    pub(super) fn url(&self) -> &str {
        self.url_at(self.picked)
    }

    /// The URL that was picked then is of no use: another one is next. Several tries at once say it once.
    pub(super) fn pass_over(&mut self, picked: usize) {
        self.picked += usize::from(self.picked == picked);
    }
}
