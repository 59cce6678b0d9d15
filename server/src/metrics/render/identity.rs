//! Runs on: connection core.
//!
//! Who the member is, and where raft stands.

use std::sync::atomic::Ordering;

use super::{
    scrape::{Scrape, load, sum},
    text::{Text, escaped},
};
use crate::{config::Stage, metrics::counters::PROMOTION_REASONS, shared::alarm_name};

pub(super) fn render(of: &Scrape<'_>, text: &mut Text) {
    render_identity(of, text);
    render_raft(of, text);
    render_leadership(of, text);
}

fn render_identity(of: &Scrape<'_>, text: &mut Text) {
    let shared = of.shared;
    let id = format!("{:x}", shared.identity.member_id);
    text.label(
        "etcd_server_id",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
        "server_id",
        &id,
    );
    text.label(
        "etcd_server_version",
        "Which version is running. 1 for 'server_version' label with current version.",
        "server_version",
        crate::ETCD_VERSION,
    );
    let release = format!("none: Orlop {}", crate::RELEASE);
    text.label(
        "etcd_server_go_version",
        "Which Go version server is running with. 1 for 'server_go_version' label with current version. \
         Here: the label names this program, which is not written in Go.",
        "server_go_version",
        &release,
    );
    let cluster = shared.cluster.load();
    if let Some(version) = &cluster.version {
        let short = version.rsplit_once('.').map_or(version.as_str(), |(short, _)| short);
        text.label(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            "cluster_version",
            short,
        );
    }
    let name = "etcd_server_feature_enabled";
    text.family(name, "gauge", "Whether or not a feature is enabled. 1 is enabled, 0 is not.");
    for (feature, stage, is_enabled) in &of.registry.features {
        let stage = match stage {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        };
        text.sample(name, &format!("{{name=\"{feature}\",stage=\"{stage}\"}}"), u8::from(*is_enabled));
    }
    if !cluster.members.is_empty() {
        let name = "etcd_network_known_peers";
        text.family(name, "gauge", "The current number of known peers.");
        for member in &cluster.members {
            text.sample(name, &format!("{{Local=\"{id}\",Remote=\"{:x}\"}}", member.id), 1);
        }
    }
    let alarms = &cluster.alarms;
    if !alarms.is_empty() {
        let name = "etcd_debugging_server_alarms";
        let help = "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' \
                    label with type of this alarm";
        text.family(name, "gauge", help);
        for (member, alarm) in alarms.keys() {
            let kind = alarm_name(*alarm);
            text.sample(name, &format!("{{alarm_type=\"{kind}\",server_id=\"{member:x}\"}}"), 1);
        }
    }
}

fn render_raft(of: &Scrape<'_>, text: &mut Text) {
    let shared = of.shared;
    let leader = load(&shared.raft.leader);
    text.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        u8::from(leader != 0),
    );
    let is_leader = u8::from(leader == shared.identity.member_id);
    text.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", is_leader);
    let is_learner = u8::from(shared.is_learner());
    text.gauge("etcd_server_is_learner", "Whether or not this member is a learner. 1 if is, 0 otherwise.", is_learner);
    let changes = of.registry.commit.leader_changes.get();
    text.counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.", changes);
    // The applied index is read first, so that it is never ahead of the committed one.
    let applied = load(&shared.raft.applied);
    let committed = load(&shared.raft.commit).max(applied);
    text.gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        committed,
    );
    text.gauge("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.", applied);
    let pending = shared.raft.pending.load(Ordering::Acquire);
    text.gauge("etcd_server_proposals_pending", "The current number of pending proposals to commit.", pending);
    let failed = sum(of, |counters| &counters.proposals_failed);
    text.counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.", failed);
    let failed = sum(of, |counters| &counters.reads_failed);
    text.counter("etcd_server_read_indexes_failed_total", "The total number of failed read indexes seen.", failed);
    let late = sum(of, |counters| &counters.reads_late);
    let help = "The total number of pending read indexes not in sync with leader's or timed out read index requests.";
    text.counter("etcd_server_slow_read_indexes_total", help, late);
    let slow = of.registry.commit.slow_applies.get() + sum(of, |counters| &counters.slow_reads);
    let help = "The total number of slow apply requests (likely overloaded from slow disk).";
    text.counter("etcd_server_slow_apply_total", help, slow);
}

fn render_leadership(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    let help = "The total number of leader heartbeat send failures (likely overloaded from slow disk).";
    text.counter("etcd_server_heartbeat_send_failures_total", help, commit.heartbeat_failures.get());
    let help = "The total number of successful learner promotions while this member is leader.";
    text.counter("etcd_server_learner_promote_successes", help, sum(of, |counters| &counters.promotions));
    let failed: Vec<_> = PROMOTION_REASONS
        .iter()
        .enumerate()
        .map(|(position, reason)| (reason, sum(of, |counters| &counters.promotions_failed[position])))
        .filter(|(_, failed)| *failed > 0)
        .collect();
    if !failed.is_empty() {
        let name = "etcd_server_learner_promote_failures";
        text.family(
            name,
            "counter",
            "The total number of failed learner promotions (likely learner not ready) while this member is leader.",
        );
        for (reason, failed) in failed {
            text.sample(name, &format!("{{Reason=\"{}\"}}", escaped(reason)), failed);
        }
    }
    let help = "1 if the server is applying the incoming snapshot. 0 if none.";
    text.gauge("etcd_server_snapshot_apply_in_progress_total", help, commit.installs_inflight.get());
}
