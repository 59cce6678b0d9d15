//! Members: their ids, their place in a configuration, and etcd's form of a configuration change.
//!
//! Owns the one place where configuration changes are turned into bytes and back. The log holds etcd's bytes
//! (`ConfChange` of raftpb: id 1, type 2, node_id 3, context 4), because etcd members parse them; raft-rs numbers the
//! same enum differently, so its codec never sees them (see `entry::raft_entry`). The context is a member as JSON, as
//! Go writes it. Does not decide whether a change is allowed: apply validates against the member list.
//!
//! **Source**: etcd v3.7.1 `server/etcdserver/api/membership/member.go`, `raft/v3 raftpb/raft.proto`, `raft/v3
//! bootstrap.go`.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::encoding::{decode_varint, encode_varint};
use raft::eraftpb;
use serde::{Deserialize, Deserializer, Serialize};
use sha1::{Digest, Sha1};

use crate::error::Error;

/// A member as etcd writes it into the log and the `members` bucket.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Member id, never 0.
    pub id: u64,
    /// Where peers reach it, as given.
    #[serde(rename = "peerURLs", default, deserialize_with = "null_is_empty")]
    pub peer_urls: Vec<String>,
    /// Receives the log, has no vote.
    #[serde(rename = "isLearner", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_learner: bool,
    /// Human name; empty until the member has started.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Where clients reach it; empty until the member has started.
    #[serde(rename = "clientURLs", default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub client_urls: Vec<String>,
    /// Only inside a configuration change: the change promotes a learner, and only `id` counts.
    #[serde(rename = "isPromote", default, skip_serializing_if = "std::ops::Not::not")]
    pub is_promote: bool,
}

/// Go writes an empty list it never filled as `null`.
fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::<Vec<String>>::deserialize(deserializer)?.unwrap_or_default())
}

impl Member {
    /// The JSON that Go's `encoding/json` writes for this member: same order, same escapes.
    pub fn to_json(&self) -> Vec<u8> {
        let json = serde_json::to_string(self).expect("strings, numbers and flags always serialize");
        let mut out = Vec::with_capacity(json.len());
        for c in json.chars() {
            match c {
                '<' => out.extend_from_slice(b"\\u003c"),
                '>' => out.extend_from_slice(b"\\u003e"),
                '&' => out.extend_from_slice(b"\\u0026"),
                '\u{2028}' => out.extend_from_slice(b"\\u2028"),
                '\u{2029}' => out.extend_from_slice(b"\\u2029"),
                _ => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        out
    }

    /// Reads a member's JSON; unknown fields are skipped, ids are exact to 64 bits.
    ///
    /// **Errors**: `Malformed`.
    pub fn from_json(json: &[u8]) -> Result<Member, Error> {
        serde_json::from_slice(json).map_err(|_json_error| Error::Malformed { what: "member JSON" })
    }
}

/// Member id: etcd's hash of the sorted peer URLs and the cluster token; for a member added later, of the time
/// (**Units**: seconds since 1970) with an empty token.
pub fn member_id(peer_urls: &[String], token: &str, added_unix_s: Option<i64>) -> u64 {
    let mut urls: Vec<&str> = peer_urls.iter().map(String::as_str).collect();
    urls.sort_unstable();
    let mut hash = Sha1::new();
    for url in urls {
        hash.update(url.as_bytes());
    }
    hash.update(token.as_bytes());
    if let Some(seconds) = added_unix_s {
        hash.update(seconds.to_string().as_bytes());
    }
    leading_u64(hash)
}

/// Cluster id: etcd's hash of the ids of the members the cluster started with, in any order.
pub fn cluster_id(member_ids: &[u64]) -> u64 {
    let mut ids = member_ids.to_vec();
    ids.sort_unstable();
    let mut hash = Sha1::new();
    for id in ids {
        hash.update(id.to_be_bytes());
    }
    leading_u64(hash)
}

fn leading_u64(hash: Sha1) -> u64 {
    let digest = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

/// What a configuration change does, with etcd's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfChangeKind {
    /// A voter is added, or a learner becomes one.
    AddNode = 0,
    /// A voter or learner leaves for good.
    RemoveNode = 1,
    /// Peer URLs change; the configuration of raft does not.
    UpdateNode = 2,
    /// A learner is added.
    AddLearnerNode = 3,
}

/// One configuration change, as it lies in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfChange {
    /// Request id by which the proposer's waiter is found; 0 in the entries a cluster starts with.
    pub id: u64,
    /// What happens.
    pub kind: ConfChangeKind,
    /// To whom.
    pub member_id: u64,
    /// A member's JSON, empty for a removal.
    pub context: Bytes,
}

impl ConfChange {
    /// The entry with which the log of a new cluster introduces `member`.
    pub fn bootstrap(member: &Member) -> ConfChange {
        ConfChange {
            id: 0,
            kind: ConfChangeKind::AddNode,
            member_id: member.id,
            context: Bytes::from(member.to_json()),
        }
    }

    /// etcd's bytes; every scalar is written, as etcd 3.6 does.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.context.len() + 40);
        for (field, value) in [(1, self.id), (2, self.kind as u64), (3, self.member_id)] {
            out.put_u8(field << 3);
            encode_varint(value, &mut out);
        }
        if !self.context.is_empty() {
            out.put_u8((4 << 3) | 2);
            encode_varint(self.context.len() as u64, &mut out);
            out.put_slice(&self.context);
        }
        out.freeze()
    }

    /// Reads etcd's bytes. Strict, because etcd's parser must read the same from them: a field twice, an unknown field
    /// or an unknown kind is refused.
    ///
    /// **Errors**: `Malformed`.
    pub fn decode(data: &Bytes) -> Result<ConfChange, Error> {
        let mut change = ConfChange { id: 0, kind: ConfChangeKind::AddNode, member_id: 0, context: Bytes::new() };
        let mut seen = 0u8;
        let mut rest = data.clone();
        while rest.has_remaining() {
            let tag = take_varint(&mut rest)?;
            let field = u8::try_from(tag >> 3).ok().filter(|field| (1..=4).contains(field)).ok_or(MALFORMED)?;
            if seen & (1 << field) != 0 || (tag & 7 == 2) != (field == 4) || !matches!(tag & 7, 0 | 2) {
                return Err(MALFORMED);
            }
            seen |= 1 << field;
            let value = take_varint(&mut rest)?;
            match field {
                1 => change.id = value,
                2 => {
                    change.kind = match value {
                        0 => ConfChangeKind::AddNode,
                        1 => ConfChangeKind::RemoveNode,
                        2 => ConfChangeKind::UpdateNode,
                        3 => ConfChangeKind::AddLearnerNode,
                        _ => return Err(MALFORMED),
                    }
                }
                3 => change.member_id = value,
                _ => {
                    let len = usize::try_from(value).ok().filter(|len| *len <= rest.len()).ok_or(MALFORMED)?;
                    change.context = rest.split_to(len);
                }
            }
        }
        Ok(change)
    }

    /// The member that the context names; a removal has none.
    ///
    /// **Errors**: `Malformed`: the context is not a member, or another one.
    pub fn named(&self) -> Result<Option<Member>, Error> {
        if self.kind == ConfChangeKind::RemoveNode {
            return Ok(None);
        }
        let member = Member::from_json(&self.context)?;
        if member.id != self.member_id {
            return Err(Error::Malformed { what: "configuration change: its member is another one" });
        }
        Ok(Some(member))
    }

    /// The same change for raft-rs; none where raft's configuration does not change.
    pub(crate) fn to_raft(&self) -> Option<eraftpb::ConfChange> {
        let kind = match self.kind {
            ConfChangeKind::AddNode => eraftpb::ConfChangeType::AddNode,
            ConfChangeKind::RemoveNode => eraftpb::ConfChangeType::RemoveNode,
            ConfChangeKind::AddLearnerNode => eraftpb::ConfChangeType::AddLearnerNode,
            ConfChangeKind::UpdateNode => return None,
        };
        let mut change = eraftpb::ConfChange::default();
        change.set_change_type(kind);
        change.node_id = self.member_id;
        Some(change)
    }
}

const MALFORMED: Error = Error::Malformed { what: "configuration change" };

fn take_varint(rest: &mut Bytes) -> Result<u64, Error> {
    decode_varint(rest).map_err(|_not_a_varint| MALFORMED)
}

/// Who votes and who only listens. Ids ascending. Joint configurations do not occur: an etcd member would stop at one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfState {
    /// Members with a vote.
    pub voters: Vec<u64>,
    /// Members without.
    pub learners: Vec<u64>,
}

impl ConfState {
    /// Whether there is a voter beside the member `own`.
    pub fn has_other_voters(&self, own: u64) -> bool {
        self.voters.iter().any(|id| *id != own)
    }

    pub(crate) fn from_raft(state: &eraftpb::ConfState) -> ConfState {
        assert!(
            state.voters_outgoing.is_empty() && state.learners_next.is_empty(),
            "no joint configuration is ever entered"
        );
        let sorted = |ids: &[u64]| {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids
        };
        ConfState { voters: sorted(&state.voters), learners: sorted(&state.learners) }
    }

    pub(crate) fn to_raft(&self) -> eraftpb::ConfState {
        let mut state = eraftpb::ConfState::default();
        state.set_voters(self.voters.clone());
        state.set_learners(self.learners.clone());
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1984-12-23T15:04:05Z, the time in etcd's own table.
    const TIME: Option<i64> = Some(472_662_245);

    #[test]
    fn member_ids_equal_etcd() {
        let one = "http://10.0.0.8:2379";
        let cases: [(&[&str], &str, Option<i64>, u64); 6] = [
            (&[one], "", None, 14_544_069_596_553_697_298),
            (&[one], "", TIME, 2_448_790_162_483_548_276),
            (&[one], "etcd", TIME, 6_973_882_743_191_604_649),
            (&["http://10.0.0.1:2379"], "", TIME, 1_466_075_294_948_436_910),
            (&["http://10.0.0.1:2379", "http://10.0.0.2:2379"], "", None, 16_552_244_735_972_308_939),
            (&["http://10.0.0.2:2379", "http://10.0.0.1:2379"], "", None, 16_552_244_735_972_308_939),
        ];
        for (urls, token, time, id) in cases {
            let urls: Vec<String> = urls.iter().map(|url| url.to_string()).collect();
            assert_eq!(member_id(&urls, token, time), id, "{urls:?} {token:?}");
        }
    }

    #[test]
    fn default_cluster_has_the_ids_everyone_knows() {
        let id = member_id(&["http://localhost:2380".to_owned()], "etcd-cluster", None);
        assert_eq!(id, 0x8e9e_05c5_2164_694d);
        assert_eq!(cluster_id(&[id]), 0xcdf8_1819_4e3a_8c32);
        assert_eq!(cluster_id(&[3, 1, 2]), cluster_id(&[1, 2, 3]));
    }

    #[test]
    fn member_json_is_what_go_writes() {
        let member = Member {
            id: 10_276_657_743_932_975_437,
            peer_urls: vec!["http://localhost:2380".to_owned()],
            name: "a<b>&c".to_owned(),
            ..Member::default()
        };
        let json = r#"{"id":10276657743932975437,"peerURLs":["http://localhost:2380"],"name":"a\u003cb\u003e\u0026c"}"#;
        assert_eq!(member.to_json(), json.as_bytes());
        assert_eq!(Member::from_json(json.as_bytes()).unwrap(), member);
        let promote = Member::from_json(br#"{"id":18446744073709551615,"peerURLs":null,"isPromote":true}"#).unwrap();
        assert_eq!((promote.id, promote.is_promote, promote.peer_urls.len()), (u64::MAX, true, 0));
        assert!(Member::from_json(b"{\"id\":").is_err());
    }

    #[test]
    fn conf_change_bytes_are_etcd_numbers() {
        let change = ConfChange {
            id: 300,
            kind: ConfChangeKind::AddLearnerNode,
            member_id: 5,
            context: Bytes::from_static(b"{}"),
        };
        let bytes = change.encode();
        assert_eq!(&bytes[..], &[0x08, 0xac, 0x02, 0x10, 3, 0x18, 5, 0x22, 2, b'{', b'}']);
        assert_eq!(ConfChange::decode(&bytes).unwrap(), change);
        assert_eq!(change.to_raft().unwrap().get_change_type(), eraftpb::ConfChangeType::AddLearnerNode);
    }

    #[test]
    fn hostile_conf_changes_are_refused_without_panic() {
        let good = ConfChange {
            id: u64::MAX,
            kind: ConfChangeKind::RemoveNode,
            member_id: u64::MAX,
            context: Bytes::from_static(b"abc"),
        }
        .encode();
        let mut shorter = 0;
        for cut in 1..good.len() {
            // A cut between fields is a shorter change, never a panic; a cut inside one is an error.
            if let Ok(change) = ConfChange::decode(&good.slice(..cut)) {
                assert!([0, u64::MAX].contains(&change.member_id) && change.id == u64::MAX, "{change:?}");
                assert!(change.context.is_empty(), "the last field is cut in each case");
                shorter += 1;
            }
        }
        assert_eq!(shorter, 3, "one for each field but the last");
        let bad: [&[u8]; 7] = [
            &[0x10, 4],                                                          // unknown kind
            &[0x08, 1, 0x08, 1],                                                 // a field twice
            &[0x28, 1],                                                          // unknown field
            &[0x0b, 0x0c],                                                       // group
            &[0x22, 0xff, 0xff, 0x03, 0],                                        // longer than the data
            &[0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], // more than 64 bits
            &[0x0a, 1, 0],                                                       // wrong wire type
        ];
        for bytes in bad {
            assert!(ConfChange::decode(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }
}
