//! Messages between members, as plain data, and their translation to and from raft-rs.
//!
//! etcd's raftpb and raft-rs's eraftpb share numbers up to message type 18 and field 12; what lies beyond differs and
//! is cleared here in both directions. Does not frame, encode or send: that is the transport's. Bytes of peers never
//! reach raft-rs's codec.
//!
//! **Source**: etcd `raft/v3 raftpb/raft.proto` beside `raft-proto` 0.7 `eraftpb.proto`.

use bytes::Bytes;
use raft::eraftpb::{self, MessageType};

use crate::{
    entry::{Entry, EntryId, raft_entry},
    members::ConfState,
};

/// The message types that may pass between members, with raftpb's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MessageKind {
    /// A proposal, forwarded to the leader.
    #[default]
    Propose = 2,
    /// Entries from the leader.
    Append = 3,
    /// Answer to `Append`.
    AppendResponse = 4,
    /// A candidate asks for a vote.
    Vote = 5,
    /// Answer to `Vote`.
    VoteResponse = 6,
    /// The state itself, for one whose next entries are gone.
    Snapshot = 7,
    /// The leader is alive, and how far it has committed.
    Heartbeat = 8,
    /// Answer to `Heartbeat`.
    HeartbeatResponse = 9,
    /// Hand over leadership to `from`.
    TransferLeader = 13,
    /// Campaign now.
    TimeoutNow = 14,
    /// A follower asks for the commit index.
    ReadIndex = 15,
    /// Answer to `ReadIndex`.
    ReadIndexResponse = 16,
    /// Would you vote for me?
    PreVote = 17,
    /// Answer to `PreVote`.
    PreVoteResponse = 18,
}

impl MessageKind {
    /// The kind with raftpb's number; none for types that never pass between members.
    pub fn from_number(number: u64) -> Option<MessageKind> {
        use MessageKind::*;
        [
            Propose,
            Append,
            AppendResponse,
            Vote,
            VoteResponse,
            Snapshot,
            Heartbeat,
            HeartbeatResponse,
            TransferLeader,
            TimeoutNow,
            ReadIndex,
            ReadIndexResponse,
            PreVote,
            PreVoteResponse,
        ]
        .into_iter()
        .find(|kind| *kind as u64 == number)
    }

    fn from_raft(kind: MessageType) -> Option<MessageKind> {
        u64::try_from(kind as i32).ok().and_then(MessageKind::from_number)
    }

    fn to_raft(self) -> MessageType {
        match self {
            MessageKind::Propose => MessageType::MsgPropose,
            MessageKind::Append => MessageType::MsgAppend,
            MessageKind::AppendResponse => MessageType::MsgAppendResponse,
            MessageKind::Vote => MessageType::MsgRequestVote,
            MessageKind::VoteResponse => MessageType::MsgRequestVoteResponse,
            MessageKind::Snapshot => MessageType::MsgSnapshot,
            MessageKind::Heartbeat => MessageType::MsgHeartbeat,
            MessageKind::HeartbeatResponse => MessageType::MsgHeartbeatResponse,
            MessageKind::TransferLeader => MessageType::MsgTransferLeader,
            MessageKind::TimeoutNow => MessageType::MsgTimeoutNow,
            MessageKind::ReadIndex => MessageType::MsgReadIndex,
            MessageKind::ReadIndexResponse => MessageType::MsgReadIndexResp,
            MessageKind::PreVote => MessageType::MsgRequestPreVote,
            MessageKind::PreVoteResponse => MessageType::MsgRequestPreVoteResponse,
        }
    }
}

/// A message between members, with raftpb's meaning of each field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Message {
    /// What it says.
    pub kind: MessageKind,
    /// Receiver's member id.
    pub to: u64,
    /// Sender's member id.
    pub from: u64,
    /// Sender's term; 0 for proposals and read requests.
    pub term: u64,
    /// Term of the entry at `index`.
    pub log_term: u64,
    /// Log position the message is about.
    pub index: u64,
    /// Entries after `index`, a proposal, or a read's context.
    pub entries: Vec<Entry>,
    /// Commit index, in `Append` and `Heartbeat`.
    pub commit: u64,
    /// The receiver's request is refused.
    pub reject: bool,
    /// Where the refuser's log may match.
    pub reject_hint: u64,
    /// Echoed bytes of a heartbeat, or the mark of a campaign by transfer.
    pub context: Bytes,
    /// What a `Snapshot` is about; no other message has one.
    pub snapshot: Option<Box<Snapshot>>,
}

/// The head of a state that is sent instead of entries.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The last entry that the state contains.
    pub at: EntryId,
    /// The configuration at that entry.
    pub conf_state: ConfState,
    /// What the sender's kind of member puts here; not the state itself.
    pub data: Bytes,
}

impl Snapshot {
    pub(crate) fn from_raft(snapshot: &eraftpb::Snapshot) -> Snapshot {
        let metadata = snapshot.get_metadata();
        let at = EntryId { index: metadata.index, term: metadata.term };
        let conf_state = ConfState::from_raft(metadata.get_conf_state());
        Snapshot { at, conf_state, data: snapshot.data.clone() }
    }

    pub(crate) fn to_raft(&self) -> eraftpb::Snapshot {
        let mut snapshot = eraftpb::Snapshot { data: self.data.clone(), ..eraftpb::Snapshot::default() };
        let metadata = snapshot.mut_metadata();
        (metadata.index, metadata.term) = (self.at.index, self.at.term);
        metadata.set_conf_state(self.conf_state.to_raft());
        snapshot
    }
}

impl Message {
    /// None for what must not be sent: local types.
    pub(crate) fn from_raft(mut message: eraftpb::Message) -> Option<Message> {
        let kind = MessageKind::from_raft(message.get_msg_type())?;
        let is_snapshot = kind == MessageKind::Snapshot;
        let snapshot = is_snapshot.then(|| Box::new(Snapshot::from_raft(message.get_snapshot())));
        let entries = message.take_entries().into_iter().map(Entry::from_raft).collect();
        // raft-rs also fills the commit of responses and votes; etcd sends 0 there.
        let has_commit = matches!(kind, MessageKind::Append | MessageKind::Heartbeat);
        Some(Message {
            kind,
            to: message.to,
            from: message.from,
            term: message.term,
            log_term: message.log_term,
            index: message.index,
            entries,
            commit: if has_commit { message.commit } else { 0 },
            reject: message.reject,
            reject_hint: message.reject_hint,
            context: message.take_context(),
            snapshot,
        })
    }

    /// The message as raft-rs takes it. It was checked (`check`).
    pub(crate) fn into_raft(self) -> eraftpb::Message {
        let mut message = eraftpb::Message::default();
        message.set_msg_type(self.kind.to_raft());
        message.to = self.to;
        message.from = self.from;
        message.term = self.term;
        message.log_term = self.log_term;
        message.index = self.index;
        message.commit = self.commit;
        message.reject = self.reject;
        message.reject_hint = self.reject_hint;
        message.context = self.context;
        if let Some(snapshot) = self.snapshot {
            message.set_snapshot(snapshot.to_raft());
        }
        let entries = self.entries.into_iter();
        let entries = entries.map(|Entry { index, term, kind, data }| raft_entry(index, term, kind, data));
        message.set_entries(entries.collect::<Vec<_>>().into());
        message
    }
}
