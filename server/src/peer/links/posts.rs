//! Runs on: raft core.
//!
//! Messages that find no stream: each is posted by itself, over a few connections that are kept for the next ones.
//!
//! Invariants: what waits to be posted to a member is bounded, in messages and in bytes. A connection has one request
//! under way; it takes the next message when that is answered.

use std::time::Duration;

use consensus::{
    Message, MessageKind,
    peer::{
        hello::{self, Told},
        http1,
        pieces::Pieces,
        raftpb,
    },
};

use super::{
    Arrived, Deed, Links,
    peer::{Connection, ConnectionId, Post, Purpose, Way},
};
use crate::peer::{dial::host_of, incoming::is_of};

/// Messages that are posted to one member at once. **Source** etcd v3.7.1 `rafthttp/pipeline.go`, `connPerPipeline`.
const POSTING_MAX: usize = 4;
/// Messages that wait to be posted to one member. **Source** the same, `pipelineBufSize`.
const POSTS_MAX: usize = 64;

impl Links {
    /// The member `from`, in this `life`, has posted `message`, of so many bytes, over the connection `id`. Returns
    /// whether it is taken.
    pub fn posted(&mut self, (from, life): (u64, u64), (message, bytes): (Message, usize), id: ConnectionId) -> bool {
        let is_strange = self.removed.contains(&message.from) || message.kind == MessageKind::Snapshot;
        if is_strange || !is_of(&message, from, self.own.member_id) {
            return false;
        }
        if self.peers.contains_key(&from) && !self.admit(from, life, id) {
            return false;
        }
        self.count(from, |traffic| traffic.received_bytes += bytes as u64);
        self.messages.push(Arrived { id, message });
        true
    }

    /// How many bytes of proposals can be sent to the member now, by its stream or posted.
    pub(super) fn room_of(&self, member_id: u64) -> usize {
        let Some(peer) = self.peers.get(&member_id) else { return 0 };
        let [_, others] = peer.writing;
        let waiting = match others.and_then(|id| self.connections.get(&id)).map(|connection| &connection.way) {
            Some(Way::Writing { outgoing }) => outgoing.waiting(),
            _ if peer.is_gone || peer.urls.is_empty() || peer.posts.len() >= POSTS_MAX / 2 => return 0,
            _ => peer.posts_bytes,
        };
        (self.options.waiting_bytes_max / 2).saturating_sub(waiting)
    }

    /// Posts a message for which there is no stream.
    pub(super) fn post(&mut self, message: &Message, now: Duration) {
        let to = message.to;
        let peer = self.peers.get_mut(&to).expect("just seen");
        let mut pieces = Pieces::default();
        raftpb::encode_message(message, &mut pieces);
        let len = pieces.len();
        // Where nobody listens, nothing is gathered.
        let is_full = peer.posts.len() >= POSTS_MAX || peer.posts_bytes + len > self.options.waiting_bytes_max;
        if is_full || peer.is_gone || peer.urls.is_empty() {
            self.lose_messages(to);
            return;
        }
        peer.posts.push(Post { body: pieces.take(), len });
        peer.posts_bytes += len;
        self.post_next(to, now);
    }

    /// Posts what waits, over connections that are free, or that are to be made.
    pub(super) fn post_next(&mut self, member_id: u64, now: Duration) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        for id in &peer.posting {
            let Some(Connection { way: Way::Posting { request, is_waiting, since, .. }, .. }) =
                self.connections.get_mut(id)
            else {
                continue;
            };
            if *is_waiting || peer.posts.is_empty() {
                continue;
            }
            let Post { body, len } = peer.posts.remove(0);
            peer.posts_bytes -= len;
            let url = peer.urls.get(peer.picked % peer.urls.len().max(1)).map_or("", String::as_str);
            request.push(self.own.post_message(host_of(url), len).into());
            request.extend(body);
            (*is_waiting, *since) = (true, now);
            self.deeds.push(Deed::Write(*id));
        }
        let under_way = peer.posting.len() + peer.post_attempts.len();
        let wanted = peer.posts.len().saturating_sub(peer.post_attempts.len());
        for _ in 0..wanted.min(POSTING_MAX.saturating_sub(under_way)) {
            self.attempts.insert(self.next_attempt, (member_id, Purpose::Posts, peer.picked));
            peer.post_attempts.insert(self.next_attempt);
            self.deeds.push(Deed::Dial { attempt: self.next_attempt, url: peer.url().to_owned() });
            self.next_attempt += 1;
        }
    }

    /// Takes the answer to a message that was posted. Returns whether the connection goes on.
    pub(super) fn take_answer(&mut self, id: ConnectionId, now: Duration) -> bool {
        let Some(Connection { member_id, picked, way: Way::Posting { answer, is_waiting, since, .. }, .. }) =
            self.connections.get_mut(&id)
        else {
            return false;
        };
        let (member_id, picked) = (*member_id, *picked);
        let (told, is_kept) = match http1::take_answer(answer) {
            Ok(None) => return *is_waiting,
            Ok(Some((head, body))) => (hello::post_answered(&head), head.is_kept && body.is_over()),
            Err(_) => return false,
        };
        if !*is_waiting {
            return false;
        }
        (*is_waiting, *since) = (false, now);
        match told {
            Told::Done => self.activate(member_id, now),
            Told::Removed => self.hear_of_removal(),
            Told::NotNow => {
                self.deactivate(member_id);
                self.lose_messages(member_id);
                self.peers.get_mut(&member_id).expect("its connections are closed with it").pass_over(picked);
            }
        }
        if is_kept {
            self.post_next(member_id, now);
        }
        is_kept
    }

    /// What was to be posted to the member is lost.
    pub(super) fn lose_posts(&mut self, member_id: u64) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        if !peer.posts.is_empty() {
            peer.posts.clear();
            peer.posts_bytes = 0;
            self.unreachable.insert(member_id);
        }
    }
}
