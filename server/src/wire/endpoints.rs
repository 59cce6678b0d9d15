//! Runs on: connection core.
//!
//! The plain HTTP endpoints: /health, /livez, /readyz, /version, /metrics.
//!
//! The answers are etcd's, byte for byte. A check reads published state only and never waits for the disk.
//! **Source** etcd v3.7.1 `server/etcdserver/api/etcdhttp/{health,version}.go`.

use std::fmt::Write as _;

use super::http1::{Request, Response};
use crate::{
    api::desk::Desk,
    metrics,
    shared::{Alarm, alarm_name},
};

const LIVEZ: &[&str] = &["serializable_read"];
const READYZ: &[&str] = &["data_corruption", "serializable_read", "linearizable_read", "non_learner"];

/// Answers one request.
pub fn answer(desk: &Desk, request: &Request) -> Response {
    let path = request.path.as_str();
    let known = matches!(path, "/health" | "/version" | "/metrics")
        || ["/livez", "/readyz"].iter().any(|base| path == *base || path.starts_with(&format!("{base}/")));
    if !known {
        return Response::text(404, "404 page not found\n");
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Response::method_not_allowed();
    }
    match path {
        "/health" => health(desk, &request.query),
        "/version" => version(desk),
        "/metrics" => Response {
            status: 200,
            content_type: "text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
            headers: &[],
            body: metrics::render(&desk.scrape()),
        },
        _ if path.starts_with("/livez") => checks(desk, path, "/livez", LIVEZ, &request.query),
        _ => checks(desk, path, "/readyz", READYZ, &request.query),
    }
}

/// Answers one request of a metrics port. It has all paths except /version.
pub fn answer_metrics_port(desk: &Desk, request: &Request) -> Response {
    if request.path == "/version" {
        return Response::text(404, "404 page not found\n");
    }
    answer(desk, request)
}

/// The active alarms, each with a member id and the number of its type.
fn alarms(desk: &Desk) -> impl Iterator<Item = (u64, i32)> {
    let active: Vec<_> = desk.shared.cluster.load().alarms.keys().copied().collect();
    active.into_iter()
}

fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| match pair.split_once('=') {
        Some((key, value)) if key == name => Some(value),
        None if pair == name => Some(""),
        _ => None,
    })
}

fn health(desk: &Desk, query: &str) -> Response {
    let excluded: Vec<&str> = values(query, "exclude").collect();
    let serializable = values(query, "serializable").any(|value| value == "true");
    let alarms = alarms(desk).map(|(_, alarm)| (alarm, alarm_name(alarm)));
    let mut alarms = alarms.filter(|(_, name)| !excluded.contains(&name.as_str()));
    let reason = alarms.next().map(|(alarm, _)| match Alarm::try_from(alarm) {
        Ok(Alarm::Nospace) => "ALARM NOSPACE",
        Ok(Alarm::Corrupt) => "ALARM CORRUPT",
        Ok(Alarm::None) | Err(_) => "ALARM UNKNOWN",
    });
    let reason = reason.or((!serializable && !desk.shared.has_leader()).then_some("RAFT NO LEADER"));
    let counters = &desk.counters;
    if reason.is_none() { &counters.health_ok } else { &counters.health_failed }.add(1);
    match reason {
        None => Response::json(200, r#"{"health":"true","reason":""}"#),
        Some(reason) => Response::json(503, format!(r#"{{"health":"false","reason":"{reason}"}}"#)),
    }
}

fn version(desk: &Desk) -> Response {
    let cluster = desk.shared.cluster.load().version.clone().unwrap_or_else(|| "not_decided".to_owned());
    let server = crate::ETCD_VERSION;
    let storage = crate::STORAGE_VERSION;
    Response::json(200, format!(r#"{{"etcdserver":"{server}","etcdcluster":"{cluster}","storage":"{storage}"}}"#))
}

fn check(desk: &Desk, name: &str) -> Result<(), &'static str> {
    match name {
        "data_corruption" if alarms(desk).any(|(_, alarm)| alarm == Alarm::Corrupt as i32) => {
            Err("alarm activated: CORRUPT")
        }
        "linearizable_read" if !desk.shared.has_leader() => Err("etcdserver: no leader"),
        _ => Ok(()),
    }
}

fn checks(desk: &Desk, path: &str, base: &str, names: &[&str], query: &str) -> Response {
    let excluded: Vec<&str> = values(query, "exclude").collect();
    let verbose = values(query, "verbose").next().is_some();
    let one = path.strip_prefix(base).and_then(|rest| rest.strip_prefix('/')).filter(|name| !name.is_empty());
    if one.is_some_and(|name| !names.contains(&name)) {
        return Response::text(404, "404 page not found\n");
    }
    let mut lines = String::new();
    let mut failed = false;
    for name in names.iter().filter(|name| one.is_none_or(|one| one == **name)) {
        if excluded.contains(name) {
            continue;
        }
        // Writing to a String cannot fail.
        let result = check(desk, name);
        desk.counters.checked(&base[1..], name, result.is_ok(), desk.clock.now());
        match result {
            Ok(()) => writeln!(lines, "[+]{name} ok").expect("a String takes every write"),
            Err(error) => {
                failed = true;
                writeln!(lines, "[-]{name} failed: {error}").expect("a String takes every write");
            }
        }
    }
    match (failed, verbose) {
        (true, _) => Response::text(503, lines),
        (false, true) => Response::text(200, format!("{lines}ok\n")),
        (false, false) => Response::text(200, "ok\n"),
    }
}
