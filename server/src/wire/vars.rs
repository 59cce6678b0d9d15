//! Runs on: connection core.
//!
//! /debug/vars: the variables that etcd publishes, as far as they have something like it here.
//!
//! Of Go's `memstats` those are shown that /metrics has, too. **Source** etcd v3.7.1 `etcdserver/raft.go`,
//! `etcdserver/api/etcdhttp/debug.go`; raft v3.7 `status.go`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::http1::{Request, Response};
use crate::{api::desk::Desk, metrics::process::Process};

/// Answers one request.
pub(super) fn answer(desk: &Desk, _: &Request) -> Response {
    let process = Process::look();
    let text = |text: &String| serde_json::Value::from(text.as_str()).to_string();
    let command_line = process.command_line.iter().map(text).collect::<Vec<_>>().join(",");
    let (heap, data) = (process.anonymous_bytes.unwrap_or(0), process.data_bytes.unwrap_or(0));
    let lines = [
        format!(r#""cmdline": [{command_line}]"#),
        format!(r#""file_descriptor_limit": {}"#, process.files_max),
        format!(
            r#""memstats": {{"Alloc":{heap},"Sys":{data},"HeapAlloc":{heap},"HeapSys":{data},"HeapInuse":{heap}}}"#
        ),
        format!(r#""raft.status": {}"#, raft_status(desk)),
    ];
    let body = format!("{{\n{}\n}}\n", lines.join(",\n"));
    Response::new(200, &["Content-Type: application/json; charset=utf-8"], body)
}

/// Raft's state. A single member votes for itself alone.
fn raft_status(desk: &Desk) -> String {
    let (raft, id) = (&desk.shared.raft, desk.shared.identity.member_id);
    let load = |number: &AtomicU64| number.load(Ordering::Acquire);
    // The applied index is read first, so that it is never ahead of the committed one.
    let applied = load(&raft.applied);
    let (leader, term, commit) = (load(&raft.leader), load(&raft.term), load(&raft.commit).max(applied));
    let (state, progress) = if leader == id {
        let next = commit + 1;
        ("StateLeader", format!(r#""{id:x}":{{"match":{commit},"next":{next},"state":"StateReplicate"}}"#))
    } else {
        ("StateFollower", String::new())
    };
    format!(
        r#"{{"id":"{id:x}","term":{term},"vote":"{id:x}","commit":{commit},"lead":"{leader:x}","raftState":"{state}","#
    ) + &format!(r#""applied":{applied},"progress":{{{progress}}},"leadtransferee":"0"}}"#)
}
