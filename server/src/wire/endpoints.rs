//! Runs on: connection core.
//!
//! The plain HTTP endpoints: /health, /livez, /readyz, /version, /metrics, /debug/vars. Those for other members alone
//! are in `peers`.
//!
//! The answers are etcd's, byte for byte. A check reads published state only and never waits for the disk. Among other
//! members, a linearizable check waits for a read round, as a client's read does.
//! **Source** etcd v3.7.1 `server/etcdserver/api/etcdhttp/{health,version,debug}.go`, `server/embed/serve.go`; Go 1.26
//! `net/http/server.go`.

use std::{borrow::Cow, fmt::Write as _, sync::atomic::Ordering};

use super::{
    http1::{Request, Response},
    peers, vars,
};
use crate::{
    api::{
        desk::{Consistency, Desk},
        worries::worries,
    },
    error::Error,
    metrics,
    shared::{Alarm, alarm_name, alarm_text},
};

const LIVEZ: &[&str] = &["serializable_read"];
const READYZ: &[&str] = &["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// Header lines that let pages of all origins read the answers of the client port.
const CORS: [&str; 3] = [
    "Access-Control-Allow-Headers: accept, content-type, authorization",
    "Access-Control-Allow-Methods: POST, GET, OPTIONS, PUT, DELETE",
    "Access-Control-Allow-Origin: *",
];

/// What a port is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// Clients.
    Clients,
    /// Probes and scrapes. It lacks the paths that are for others.
    Metrics,
    /// Other members.
    Peers,
}

/// Answers one request.
pub async fn answer(desk: &Desk, port: Port, request: &Request) -> Response {
    match port {
        Port::Clients => answer_client_port(desk, request).await,
        Port::Metrics => routed(desk, request, false).await,
        Port::Peers => match asterisk(request).or_else(|| redirected(request, peers::FOLDERS)) {
            Some(response) => response,
            None if request.path == "/version" && request.method == "GET" => version(desk, request),
            None if request.path == "/version" => Response::method_not_allowed(),
            None => peers::answer(desk, request).await,
        },
    }
}

async fn answer_client_port(desk: &Desk, request: &Request) -> Response {
    if let Some(response) = asterisk(request)
        && request.method == "OPTIONS"
    {
        return response;
    }
    let mut response = match request.method.as_str() {
        "OPTIONS" => Response::new(200, &[], ""),
        _ => routed(desk, request, true).await,
    };
    response.lines.splice(0..0, CORS.map(Cow::Borrowed));
    response
}

/// The answer to a request for `*`, which is no path.
fn asterisk(request: &Request) -> Option<Response> {
    (request.path == "*").then(|| match request.method.as_str() {
        "OPTIONS" => Response::new(200, &["Content-Length: 0"], ""),
        _ => Response::new(400, &["Connection: close"], ""),
    })
}

/// The endpoints of client ports and metrics ports that take GET alone.
#[derive(Clone, Copy)]
enum Endpoint {
    Health,
    Livez,
    Readyz,
    Version,
    Vars,
}

/// The answer of the endpoint that a path leads to.
async fn routed(desk: &Desk, request: &Request, is_client_port: bool) -> Response {
    if let Some(response) = asterisk(request).or_else(|| redirected(request, &[])) {
        return response;
    }
    if request.path == "/metrics" {
        return scraped(desk);
    }
    let endpoint = match request.path.as_str() {
        "/health" => Endpoint::Health,
        "/version" if is_client_port => Endpoint::Version,
        "/debug/vars" if is_client_port => Endpoint::Vars,
        path if names("/livez", path, LIVEZ) => Endpoint::Livez,
        path if names("/readyz", path, READYZ) => Endpoint::Readyz,
        _ => return Response::not_found(),
    };
    if request.method == "GET" {
        return match endpoint {
            Endpoint::Health => health(desk, request).await,
            Endpoint::Livez => checks(desk, request, "/livez", LIVEZ).await,
            Endpoint::Readyz => checks(desk, request, "/readyz", READYZ).await,
            Endpoint::Version => version(desk, request),
            Endpoint::Vars => vars::answer(desk, request),
        };
    }
    let path = &request.path;
    if path == "/health" {
        tracing::warn!("status-code" = 405, "/health error");
    } else if path.starts_with("/livez") || path.starts_with("/readyz") {
        tracing::warn!(path, "status-code" = 405, "Health request error");
    }
    Response::method_not_allowed()
}

/// Whether `path` is `base`, or one of the checks below it.
fn names(base: &str, path: &str, checks: &[&str]) -> bool {
    match path.strip_prefix(base) {
        Some("") => true,
        Some(rest) => rest.strip_prefix('/').is_some_and(|name| checks.contains(&name)),
        None => false,
    }
}

/// Sends a client with an unclean path to the clean one, and one that asks for one of `folders` as for a file into the
/// folder, as Go's server does.
fn redirected(request: &Request, folders: &[&str]) -> Option<Response> {
    let mut clean = cleaned(&request.raw_path);
    if folders.contains(&clean.as_str()) {
        clean.push('/');
    }
    if clean == request.raw_path || request.method == "CONNECT" {
        return None;
    }
    let mut location = String::new();
    for byte in clean.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => location.push(char::from(byte)),
            _ if b"-_.~$&+,/:;=@".contains(&byte) => location.push(char::from(byte)),
            _ => write!(location, "%{byte:02X}").expect("a String takes every write"),
        }
    }
    if !request.query.is_empty() {
        location = format!("{location}?{}", request.query);
    }
    let escapes = [("&", "&amp;"), ("\"", "&#34;"), ("'", "&#39;"), ("<", "&lt;"), (">", "&gt;")];
    let link = escapes.iter().fold(location.clone(), |link, (raw, escaped)| link.replace(raw, escaped));
    let body = format!("<a href=\"{link}\">Temporary Redirect</a>.\n\n");
    let mut response = match request.method.as_str() {
        "GET" => Response::new(307, &["Content-Type: text/html; charset=utf-8"], body),
        "HEAD" => Response::new(307, &["Content-Type: text/html; charset=utf-8"], ""),
        _ => Response::new(307, &[], ""),
    };
    response.lines.push(format!("Location: {location}").into());
    Some(response)
}

/// A path without empty parts, `.` and `..`. **Source** Go 1.26 `net/http/server.go cleanPath`.
fn cleaned(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let is_folder = path.ends_with('/') && !parts.is_empty();
    format!("/{}{}", parts.join("/"), if is_folder { "/" } else { "" })
}

fn scraped(desk: &Desk) -> Response {
    let line = "Content-Type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores";
    let response = Response::new(200, &[line], metrics::render(&desk.scrape()));
    desk.counters.scrapes.add(1);
    response
}

/// The active alarms, each with a member id and the number of its type.
fn alarms(desk: &Desk) -> impl Iterator<Item = (u64, i32)> {
    let active: Vec<_> = desk.shared.cluster.load().alarms.keys().copied().collect();
    active.into_iter()
}

fn excluded(request: &Request) -> Vec<String> {
    request.values("exclude").filter(|name| !name.is_empty()).collect()
}

/// Whether a write to the log does not end. Raft says so, unless something has stopped raft itself.
fn is_log_stalled(desk: &Desk) -> bool {
    let shared = &desk.shared;
    shared.is_log_stalled.load(Ordering::Acquire)
        || shared.pulse.raft_silence(desk.clock.now()) >= shared.limits.log_wait_max
}

/// Makes a linearizable read of nothing.
///
/// **Errors** as [`Desk::view`].
async fn read(desk: &Desk) -> Result<(), Error> {
    desk.view(Consistency::Linearizable).await.map(drop)
}

async fn health(desk: &Desk, request: &Request) -> Response {
    let excluded = excluded(request);
    let is_serializable = request.values("serializable").next().is_some_and(|value| value == "true");
    let mut reason = known_reason(desk, &excluded, is_serializable).map(Cow::Borrowed);
    if reason.is_none()
        && !is_serializable
        && let Err(error) = read(desk).await
    {
        tracing::warn!(%error, "serving /health false; Range fails");
        reason = Some(format!("RANGE ERROR:{error}").into());
    }
    let counters = &desk.counters;
    if reason.is_none() { &counters.health_ok } else { &counters.health_failed }.add(1);
    let Some(reason) = reason else {
        tracing::debug!("status-code" = 200, "/health OK");
        let reason = match worries(desk).first() {
            None => "",
            Some((_, reason, _)) => reason,
        };
        return Response::untyped(200, format!(r#"{{"health":"true","reason":"{reason}"}}"#));
    };
    let output = format!(r#"{{"health":"false","reason":"{reason}"}}"#);
    tracing::warn!(output, "status-code" = 503, "/health error");
    Response::text(503, format!("{output}\n"))
}

/// Why the member is not healthy, as far as that is known without a read.
fn known_reason(desk: &Desk, excluded: &[String], is_serializable: bool) -> Option<&'static str> {
    if let Some((member, alarm)) = alarms(desk).find(|(_, alarm)| !excluded.contains(&alarm_name(*alarm))) {
        tracing::warn!(alarm = alarm_text(member, alarm), "serving /health false due to an alarm");
        return Some(match Alarm::try_from(alarm) {
            Ok(Alarm::Nospace) => "ALARM NOSPACE",
            Ok(Alarm::Corrupt) => "ALARM CORRUPT",
            Ok(Alarm::None) | Err(_) => "ALARM UNKNOWN",
        });
    }
    if is_serializable {
        return None;
    }
    if desk.shared.is_leaderless(desk.clock.now()) {
        tracing::warn!("serving /health false; no leader");
        return Some("RAFT NO LEADER");
    }
    if let Some(reason) = desk.shared.standstill.load_full() {
        tracing::warn!(reason = reason.as_str(), "serving /health false; nothing is applied");
        return Some("APPLY STOPPED");
    }
    is_log_stalled(desk).then(|| {
        tracing::warn!("serving /health false; a write to the log does not end");
        "LOG STALLED"
    })
}

fn version(desk: &Desk, _: &Request) -> Response {
    let cluster = desk.shared.cluster.load_full();
    let server = crate::ETCD_VERSION;
    let storage = cluster.storage_version().unwrap_or("unknown");
    let cluster = cluster.version.as_deref().unwrap_or("not_decided");
    Response::json(200, format!(r#"{{"etcdserver":"{server}","etcdcluster":"{cluster}","storage":"{storage}"}}"#))
}

async fn check(desk: &Desk, name: &str) -> Result<(), Cow<'static, str>> {
    match name {
        "data_corruption" if alarms(desk).any(|(_, alarm)| alarm == Alarm::Corrupt as i32) => {
            Err("alarm activated: CORRUPT".into())
        }
        "data_corruption" => match desk.shared.standstill.load_full() {
            Some(reason) => Err(format!("nothing is applied: {reason}").into()),
            None => Ok(()),
        },
        "non_learner" if desk.shared.is_learner() => Err("not supported for learner".into()),
        "linearizable_read" if desk.shared.is_stopping.load(Ordering::Acquire) => {
            Err("etcdserver: server stopped".into())
        }
        "linearizable_read" if desk.shared.is_leaderless(desk.clock.now()) => Err("etcdserver: no leader".into()),
        // Only /readyz asks for it: a restart would not help.
        "linearizable_read" if is_log_stalled(desk) => Err("etcdserver: a write to the log does not end".into()),
        "linearizable_read" => read(desk).await.map_err(|error| error.to_string().into()),
        _ => Ok(()),
    }
}

/// The checks that a request asks for: one by its path, or all that it does not exclude.
fn asked<'a>(request: &Request, base: &str, names: &[&'a str]) -> Vec<&'a str> {
    let one = request.path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    if let Some(one) = one {
        return names.iter().copied().filter(|name| *name == one).collect();
    }
    let excluded = excluded(request);
    let unknown: Vec<_> = excluded.iter().filter(|name| !names.contains(&name.as_str())).collect();
    if !unknown.is_empty() {
        let missing = unknown.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(",");
        tracing::warn!("missing-health-checks" = missing, "some health checks cannot be excluded");
    }
    names.iter().copied().filter(|name| !excluded.iter().any(|excluded| excluded == name)).collect()
}

async fn checks(desk: &Desk, request: &Request, base: &str, names: &[&str]) -> Response {
    let mut lines = String::new();
    let mut has_failed = false;
    for name in asked(request, base, names) {
        let result = check(desk, name).await;
        desk.counters.checked(&base[1..], name, result.is_ok(), desk.clock.now());
        has_failed |= result.is_err();
        lines.push_str(&match result {
            Ok(()) => format!("[+]{name} ok\n"),
            Err(error) => format!("[-]{name} failed: {error}\n"),
        });
    }
    let path = &request.path;
    if has_failed {
        tracing::error!(path, reason = lines, "status-code" = 503, "Health check error");
        return Response::text(503, format!("{lines}\n"));
    }
    if base == "/readyz" {
        worries(desk).iter().for_each(|(name, _, what)| lines.push_str(&format!("[!]{name}: {what}\n")));
    }
    tracing::debug!(path, reason = lines, "status-code" = 200, "Health check OK");
    let is_verbose = request.values("verbose").next().is_some();
    Response::text(200, if is_verbose { format!("{lines}ok\n") } else { "ok\n".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_as_go_cleans_them() {
        for (path, clean) in [
            ("/health", "/health"),
            ("//health", "/health"),
            ("/a/../health", "/health"),
            ("/./a/b/../", "/a/"),
            ("/../..", "/"),
            ("", "/"),
            ("/", "/"),
            ("/a//", "/a/"),
        ] {
            assert_eq!(cleaned(path), clean, "{path}");
        }
    }
}
