//! Runs on: connection core, main thread.
//!
//! Asks other members for the hash of their keys, at `/members/hashkv`.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/corrupt.go` (`HashByRev`, `getPeerHashKVs`).

use std::time::Duration;

use consensus::Member;
use serde_json::Value;

use crate::api::others::{Answered, Asking, Others};

/// The longest answer that is taken. **Units** bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The hash of a member's keys at the revision that it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerHash {
    /// The hash.
    pub hash: u32,
    /// The compact revision that it was made with; -1 for none.
    pub compact_revision: i64,
    /// How far the member has come.
    pub revision: i64,
}

/// What a member says, or why it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The member's id.
    pub id: u64,
    /// Its hash.
    pub hash: Result<PeerHash, String>,
}

/// Asks all of `members` but `own` for their hash at `revision`, each for at most `wait`, one after the other as etcd
/// does: a hash reads everything that a member has, and members are not all to do that at once.
pub async fn of_members(
    others: &dyn Others,
    members: &[Member],
    (own, cluster_id): (u64, u64),
    revision: i64,
    wait: Duration,
) -> Vec<Told> {
    let mut told = Vec::new();
    for member in members.iter().filter(|member| member.id != own && !member.peer_urls.is_empty()) {
        let mut hash = Err("it has no URLs".to_owned());
        for url in &member.peer_urls {
            hash = of_member(others, url, cluster_id, revision, wait).await;
            match &hash {
                Ok(_) => break,
                Err(error) => tracing::warn!(
                    "local-member-id" = %format!("{own:x}"),
                    "requested-revision" = revision,
                    "remote-peer-endpoint" = url,
                    error,
                    "failed hash kv request"
                ),
            }
        }
        told.push(Told { id: member.id, hash });
    }
    told
}

async fn of_member(
    others: &dyn Others,
    url: &str,
    cluster_id: u64,
    revision: i64,
    wait: Duration,
) -> Result<PeerHash, String> {
    let body = if revision == 0 { "{}".to_owned() } else { format!(r#"{{"revision":{revision}}}"#) };
    let asking = Asking {
        method: "GET",
        path: "/members/hashkv".to_owned(),
        lines: format!("Content-Type: application/json\r\nX-Etcd-Cluster-ID: {cluster_id:x}\r\n"),
        body: body.into(),
        answer_bytes_max: ANSWER_BYTES_MAX,
        is_repeatable: false,
    };
    match tokio::time::timeout(wait, others.ask(url, &asking)).await {
        Ok(answered) => read(&answered?),
        Err(_late) => Err(format!("{url}: no answer within {} s", wait.as_secs())),
    }
}

/// Reads the answer. Go leaves out what is 0.
fn read(answered: &Answered) -> Result<PeerHash, String> {
    if answered.status != 200 {
        let text: String = answered.body.utf8_chunks().map(|chunk| chunk.valid()).collect();
        return Err(format!("{}: {}", answered.status, text.trim_end()));
    }
    let shown: Value = serde_json::from_slice(&answered.body).map_err(|error| error.to_string())?;
    let number = |value: &Value, name: &str| match value.get(name) {
        None => Ok(0),
        Some(number) => number.as_i64().ok_or_else(|| format!("{name} is no number")),
    };
    let header = shown.get("header").ok_or("there is no header")?;
    let hash = u32::try_from(number(&shown, "hash")?).map_err(|_large| "hash is too large")?;
    Ok(PeerHash { hash, compact_revision: number(&shown, "compact_revision")?, revision: number(header, "revision")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: &'static str) -> Answered {
        Answered { status, body: body.into(), ..Answered::default() }
    }

    #[test]
    fn what_is_left_out_is_zero_and_what_is_no_hash_is_an_error() {
        let body = r#"{"header":{"revision":9},"hash":4294967295,"compact_revision":-1,"hash_revision":7}"#;
        let hash = PeerHash { hash: u32::MAX, compact_revision: -1, revision: 9 };
        assert_eq!(read(&answered(200, body)), Ok(hash));
        let zero = PeerHash { hash: 0, compact_revision: 0, revision: 0 };
        assert_eq!(read(&answered(200, r#"{"header":{}}"#)), Ok(zero));
        let compacted = read(&answered(400, "mvcc: required revision has been compacted\n"));
        assert_eq!(compacted, Err("400: mvcc: required revision has been compacted".to_owned()));
        for body in ["", "[]", "{}", r#"{"header":{},"hash":-1}"#, r#"{"header":{},"hash":4294967296}"#] {
            assert!(read(&answered(200, body)).is_err(), "{body}");
        }
        for body in [r#"{"header":{"revision":"9"}}"#, r#"{"header":{},"compact_revision":1.5}"#] {
            assert!(read(&answered(200, body)).is_err(), "{body}");
        }
    }
}
