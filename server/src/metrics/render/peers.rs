//! Runs on: connection core.
//!
//! Connections with other members, and whole states on their way.

use std::sync::Arc;

use super::{
    scrape::{SECONDS, Scrape, one},
    text::Text,
};
use crate::metrics::{
    histogram::Histogram,
    peers::{OfPeer, OfStates},
};

/// Type, name behind `etcd_network_`, help, and the number of a member.
type Family = (&'static str, &'static str, &'static str, fn(&OfPeer) -> u64);

/// With the labels `Local` and `Remote`.
const BETWEEN: [Family; 2] = [
    ("gauge", "active_peers", "The current number of active peer connections.", |of| of.is_active.get()),
    ("counter", "disconnected_peers_total", "The total number of disconnected peers.", |of| of.disconnections.get()),
];

/// With the label `To`.
const TO: [Family; 5] = [
    ("counter", "peer_sent_bytes_total", "The total number of bytes sent to peers.", |of| {
        of.sent_bytes.get() + of.sent_states.bytes.get()
    }),
    ("counter", "peer_sent_failures_total", "The total number of send failures from peers.", |of| {
        of.send_failures.get()
    }),
    ("counter", "snapshot_send_success", "Total number of successful snapshot sends", |of| {
        of.sent_states.succeeded.get()
    }),
    ("counter", "snapshot_send_failures", "Total number of snapshot send failures", |of| of.sent_states.failed.get()),
    ("gauge", "snapshot_send_inflights_total", "Total number of inflight snapshot sends", |of| {
        of.sent_states.under_way.get()
    }),
];

/// With the label `From`.
const FROM: [Family; 5] = [
    ("counter", "peer_received_bytes_total", "The total number of bytes received from peers.", |of| {
        of.received_bytes.get() + of.received_states.bytes.get()
    }),
    ("counter", "peer_received_failures_total", "The total number of receive failures from peers.", |of| {
        of.receive_failures.get()
    }),
    ("counter", "snapshot_receive_success", "Total number of successful snapshot receives", |of| {
        of.received_states.succeeded.get()
    }),
    ("counter", "snapshot_receive_failures", "Total number of snapshot receive failures", |of| {
        of.received_states.failed.get()
    }),
    ("gauge", "snapshot_receive_inflights_total", "Total number of inflight snapshot receives", |of| {
        of.received_states.under_way.get()
    }),
];

pub(super) fn render(of: &Scrape<'_>, text: &mut Text) {
    let peers = of.registry.peers.all();
    // A family without a sample is not shown, as in etcd.
    if peers.is_empty() {
        return;
    }
    let peers: Vec<(String, &Arc<OfPeer>)> = peers.iter().map(|(id, of)| (format!("{id:x}"), of)).collect();
    let own = format!("{:x}", of.shared.identity.member_id);
    families(text, &BETWEEN, &peers, |id| format!("Local=\"{own}\",Remote=\"{id}\""));
    families(text, &TO, &peers, |id| format!("To=\"{id}\""));
    families(text, &FROM, &peers, |id| format!("From=\"{id}\""));
    let help = "Round-Trip-Time histogram between peers";
    histogram(text, ("peer_round_trip_time_seconds", help, "To"), &peers, |of| &of.round_trips);
    let seconds: fn(&OfStates) -> &Histogram<10> = |of| &of.seconds;
    let help = "Total latency distributions of v3 snapshot sends";
    histogram(text, ("snapshot_send_total_duration_seconds", help, "To"), &peers, |of| seconds(&of.sent_states));
    let help = "Total latency distributions of v3 snapshot receives";
    let name = "snapshot_receive_total_duration_seconds";
    histogram(text, (name, help, "From"), &peers, |of| seconds(&of.received_states));
}

fn families(text: &mut Text, families: &[Family], peers: &[(String, &Arc<OfPeer>)], labels: impl Fn(&str) -> String) {
    for (kind, name, help, number) in families {
        let name = format!("etcd_network_{name}");
        text.family(&name, kind, help);
        for (id, of) in peers {
            text.sample(&name, &format!("{{{}}}", labels(id)), number(of));
        }
    }
}

fn histogram<const N: usize>(
    text: &mut Text,
    (name, help, label): (&str, &str, &str),
    peers: &[(String, &Arc<OfPeer>)],
    pick: impl Fn(&OfPeer) -> &Histogram<N>,
) {
    let name = format!("etcd_network_{name}");
    text.family(&name, "histogram", help);
    for (id, of) in peers {
        text.series(&name, &format!("{label}=\"{id}\""), &one(pick(of)), SECONDS);
    }
}
