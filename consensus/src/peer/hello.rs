//! How members know each other: what each request says of its sender, and the checks of the member that is asked.
//!
//! Invariants: the checks come in etcd's order and answer in its words. Who asks with a version that is none is not
//! answered (etcd's handler panics). Ids are lower-case hex without padding.
//!
//! Members of this kind say one thing more, which etcd passes over: a number of the life of their process. Who has lost
//! the end of its log makes up for that in its next life, so nothing of an earlier one may arrive after that
//! (`crate::cut`).
//!
//! **Source**: etcd v3.7.1 `server/etcdserver/api/rafthttp/{http,stream,util}.go`.

use super::http1::{Answer, Headers, Request};
use crate::error::Error;

/// The lowest cluster version that this release can be part of. **Source**: etcd v3.7.1 `api/version/version.go`.
const MIN_CLUSTER_VERSION: &str = "3.0.0";

/// Major and minor number of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Major.
    pub major: u64,
    /// Minor.
    pub minor: u64,
}

impl Version {
    /// The version that a header says: `3.7.1`, `3.8.0-rc.0+build`. No header means 2.0, as for etcd.
    ///
    /// **Errors**: `Malformed`.
    pub fn of(text: &str) -> Result<Version, Error> {
        let numbers = text.split(['-', '+']).next().unwrap_or_default();
        let parsed: Option<Vec<u64>> = numbers.split('.').map(number).collect();
        match parsed.as_deref() {
            _ if text.is_empty() => Ok(Version { major: 2, minor: 0 }),
            Some(&[major, minor, _patch]) => Ok(Version { major, minor }),
            _ => Err(Error::Malformed { what: "version of a member" }),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_number)
}

/// The id that `text` says, as Go reads hex.
pub fn id(text: &str) -> Option<u64> {
    let is_hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    u64::from_str_radix(text, 16).ok().filter(|_| is_hex)
}

/// A stream from a member to the one that has dialled it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Channel {
    /// Appends ([`super::msgapp`]).
    Appends,
    /// Everything else but snapshots ([`super::frames`]).
    Messages,
}

impl Channel {
    fn path(self) -> &'static str {
        match self {
            Channel::Appends => "/raft/stream/msgapp",
            Channel::Messages => "/raft/stream/message",
        }
    }
}

/// What a member says of itself in each request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Its cluster.
    pub cluster_id: u64,
    /// Its id.
    pub member_id: u64,
    /// Its release, e.g. `3.7.1`.
    pub version: String,
    /// Where others reach it, joined by commas.
    pub peer_urls: String,
    /// A number that no other life of the member has; never 0.
    pub life: u64,
}

impl Hello {
    fn lines(&self) -> String {
        let Hello { cluster_id, member_id, version, peer_urls, life } = self;
        format!(
            "X-Etcd-Cluster-ID: {cluster_id:x}\r\nX-Min-Cluster-Version: {MIN_CLUSTER_VERSION}\r\n\
             X-Orlop-Life: {life:x}\r\nX-PeerURLs: {peer_urls}\r\nX-Server-From: {member_id:x}\r\n\
             X-Server-Version: {version}\r\n"
        )
    }

    /// The request for a stream from the member `to`, at `host`.
    pub fn ask_for_stream(&self, channel: Channel, to: u64, host: &str) -> String {
        let (path, lines) = (channel.path(), self.lines());
        format!("GET {path}/{:x} HTTP/1.1\r\nHost: {host}\r\n{lines}X-Raft-To: {to:x}\r\n\r\n", self.member_id)
    }

    /// The head of a request that carries one message of `len` bytes.
    pub fn post_message(&self, host: &str, len: usize) -> String {
        let lines = self.lines();
        format!(
            "POST /raft HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\n\
             Content-Type: application/protobuf\r\n{lines}\r\n"
        )
    }

    /// The head of a request that carries a snapshot: its message, and the state to the end of the chunks.
    pub fn post_snapshot(&self, host: &str) -> String {
        let lines = self.lines();
        format!(
            "POST /raft/snapshot HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\
             Content-Type: application/octet-stream\r\n{lines}\r\n"
        )
    }

    /// The head of the answer that begins a stream. What it carries comes in chunks.
    pub fn begin_stream(&self) -> String {
        let Hello { cluster_id, version, life, .. } = self;
        format!(
            "HTTP/1.1 200 OK\r\nX-Etcd-Cluster-Id: {cluster_id:x}\r\nX-Orlop-Life: {life:x}\r\n\
             X-Server-Version: {version}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
    }
}

/// The life that `headers` say; 0 if they say nothing of one, as those of etcd.
pub fn life(headers: &Headers) -> u64 {
    id(headers.get("x-orlop-life")).unwrap_or(0)
}

/// What is known of a member's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A member.
    Member,
    /// It was one, and never will be again.
    Removed,
    /// No member that is known here.
    Unknown,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A stream to the member `from`, which stays open.
    Stream {
        /// Which one.
        channel: Channel,
        /// Who asks.
        from: u64,
    },
    /// The body is one message.
    Message,
    /// The body is a snapshot.
    Snapshot,
}

/// Why a request is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status code.
    pub status: u16,
    /// The body, but for the line end behind it.
    pub reason: &'static str,
    /// The method that is allowed, if it was another.
    pub allow: Option<&'static str>,
}

/// Who asks, and where it is reached, as far as the request says. A member keeps it as a way to answer somebody whose
/// membership has not come by the log yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Its id.
    pub member_id: u64,
    /// Its peer URLs, unchecked.
    pub peer_urls: Vec<String>,
}

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The sender is to be kept as a remote.
    pub remote: Option<Remote>,
    /// What it is for, or why it is refused.
    pub asked: Result<Asked, Refusal>,
}

/// Checks a request to `/raft`, `/raft/snapshot` or below `/raft/stream/`. `None` for any other path, and for those of
/// `/raft/probing`, which anybody may ask. `standing` tells what is known of an id.
///
/// **Errors**: `Malformed`: who asks names no release. etcd closes the connection.
pub fn check(request: &Request, own: &Hello, standing: impl FnOnce(u64) -> Standing) -> Result<Option<Verdict>, Error> {
    let path = request.path.split('?').next().unwrap_or_default();
    let (asked, method) = match path {
        "/raft" => (Some(Asked::Message), "POST"),
        "/raft/snapshot" => (Some(Asked::Snapshot), "POST"),
        _ if path.starts_with("/raft/stream/") => (None, "GET"),
        _ => return Ok(None),
    };
    let refused =
        |status, reason| Ok(Some(Verdict { remote: None, asked: Err(Refusal { status, reason, allow: None }) }));
    if request.method != method {
        let refusal = Refusal { status: 405, reason: "Method Not Allowed", allow: Some(method) };
        return Ok(Some(Verdict { remote: None, asked: Err(refusal) }));
    }
    let headers = &request.headers;
    let version = Version::of(headers.get("x-server-version"))?;
    let min_version = Version::of(headers.get("x-min-cluster-version"))?;
    if version < Version::of(MIN_CLUSTER_VERSION)? || min_version > Version::of(&own.version)? {
        return refused(412, "incompatible version");
    }
    if headers.get("x-etcd-cluster-id") != format!("{:x}", own.cluster_id) {
        return refused(412, "cluster ID mismatch");
    }
    let remote = |member_id: Option<u64>| {
        let urls = headers.get("x-peerurls");
        let peer_urls = || urls.split(',').map(str::to_owned).collect();
        member_id.filter(|_| !urls.is_empty()).map(|member_id| Remote { member_id, peer_urls: peer_urls() })
    };
    if let Some(asked) = asked {
        return Ok(Some(Verdict { remote: remote(id(headers.get("x-server-from"))), asked: Ok(asked) }));
    }
    let (dir, base) = path.rsplit_once('/').expect("it has a prefix with one");
    let Some(channel) = [Channel::Appends, Channel::Messages].into_iter().find(|channel| channel.path() == dir) else {
        return refused(404, "invalid path");
    };
    let Some(from) = id(base) else { return refused(404, "invalid from") };
    match standing(from) {
        Standing::Removed => refused(410, "removed member"),
        Standing::Unknown => {
            let refusal = Refusal { status: 404, reason: "error sender not found", allow: None };
            Ok(Some(Verdict { remote: remote(Some(from)), asked: Err(refusal) }))
        }
        Standing::Member if headers.get("x-raft-to") != format!("{:x}", own.member_id) => {
            refused(412, "to field mismatch")
        }
        Standing::Member => Ok(Some(Verdict { remote: None, asked: Ok(Asked::Stream { channel, from }) })),
    }
}

/// What an answer says to the member that has asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// It is done, or the stream begins.
    Done,
    /// The one who has asked is no member any more: it ends for good.
    Removed,
    /// Not now: it is tried again elsewhere.
    NotNow,
}

/// What the answer to a request for a stream says. One that names no release is that of a member without such streams.
///
/// **Errors**: `Malformed`.
pub fn stream_answered(answer: &Answer) -> Result<Told, Error> {
    let version = Version::of(answer.headers.get("x-server-version"))?;
    let has_streams = version >= Version { major: 2, minor: 1 };
    Ok(match answer.status {
        _ if !has_streams => Told::NotNow,
        200 => Told::Done,
        410 => Told::Removed,
        _ => Told::NotNow,
    })
}

/// What the answer to a message or to a snapshot says.
pub fn post_answered(answer: &Answer) -> Told {
    match answer.status {
        204 => Told::Done,
        403 => Told::Removed,
        _ => Told::NotNow,
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::{
        super::http1::{take_answer, take_request},
        *,
    };

    fn own() -> Hello {
        Hello { cluster_id: 0xc, member_id: 0xb, version: "3.7.1".into(), peer_urls: "http://b:1".into(), life: 0xe }
    }

    fn other() -> Hello {
        let peer_urls = "http://a:1,http://a:2".into();
        Hello { member_id: 0xa, peer_urls, ..own() }
    }

    fn read(text: &str) -> Request {
        take_request(&mut BytesMut::from(text.as_bytes())).unwrap().unwrap().0
    }

    /// What becomes of a request whose `from` is replaced by `to`, for a member of this standing.
    fn verdict(text: &str, (from, to): (&str, &str), standing: Standing) -> Result<Asked, (u16, &'static str)> {
        assert!(text.contains(from), "{text}");
        let checked = check(&read(&text.replacen(from, to, 1)), &own(), |_| standing).unwrap().unwrap();
        checked.asked.map_err(|refusal| (refusal.status, refusal.reason))
    }

    #[test]
    fn what_a_member_asks_another_one_grants() {
        let (stream, message) = (other().ask_for_stream(Channel::Appends, 0xb, "b"), other().post_message("b", 7));
        let (from, channel) = (0xa, Channel::Appends);
        assert_eq!(verdict(&stream, ("", ""), Standing::Member), Ok(Asked::Stream { channel, from }));
        let channel = Channel::Messages;
        let stream = other().ask_for_stream(channel, 0xb, "b");
        assert_eq!(verdict(&stream, ("", ""), Standing::Member), Ok(Asked::Stream { channel, from }));
        for (text, asked) in [(message, Asked::Message), (other().post_snapshot("b"), Asked::Snapshot)] {
            let checked = check(&read(&text), &own(), |_| unreachable!("nobody asks")).unwrap().unwrap();
            let urls = ["http://a:1", "http://a:2"].map(str::to_owned).to_vec();
            assert_eq!(checked, Verdict { remote: Some(Remote { member_id: 0xa, peer_urls: urls }), asked: Ok(asked) });
        }
        for path in ["/raft/probing", "/members", "/raftx"] {
            assert_eq!(
                check(&read(&format!("GET {path} HTTP/1.1\r\n\r\n")), &own(), |_| unreachable!()).unwrap(),
                None
            );
        }
    }

    #[test]
    fn refusals_come_in_order_with_etcds_words() {
        let text = other().ask_for_stream(Channel::Messages, 0xb, "b");
        for (replaced, standing, expected) in [
            (("GET", "PUT"), Standing::Member, (405, "Method Not Allowed")),
            (("Server-Version: 3.7", "Server-Version: 2.9"), Standing::Removed, (412, "incompatible version")),
            (("X-Server-Version", "X-No-Version"), Standing::Member, (412, "incompatible version")),
            (("Cluster-Version: 3.0", "Cluster-Version: 3.8"), Standing::Member, (412, "incompatible version")),
            (("Cluster-ID: c", "Cluster-ID: d"), Standing::Removed, (412, "cluster ID mismatch")),
            (("stream/message", "stream/other"), Standing::Removed, (404, "invalid path")),
            (("message/a", "message/+a"), Standing::Removed, (404, "invalid from")),
            (("message/a", "message/"), Standing::Removed, (404, "invalid from")),
            (("Raft-To: b", "Raft-To: c"), Standing::Removed, (410, "removed member")),
            (("Raft-To: b", "Raft-To: c"), Standing::Unknown, (404, "error sender not found")),
            (("Raft-To: b", "Raft-To: 0b"), Standing::Member, (412, "to field mismatch")),
        ] {
            assert_eq!(verdict(&text, replaced, standing), Err(expected), "{replaced:?}");
        }
        for version in ["3.7", "3.x.1", "v3.7.1", "3.7.1.2"] {
            let text = text.replacen("Server-Version: 3.7.1", &format!("Server-Version: {version}"), 1);
            assert!(check(&read(&text), &own(), |_| Standing::Member).is_err(), "{version}");
        }
    }

    #[test]
    fn an_answer_says_whether_to_go_on() {
        let told = |text: &str| {
            let (answer, _) = take_answer(&mut BytesMut::from(text.as_bytes())).unwrap().unwrap();
            (stream_answered(&answer).unwrap(), post_answered(&answer))
        };
        assert_eq!(told(&own().begin_stream()), (Told::Done, Told::NotNow));
        let with =
            |status: &str, version: &str| told(&format!("HTTP/1.1 {status} -\r\nX-Server-Version: {version}\r\n\r\n"));
        assert_eq!(with("410", "3.7.1"), (Told::Removed, Told::NotNow));
        assert_eq!(with("204", "3.6.0"), (Told::NotNow, Told::Done));
        assert_eq!(with("403", "3.7.1"), (Told::NotNow, Told::Removed));
        assert_eq!(with("200", "3.9.0"), (Told::Done, Told::NotNow));
        assert_eq!(told("HTTP/1.1 200 OK\r\n\r\n").0, Told::NotNow, "a release of before");
    }
}
