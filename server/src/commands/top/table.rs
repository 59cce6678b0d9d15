//! Runs on: main thread, in place of the server.
//!
//! Formats an answer of Top as text for the terminal, and as JSON.
//!
//! Invariant: the terminal gets printable ASCII only; keys are escaped.

use std::{fmt::Write as _, time::Duration};

use proto::orlop::{HotItem, MemberState, PrefixUsage, TopResponse};
use serde_json::{Value, json};

use crate::insight::text::escaped;

/// Width of the column for keys and prefixes.
const NAME_WIDTH: usize = 56;

/// The whole screen. Rates are measured since `before`, or since the start.
pub(super) fn table(now: &TopResponse, before: Option<&TopResponse>) -> String {
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text.trim_end());
        out.push('\n');
    };
    let uptime = Duration::from_secs(now.uptime_us / 1_000_000);
    let role = role(now.is_leader, now.is_learner);
    let leader = if has_leader(now) { "" } else { ", no leader" };
    line(&printable(&format!("{} ({role}{leader}), Orlop {}, up {uptime:?}", now.name, now.release)));
    line(&format!(
        "revision {}, compacted {}; store {} allocated, {} in use; memory {}; {} connections, {} watchers",
        now.revision,
        now.compact_revision,
        bytes(now.allocated_bytes),
        bytes(now.in_use_bytes),
        bytes(now.resident_bytes),
        now.connections,
        now.watchers
    ));
    for worry in &now.worries {
        line(&format!("! {}", printable(worry)));
    }
    // One member alone has nothing to say of others.
    if now.members.len() > 1 {
        line(&members(&now.members));
    }
    for text in [methods(now, before), phases(now, before), usage(&now.usage)] {
        line(&text);
    }
    line(&hot("PREFIXES ASKED FOR", &now.hot_prefixes));
    line(&hot("KEYS ASKED FOR", &now.hot_keys));
    line(&slow(now));
    out
}

/// Seconds between the two answers, or since the start.
fn seconds_between(now: &TopResponse, before: Option<&TopResponse>) -> f64 {
    let since_us = before.map_or(0, |before| before.uptime_us);
    // If the member was restarted meanwhile, its counts began anew.
    let us = if since_us < now.uptime_us { now.uptime_us - since_us } else { now.uptime_us };
    Duration::from_micros(us).as_secs_f64().max(0.001)
}

/// Whether the member that was asked knows who leads.
fn has_leader(now: &TopResponse) -> bool {
    now.is_leader || now.members.iter().any(|member| member.is_leader)
}

fn role(is_leader: bool, is_learner: bool) -> &'static str {
    match (is_leader, is_learner) {
        (true, _) => "leader",
        (_, true) => "learner",
        _ => "follower",
    }
}

/// The members of the cluster. How far they are behind is known to the leader alone.
fn members(members: &[MemberState]) -> String {
    let is_asked_of_leader = members.iter().any(|member| member.is_self && member.is_leader);
    let mut out = format!(
        "\n{:30} {:>16} {:>10} {:>12} {:>14} {:>12}  {}\n",
        "MEMBERS", "id", "role", "round trip", "entries behind", "bytes", "remark"
    );
    for member in members {
        let round_trip = match member.round_trip_us {
            0 => "-".to_owned(),
            us => format!("{:.2} ms", us as f64 / 1000.0),
        };
        let (entries, lag) = match is_asked_of_leader && !member.is_leader {
            true => {
                let more = if member.is_behind_memory { ">" } else { "" };
                (member.entries_behind.to_string(), format!("{more}{}", bytes(member.bytes_behind)))
            }
            false => ("-".to_owned(), "-".to_owned()),
        };
        let remark = match member {
            MemberState { is_self: true, .. } => "asked here",
            MemberState { is_connected: false, .. } => "not connected",
            MemberState { needs_state: true, .. } => "gets a whole state",
            MemberState { is_waited_for: true, entries_behind: 1.., .. } => "slow",
            _ => "",
        };
        let name: String = if member.name.is_empty() { "(not started)".to_owned() } else { printable(&member.name) };
        let (name, id) = (name.chars().take(30).collect::<String>(), format!("{:x}", member.id));
        let role = role(member.is_leader, member.is_learner);
        writeln!(out, "{name:30} {id:>16} {role:>10} {round_trip:>12} {entries:>14} {lag:>12}  {remark}")
            .expect("a String takes every write");
    }
    out.lines().map(str::trim_end).collect::<Vec<_>>().join("\n") + "\n"
}

fn methods(now: &TopResponse, before: Option<&TopResponse>) -> String {
    let seconds = seconds_between(now, before);
    let mut rates: Vec<(f64, u64, &str)> = Vec::new();
    for method in &now.methods {
        let last = before.and_then(|before| before.methods.iter().find(|last| last.method == method.method));
        let handled = method.handled.saturating_sub(last.map_or(0, |last| last.handled));
        rates.push((handled as f64 / seconds, method.failed, &method.method));
    }
    rates.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut out = format!("\n{:NAME_WIDTH$} {:>12} {:>12}\n", "CALLS", "/s", "failed");
    for (rate, failed, method) in rates.iter().take(8) {
        let name = printable(method.rsplit('.').next().unwrap_or(method));
        writeln!(out, "{name:NAME_WIDTH$} {rate:>12.1} {failed:>12}").expect("a String takes every write");
    }
    out
}

fn phases(now: &TopResponse, before: Option<&TopResponse>) -> String {
    let last = |phase: &str| {
        before.and_then(|before| before.phases.iter().find(|last| last.phase == phase)).map_or(0.0, |last| last.seconds)
    };
    let spent: Vec<f64> = now.phases.iter().map(|phase| (phase.seconds - last(&phase.phase)).max(0.0)).collect();
    let all = spent.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut out = format!("{:NAME_WIDTH$} {:>12} {:>12}\n", "TIME OF REQUESTS", "share", "slow");
    for (phase, spent) in now.phases.iter().zip(spent) {
        let share = 100.0 * spent / all;
        writeln!(out, "{:NAME_WIDTH$} {share:>11.1}% {:>12}", printable(&phase.phase), phase.slow_requests)
            .expect("a String takes every write");
    }
    out
}

fn usage(rows: &[PrefixUsage]) -> String {
    let mut out = format!("{:NAME_WIDTH$} {:>12} {:>12} {:>12}\n", "USAGE", "keys", "live", "versions");
    for row in rows {
        let mut name = shortened(&row.prefix);
        if row.is_rest {
            name.push_str(" (rest)");
        }
        writeln!(out, "{name:NAME_WIDTH$} {:>12} {:>12} {:>12}", row.keys, bytes(row.live_bytes), row.versions)
            .expect("a String takes every write");
    }
    out
}

fn hot(title: &str, items: &[HotItem]) -> String {
    let mut out = format!("{title:NAME_WIDTH$} {:>12} {:>12}\n", "/s", "writes/s");
    for item in items {
        let name = shortened(&item.item);
        writeln!(out, "{name:NAME_WIDTH$} {:>12.1} {:>12.1}", item.rate, item.write_rate)
            .expect("a String takes every write");
    }
    out
}

fn slow(now: &TopResponse) -> String {
    let mut out = String::from("SLOW REQUESTS\n");
    for slow in &now.slow {
        let spent = now.phases.iter().zip(&slow.phase_us).filter(|(_, us)| **us > 0);
        let spent: Vec<String> =
            spent.map(|(phase, us)| format!("{} {:.3} ms", phase.phase, *us as f64 / 1000.0)).collect();
        let request: String = printable(&slow.request).chars().take(NAME_WIDTH).collect();
        let at = crate::log::timestamp(slow.at_unix_us);
        writeln!(out, "{at} {} {request} [{}]", printable(&slow.method), printable(&spent.join(", ")))
            .expect("a String takes every write");
    }
    out
}

/// Text from a member, without bytes that a terminal might obey.
fn printable(text: &str) -> String {
    text.chars().filter(|c| (' '..='~').contains(c)).collect()
}

/// A key, shortened to the width of the column. The middle is left out, because keys differ at their ends.
fn shortened(key: &[u8]) -> String {
    let text = escaped(key);
    if text.len() <= NAME_WIDTH {
        return text;
    }
    let (front, back) = (NAME_WIDTH / 2 - 3, NAME_WIDTH / 2);
    format!("{}...{}", &text[..front], &text[text.len() - back..])
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// The answer as one JSON object. Keys are text as in the table: all bytes that are not printable ASCII are escaped.
pub(super) fn json(now: &TopResponse) -> Value {
    let hot = |items: &[HotItem]| -> Vec<Value> {
        let row =
            |item: &HotItem| json!({"item": escaped(&item.item), "rate": item.rate, "write_rate": item.write_rate});
        items.iter().map(row).collect()
    };
    let phase_names: Vec<&str> = now.phases.iter().map(|phase| phase.phase.as_str()).collect();
    let slow = now.slow.iter().map(|slow| {
        let phases: serde_json::Map<String, Value> =
            phase_names.iter().zip(&slow.phase_us).map(|(name, us)| ((*name).to_owned(), json!(us))).collect();
        json!({"at_unix_us": slow.at_unix_us, "method": slow.method, "request": slow.request, "phase_us": phases,
            "loading_us": slow.loading_us})
    });
    let methods = now
        .methods
        .iter()
        .map(|method| json!({"method": method.method, "handled": method.handled, "failed": method.failed}));
    let phases = now
        .phases
        .iter()
        .map(|phase| json!({"phase": phase.phase, "seconds": phase.seconds, "slow_requests": phase.slow_requests}));
    let usage = now.usage.iter().map(|row| {
        json!({"prefix": escaped(&row.prefix), "is_rest": row.is_rest, "keys": row.keys, "live_bytes": row.live_bytes,
            "versions": row.versions})
    });
    let members = now.members.iter().map(|member| {
        json!({"id": format!("{:x}", member.id), "name": member.name, "role": role(member.is_leader, member.is_learner),
            "is_self": member.is_self, "is_connected": member.is_connected, "round_trip_us": member.round_trip_us,
            "entries_behind": member.entries_behind, "bytes_behind": member.bytes_behind,
            "is_behind_memory": member.is_behind_memory, "needs_state": member.needs_state,
            "is_waited_for": member.is_waited_for})
    });
    json!({
        "worries": now.worries, "is_learner": now.is_learner, "has_leader": has_leader(now),
        "members": members.collect::<Vec<_>>(),
        "name": now.name, "release": now.release, "is_leader": now.is_leader, "uptime_us": now.uptime_us,
        "revision": now.revision, "compact_revision": now.compact_revision,
        "allocated_bytes": now.allocated_bytes, "in_use_bytes": now.in_use_bytes, "resident_bytes": now.resident_bytes,
        "connections": now.connections, "watchers": now.watchers,
        "methods": methods.collect::<Vec<_>>(), "phases": phases.collect::<Vec<_>>(),
        "hot_keys": hot(&now.hot_keys), "hot_prefixes": hot(&now.hot_prefixes),
        "slow": slow.collect::<Vec<_>>(), "usage": usage.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use proto::orlop::{MethodCount, PhaseTime, SlowRequest};

    use super::*;

    fn answer(uptime_s: u64, handled: u64) -> TopResponse {
        TopResponse {
            name: "m\u{1b}[2J".into(),
            uptime_us: uptime_s * 1_000_000,
            allocated_bytes: 3 << 20,
            methods: vec![MethodCount { method: "etcdserverpb.KV/Put".into(), handled, failed: 1 }],
            phases: vec![PhaseTime { phase: "wal".into(), seconds: handled as f64, slow_requests: 2 }],
            hot_keys: vec![HotItem { item: "a\u{1b}[2J".into(), rate: 5.0, write_rate: 1.0 }],
            slow: vec![SlowRequest { phase_us: vec![1500], request: "key:\"a\" ".into(), ..Default::default() }],
            usage: vec![PrefixUsage { prefix: vec![b'p'; 500].into(), keys: 7, ..Default::default() }],
            ..TopResponse::default()
        }
    }

    #[test]
    fn rates_are_between_two_answers_and_nothing_reaches_the_terminal_unescaped() {
        let text = table(&answer(14, 300), Some(&answer(10, 100)));
        let row = |name: &str| text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        assert_eq!(row("KV/Put").split_whitespace().collect::<Vec<_>>(), ["KV/Put", "50.0", "1"]);
        assert_eq!(row("wal").split_whitespace().collect::<Vec<_>>(), ["wal", "100.0%", "2"]);
        assert!(text.contains("3.0 MiB") && text.contains("wal 1.500 ms") && text.contains(r"a\033[2J"));
        assert!(text.chars().all(|c| c == '\n' || (' '..='~').contains(&c)), "{text}");
        assert!(text.lines().all(|line| line.len() < 200));
        let restarted = table(&answer(4, 300), Some(&answer(10, 100)));
        assert!(restarted.lines().any(|line| line.starts_with("KV/Put") && line.contains(" 50.0 ")), "{restarted}");
    }

    #[test]
    fn the_leader_shows_how_far_each_member_is_behind_and_a_follower_does_not_guess() {
        let member =
            |id: u64, name: &str| MemberState { id, name: name.into(), is_connected: true, ..Default::default() };
        let leader = MemberState { is_leader: true, is_self: true, ..member(0xa, "m1") };
        let late =
            MemberState { entries_behind: 7, bytes_behind: 2048, round_trip_us: 1250, ..member(0xb, "m2\u{1b}") };
        let slow = MemberState { is_waited_for: true, is_behind_memory: true, ..late.clone() };
        let gone = MemberState { is_connected: false, is_learner: true, ..member(0xc, "") };
        let mut shown = TopResponse { members: vec![leader, late, gone, slow], ..answer(14, 300) };
        let rows = |shown: &TopResponse| {
            let text = table(shown, None);
            let row = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
            text.lines().skip_while(|line| !line.starts_with("MEMBERS")).skip(1).take(4).map(row).collect::<Vec<_>>()
        };
        let expected = [
            "m1 a leader - - - asked here",
            "m2 b follower 1.25 ms 7 2.0 KiB",
            "(not started) c learner - 0 0 B not connected",
            "m2 b follower 1.25 ms 7 >2.0 KiB slow",
        ];
        assert_eq!(rows(&shown), expected);
        assert_eq!(json(&shown)["members"][1]["entries_behind"], 7);
        (shown.members[0].is_self, shown.members[1].is_self) = (false, true);
        assert_eq!(rows(&shown)[1], "m2 b follower 1.25 ms - - asked here");
        assert!(table(&shown, None).starts_with("m[2J (follower), Orlop"));
        shown.members[0].is_leader = false;
        assert!(table(&shown, None).starts_with("m[2J (follower, no leader), Orlop"));
        assert_eq!(json(&shown)["has_leader"], false);
        assert!(!table(&answer(14, 300), None).contains("MEMBERS"), "one member alone");
        let full = TopResponse { worries: vec!["the disk is full".into()], ..answer(14, 300) };
        assert!(table(&full, None).lines().any(|line| line == "! the disk is full"));
    }

    #[test]
    fn json_names_what_scripts_ask_for() {
        let value = json(&answer(14, 300));
        assert_eq!(value["methods"][0]["handled"], 300);
        assert_eq!(value["slow"][0]["phase_us"]["wal"], 1500);
        assert_eq!(value["usage"][0]["keys"], 7);
        assert_eq!(value["hot_keys"][0]["item"], "a\\033[2J");
    }
}
