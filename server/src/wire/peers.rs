//! Runs on: connection core.
//!
//! The plain HTTP endpoints that are for other members: who the members are, promotions, leases, hashes. What is raft's
//! is not here (`peer`).
//!
//! None of them asks who asks: the peer port's certificates do.
//!
//! The answers are etcd's, byte for byte.
//! **Source** etcd v3.7.1 `server/etcdserver/api/etcdhttp/peer.go`, `server/lease/leasehttp/http.go`,
//! `server/etcdserver/{corrupt,server}.go`; github.com/xiang90/probing `server.go`.

use bytes::Bytes;
use consensus::Member;
use prost::Message;
use proto::etcdserverpb as pb;

use super::http1::{Request, Response};
use crate::{
    api::{
        applied::applied_in_time,
        cluster::promote::{self, promote, promote_here},
        desk::{Consistency, Desk},
        lease::{
            primary::{self, Left},
            remote::{LEFT_PATH, LeftRequest, LeftResponse, RENEW_PATH},
        },
        maintenance::hash_at,
    },
    error::Error,
    log,
};

const DOWNGRADE_PATH: &str = "/downgrade/enabled";
const HASH_PATH: &str = "/members/hashkv";
const MEMBERS_PATH: &str = "/members";
const PROBING_PATH: &str = "/raft/probing";
/// What stands in folders, raft's included.
pub(super) const FOLDERS: &[&str] = &["/members/promote", "/raft/stream"];

/// Answers one request.
pub(super) async fn answer(desk: &Desk, request: &Request) -> Response {
    let is_get = request.method == "GET";
    match request.path.as_str() {
        PROBING_PATH => probing(desk),
        RENEW_PATH | LEFT_PATH if request.method != "POST" => Response::text(405, "Method Not Allowed\n"),
        RENEW_PATH | LEFT_PATH if request.is_cut => {
            Response::text(413, "request body too large\n").with("Connection: close")
        }
        RENEW_PATH => leased(renewed(desk, request).await),
        LEFT_PATH => leased(left(desk, request).await),
        MEMBERS_PATH | HASH_PATH | DOWNGRADE_PATH if !is_get => Response::allowing("GET"),
        MEMBERS_PATH => of_cluster(desk, members(200, &desk.shared.cluster.load().members)),
        HASH_PATH => hash_kv(desk, request).await,
        DOWNGRADE_PATH => of_cluster(desk, downgrade(desk).await),
        path => match path.strip_prefix(promote::PATH) {
            Some(_) if request.method != "POST" => Response::allowing("POST"),
            Some(id) => of_cluster(desk, promoted(desk, request, id).await),
            None => Response::not_found(),
        },
    }
}

/// An answer that says which cluster this is.
fn of_cluster(desk: &Desk, response: Response) -> Response {
    response.with(format!("X-Etcd-Cluster-Id: {:x}", desk.shared.identity.cluster_id))
}

/// Says that this member is reached. As in etcd, any method will do.
fn probing(desk: &Desk) -> Response {
    let now = log::timestamp(desk.clock.unix_us());
    Response::untyped(200, format!("{{\"OK\":true,\"Now\":\"{now}\"}}\n"))
}

/// The members, as etcd shows them to other members.
fn members(status: u16, members: &[Member]) -> Response {
    let texts = |texts: &[String]| texts.iter().map(|text| json_text(text)).collect::<Vec<_>>().join(",");
    let shown = members.iter().map(|member| {
        let mut fields =
            vec![format!(r#""id":{}"#, member.id), format!(r#""peerURLs":[{}]"#, texts(&member.peer_urls))];
        if member.is_learner {
            fields.push(r#""isLearner":true"#.into());
        }
        if !member.name.is_empty() {
            fields.push(format!(r#""name":{}"#, json_text(&member.name)));
        }
        if !member.client_urls.is_empty() {
            fields.push(format!(r#""clientURLs":[{}]"#, texts(&member.client_urls)));
        }
        format!("{{{}}}", fields.join(","))
    });
    Response::json(status, format!("[{}]\n", shown.collect::<Vec<_>>().join(",")))
}

fn json_text(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Promotes the learner with this id, for a member that does not lead.
async fn promoted(desk: &Desk, request: &Request, text: &str) -> Response {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let Some(id) = text.parse().ok().filter(|_| is_number) else {
        return Response::text(404, format!("member {text} not found in cluster\n"));
    };
    let is_passed_on = !request.headers.get(promote::PASSED_ON).is_empty();
    let result = if is_passed_on { promote_here(desk, id).await } else { promote(desk, id).await };
    let error = match result {
        Ok(all) => return members(200, &all),
        Err(error) => error,
    };
    tracing::warn!("member-id" = format!("{id:x}"), %error, "failed to promote a member");
    match error {
        Error::MemberNotFound => Response::text(404, "membership: ID not found\n"),
        Error::MemberNotLearner => Response::text(412, format!("{}\n", promote::NOT_LEARNER)),
        Error::LearnerNotReady => Response::text(412, format!("{error}\n")),
        _ => Response::json(500, r#"{"message":"Internal Server Error"}"#),
    }
}

/// A lease's answer, or the status and text of its refusal.
fn leased(result: Result<Bytes, (u16, String)>) -> Response {
    match result {
        Ok(message) => Response::new(200, &["Content-Type: application/protobuf"], message),
        Err((status, why)) => Response::text(status, format!("{why}\n")),
    }
}

const UNDECODABLE: (u16, &str) = (400, "error unmarshalling request");

/// Renews a lease, if this member leads.
///
/// **Errors** the status and the text of the answer.
async fn renewed(desk: &Desk, request: &Request) -> Result<Bytes, (u16, String)> {
    let refused = |(status, why): (u16, &str)| (status, why.to_owned());
    let asked = pb::LeaseKeepAliveRequest::decode(request.body.clone()).map_err(|_malformed| refused(UNDECODABLE))?;
    match applied_in_time(desk, primary::renew(desk, asked.id)).await {
        Ok(0) => Err(refused(NOT_FOUND)),
        Ok(ttl) => Ok(pb::LeaseKeepAliveResponse { header: None, id: asked.id, ttl }.encode_to_vec().into()),
        Err(Error::TimeoutWaitApplied) => Err(refused(LAGS)),
        Err(error) => Err((400, error.to_string())),
    }
}

/// Says what is left of a lease, if this member leads.
///
/// **Errors** the status and the text of the answer.
async fn left(desk: &Desk, request: &Request) -> Result<Bytes, (u16, String)> {
    let refused = |(status, why): (u16, &str)| (status, why.to_owned());
    let asked = LeftRequest::decode(request.body.clone()).ok().and_then(|asked| asked.request);
    let asked = asked.ok_or_else(|| refused(UNDECODABLE))?;
    match applied_in_time(desk, primary::left(desk, asked)).await {
        Ok(None) => Err(refused(NOT_FOUND)),
        Ok(Some(Left { ttl, granted_ttl, keys, share })) => {
            let header = Some(pb::ResponseHeader::default());
            let response = pb::LeaseTimeToLiveResponse { header, id: asked.id, ttl, granted_ttl, keys };
            Ok(share.hold(LeftResponse { response: Some(response) }.encode_to_vec().into()))
        }
        Err(Error::TimeoutWaitApplied) => Err(refused(LAGS)),
        Err(error) => Err((500, error.to_string())),
    }
}

const NOT_FOUND: (u16, &str) = (404, "lease not found");
const LAGS: (u16, &str) = (408, "waiting for node to catch up its applied index has timed out");

/// Whether the cluster is being downgraded. It must be the newest decision: what joins goes by it.
async fn downgrade(desk: &Desk) -> Response {
    match desk.view(Consistency::Linearizable).await {
        Ok(_) => {
            let is_enabled = desk.shared.cluster.load().downgrade.as_ref().is_some_and(|known| known.is_enabled);
            Response::new(200, &["Content-Type: text/plain"], is_enabled.to_string())
        }
        Err(error) => Response::text(500, format!("failed linearized read: {error}\n")),
    }
}

/// The hash of the keys at a revision.
async fn hash_kv(desk: &Desk, request: &Request) -> Response {
    let cluster_id = request.headers.get("x-etcd-cluster-id");
    if !cluster_id.is_empty() && cluster_id != format!("{:x}", desk.shared.identity.cluster_id) {
        return Response::text(412, "cluster ID mismatch\n");
    }
    if request.is_cut {
        return Response::text(400, "error reading body\n");
    }
    let Some(revision) = asked_revision(&request.body) else {
        return Response::text(400, "error unmarshalling request\n");
    };
    let (hash, compact_revision, hash_revision) = match hash_at(desk, revision).await {
        Ok(hashed) => hashed,
        Err(error) => {
            tracing::warn!("requested-revision" = revision, %error, "failed to get hashKV");
            let text = error.to_string();
            return Response::text(400, format!("{}\n", text.strip_prefix("etcdserver: ").unwrap_or(&text)));
        }
    };
    let revision = desk.newest_header().revision;
    let numbers = [("hash", i64::from(hash)), ("compact_revision", compact_revision), ("hash_revision", hash_revision)];
    let mut fields = vec![format!(r#""header":{{"revision":{revision}}}"#)];
    fields.extend(
        numbers.iter().filter(|(_, number)| *number != 0).map(|(name, number)| format!(r#""{name}":{number}"#)),
    );
    of_cluster(desk, Response::json(200, format!("{{{}}}", fields.join(","))))
}

/// The revision that a JSON object asks for, read as Go reads it; 0 if it does not say. `None` for what is none.
fn asked_revision(body: &[u8]) -> Option<i64> {
    use serde_json::Value;
    match serde_json::from_slice(body).ok()? {
        Value::Null => Some(0),
        Value::Object(fields) => {
            let mut named = fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("revision"));
            match named.next().map(|(_, revision)| revision) {
                None | Some(Value::Null) => Some(0),
                Some(revision) => revision.as_i64(),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_read_as_go_reads_it() {
        for (body, expected) in [
            ("{}", Some(0)),
            ("null", Some(0)),
            (r#"{"revision":7,"more":[1]}"#, Some(7)),
            (r#"{"Revision":-1}"#, Some(-1)),
            (r#"{"revision":null}"#, Some(0)),
            ("", None),
            ("[]", None),
            (r#"{"revision":"7"}"#, None),
            (r#"{"revision":1.5}"#, None),
            (r#"{"revision":9223372036854775808}"#, None),
        ] {
            assert_eq!(asked_revision(body.as_bytes()), expected, "{body}");
        }
    }
}
