//! `orlop.v1.Insight`, `orlop top` and what /metrics and the log say of the same.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::Command,
};

use bytes::Bytes;
use proto::{
    etcdserverpb::{CompactionRequest, CompactionResponse, PutRequest, PutResponse},
    orlop::{PrefixUsage, UsageRequest, UsageResponse},
};
use serde_json::Value;
use server::wire::client::Client;

use crate::member::{Member, WAIT_MAX, deadline, is_over};

/// What all of these are about: a member with a few keys, some of them written more than once.
async fn fill(member: &Member) -> Client {
    let mut client = Client::connect(&member.address.to_string()).await.unwrap();
    let keys =
        ["/registry/pods/default/a", "/registry/pods/default/b", "/registry/pods/kube/c", "/registry/nodes/n", "plain"];
    for (position, key) in keys.into_iter().enumerate() {
        for _ in 0..=position {
            put(&mut client, key).await;
        }
    }
    client
}

async fn put(client: &mut Client, key: &'static str) {
    let request = PutRequest { key: key.into(), value: "value".into(), ..Default::default() };
    let _: PutResponse = client.call("/etcdserverpb.KV/Put", &request).await.unwrap();
}

pub(crate) fn block_on(future: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future);
}

async fn usage(client: &mut Client, prefixes: &[&'static str], children: bool) -> Vec<PrefixUsage> {
    let prefixes = prefixes.iter().map(|prefix| Bytes::from_static(prefix.as_bytes())).collect();
    let answer: UsageResponse =
        client.call("/orlop.v1.Insight/Usage", &UsageRequest { prefixes, children }).await.unwrap();
    answer.usages
}

/// Prefix, keys, versions, and whether it is a rest.
fn rows(usages: &[PrefixUsage]) -> Vec<(&str, u64, u64, bool)> {
    let row = |row: &PrefixUsage| (row.keys, row.versions, row.is_rest);
    usages
        .iter()
        .map(|usage| {
            let (keys, versions, is_rest) = row(usage);
            (std::str::from_utf8(&usage.prefix).unwrap(), keys, versions, is_rest)
        })
        .collect()
}

#[test]
fn usage_of_any_prefix_is_told_and_its_children_add_up() {
    let member = Member::start(&[]);
    block_on(async {
        let mut client = fill(&member).await;
        let some = usage(&mut client, &["", "/registry/pods/", "/registry/pods/default/a", "/none", "pl"], false).await;
        let expected = [
            ("", 5, 15, false),
            ("/registry/pods/", 3, 6, false),
            ("/registry/pods/default/a", 1, 1, false),
            ("/none", 0, 0, false),
            ("pl", 1, 5, false),
        ];
        assert_eq!(rows(&some), expected);
        assert!(some[0].live_bytes > some[1].live_bytes && some[3].live_bytes == 0);
        // `/registry/` is an only child, so its children are told; what lies beside it is the rest.
        let children = usage(&mut client, &[""], true).await;
        let expected = [("/registry/nodes/", 1, 4, false), ("/registry/pods/", 3, 6, false), ("", 1, 5, true)];
        assert_eq!(rows(&children), expected);
        let sum = |pick: fn(&PrefixUsage) -> u64| children.iter().map(pick).sum::<u64>();
        assert_eq!(sum(|row| row.live_bytes), some[0].live_bytes);
        let compact = CompactionRequest { revision: 16, physical: true };
        let _: CompactionResponse = client.call("/etcdserverpb.KV/Compact", &compact).await.unwrap();
        assert_eq!(rows(&usage(&mut client, &[""], false).await), [("", 5, 5, false)]);
        let too_many = UsageRequest { prefixes: vec![Bytes::new(); 1001], children: false };
        let refused = client.call::<UsageResponse>("/orlop.v1.Insight/Usage", &too_many).await.unwrap_err();
        assert!(refused.to_string().contains("code 3: orlop: at most 1000 prefixes"), "{refused}");
    });
}

/// What `orlop top` prints for scripts.
fn top(member: &Member) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_orlop"))
        .args(["top", "--once", "--json", "--rows", "100", "--endpoint", &member.address.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", output.stderr.escape_ascii());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn metrics(member: &Member) -> String {
    let mut socket = TcpStream::connect(member.address).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    socket.write_all(b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn top_names_what_is_hot_and_slow_and_the_log_and_metrics_agree() {
    let member = Member::start(&["--warning-unary-request-duration", "1ns", "--metrics", "extensive"]);
    block_on(async { drop(fill(&member).await) });
    let until = deadline();
    // A core publishes what it saw once a second.
    let seen = loop {
        let seen = top(&member);
        if seen["hot_keys"].as_array().is_some_and(|keys| keys.len() == 5) {
            break seen;
        }
        assert!(!is_over(until), "{seen}");
    };
    assert_eq!(seen["hot_keys"][0]["item"], "plain", "it was written most");
    assert_eq!(seen["hot_prefixes"][0]["item"], "/registry/");
    let puts =
        seen["methods"].as_array().unwrap().iter().find(|method| method["method"] == "etcdserverpb.KV/Put").unwrap();
    assert_eq!((&puts["handled"], &puts["failed"]), (&Value::from(15), &Value::from(0)));
    assert_eq!(seen["revision"], 16);
    let slow = seen["slow"].as_array().unwrap();
    let put = slow.iter().find(|slow| slow["method"] == "etcdserverpb.KV/Put").expect("everything is slow here");
    assert!(put["request"].as_str().unwrap().starts_with("key:\""), "{put}");
    assert!(put["phase_us"]["wal"].as_u64().unwrap() > 0, "{put}");
    let phases = seen["phases"].as_array().unwrap();
    assert!(phases.iter().any(|phase| phase["slow_requests"].as_u64().unwrap() > 0), "{phases:?}");
    assert_eq!(seen["usage"][0]["prefix"], "/registry/pods/");

    let log = member.log_text();
    let line = log.lines().find(|line| line.contains("\"msg\":\"request stats\"")).expect("slow requests are logged");
    let line: Value = serde_json::from_str(line).unwrap();
    for field in
        ["start time", "time spent", "remote", "response type", "request size", "request content", "queue", "wal"]
    {
        assert!(!line[field].is_null(), "{field} is missing in {line}");
    }
    let metrics = metrics(&member);
    for line in [
        "etcd_server_request_duration_seconds_count{success=\"true\",type=\"Put\"} 15",
        "etcd_server_apply_duration_seconds_count{op=\"Put\",success=\"true\",version=\"v3\"} 15",
        "grpc_server_handling_seconds_count{grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",\
         grpc_type=\"unary\"} 15",
        "orlop_hot_prefix_requests_per_second{prefix=\"/registry/\"}",
        "orlop_hot_key_requests_per_second{rank=\"5\"}",
    ] {
        assert!(metrics.contains(line), "{line} is missing");
    }
}
