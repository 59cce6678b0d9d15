//! Runs on: connection core.
//!
//! What the leader says of leases, when another member asks it.
//!
//! Bounds: what a leader answers with keys is held in memory, as answers that are gathered are.
//!
//! **Source** etcd v3.7.1 `server/lease/leasehttp/http.go`, `server/lease/leasepb/lease.proto`.

use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb as pb;

use crate::api::{
    leader::Way,
    others::{Answered, Asking},
};

/// Where a leader renews a lease for another member.
pub const RENEW_PATH: &str = "/leases";

/// Where a leader says what is left of a lease.
pub const LEFT_PATH: &str = "/leases/internal";

/// An answer without keys. **Units** bytes.
const SMALL_BYTES_MAX: usize = 64 << 10;

/// An answer with keys. **Units** bytes. **Source** `maxLeaseHTTPResponseSize`.
const LARGE_BYTES_MAX: usize = 100 << 20;

/// The question at [`LEFT_PATH`].
#[derive(Clone, PartialEq, Eq, Message)]
pub struct LeftRequest {
    /// What is asked.
    #[prost(message, optional, tag = "1")]
    pub request: Option<pb::LeaseTimeToLiveRequest>,
}

/// The answer at [`LEFT_PATH`].
#[derive(Clone, PartialEq, Message)]
pub struct LeftResponse {
    /// What is left.
    #[prost(message, optional, tag = "1")]
    pub response: Option<pb::LeaseTimeToLiveResponse>,
}

/// Renews a lease at the leader, which is reached at one of `urls`. Returns its time to live in seconds, or 0 if there
/// is no such lease; `None` if the leader is to be asked again.
pub(super) async fn renew(way: &Way<'_>, urls: &[String], lease: i64) -> Option<i64> {
    let asking = asking(RENEW_PATH, &pb::LeaseKeepAliveRequest { id: lease }, SMALL_BYTES_MAX);
    for url in urls {
        match way.ask(url, &asking).await {
            Some(Answered { status: 404, .. }) => return Some(0),
            Some(Answered { status: 200, body, .. }) => match pb::LeaseKeepAliveResponse::decode(body) {
                Ok(renewed) if renewed.id == lease => return Some(renewed.ttl),
                _ => {}
            },
            _ => {}
        }
    }
    None
}

/// Asks the leader, which is reached at one of `urls`, what is left of a lease. Returns its answer, or `Some(None)` if
/// there is no such lease; `None` if the leader is to be asked again.
pub(super) async fn left(
    way: &Way<'_>,
    urls: &[String],
    request: pb::LeaseTimeToLiveRequest,
    gathered_bytes_max: usize,
) -> Option<Option<pb::LeaseTimeToLiveResponse>> {
    let bytes_max = if request.keys { LARGE_BYTES_MAX.min(gathered_bytes_max) } else { SMALL_BYTES_MAX };
    let asking = asking(LEFT_PATH, &LeftRequest { request: Some(request) }, bytes_max);
    for url in urls {
        match way.ask(url, &asking).await {
            Some(Answered { status: 404, .. }) => return Some(None),
            Some(Answered { status: 200, body, .. }) => match LeftResponse::decode(body) {
                Ok(LeftResponse { response: Some(left) }) if left.id == request.id => return Some(Some(left)),
                _ => {}
            },
            _ => {}
        }
    }
    None
}

fn asking(path: &str, request: &impl Message, answer_bytes_max: usize) -> Asking {
    let lines = "Content-Type: application/protobuf\r\n".to_owned();
    let body = Bytes::from(request.encode_to_vec());
    Asking { method: "POST", path: path.to_owned(), lines, body, answer_bytes_max, is_repeatable: true }
}
