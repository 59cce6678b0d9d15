//! Runs on: main thread, before any core is started.
//!
//! The server's table of flags. Each flag has one row, with kind, default, fate and help.
//!
//! Invariants:
//! - Every flag of etcd 3.7.1 has a row, with etcd's default. A name occurs once.
//! - A flag is never silently ignored. If it is set to something other than its default, it is read (`Used`, `Knob`),
//!   or there is a warning (`Idle`, `Legacy`), or it is refused with the reason (`Missing`, `FirstStart`).
//! - A knob for which etcd has no flag has no row. The registry of `tuning` is the table of knobs.
//!
//! **Source**: etcd v3.7.1 `server/embed/config.go`, `server/etcdmain/{config,help}.go`.

use Fate::{FirstStart, Idle, Knob, Legacy, Missing, Used};
use Kind::{Duration, Gates, Signed, Switch, Text, Unsigned, Unsigned32, Urls, WordList, Words};

use super::flag::{Fate, Flag, Kind, Section, Table, Target, row};

const NO_OUTGOING: &str = "outgoing connections have no TLS yet";
const NO_AUTH: &str = "authentication is not supported yet";
const NO_DISCOVERY: &str = "discovery is not supported yet";
const NO_TRACING: &str = "distributed tracing is not supported yet";
const NO_BBOLT: &str = "Orlop does not store its data in bbolt";

/// All flags of the server, including the knobs.
pub(crate) static TABLE: Table = Table {
    sections: &[
        MEMBER, CLUSTERING, SECURITY, AUTH, MONITORING, LOGGING, TRACING, FEATURES, UNSAFE, OWN, GENERAL, LEGACY,
    ],
    takes_words: false,
    has_knobs: true,
    renamed,
};

/// Whether a flag is Orlop's own. Its variable is then `ORLOP_...` rather than `ETCD_...`.
pub(super) fn is_own(flag: &Flag) -> bool {
    OWN.1.iter().any(|row| row.name == flag.name)
}

#[rustfmt::skip]
const MEMBER: Section = ("Member", &[
    row("name", Text, "default", Used, "Name of this member."),
    row("data-dir", Text, "", Used, "Directory of the data; if empty, the name with '.etcd' in the working directory."),
    row("wal-dir", Text, "", Used, "Directory of the write-ahead log; if empty, in the data directory."),
    row("snapshot-count", Unsigned, "10000",
        Idle("checkpoints follow the bytes of log, see store-checkpoint-wal-bytes"),
        "Entries between two raft snapshots."),
    row("snapshot-catchup-entries", Unsigned, "5000", Knob, "Entries kept behind a snapshot for slow followers."),
    row("heartbeat-interval", Unsigned, "100", Knob, "Milliseconds between heartbeats."),
    row("election-timeout", Unsigned, "1000", Knob,
        "Milliseconds of silence before an election; at least 5 heartbeats."),
    row("initial-election-tick-advance", Switch, "true", Used,
        "Shorten the wait for the first election once others are connected."),
    row("listen-peer-urls", Urls, "http://localhost:2380", Used, "Addresses for other members."),
    row("listen-client-urls", Urls, "http://localhost:2379", Used, "Addresses for clients: gRPC and HTTP."),
    row("listen-client-http-urls", Urls, "", Used,
        "Addresses for HTTP alone; those of --listen-client-urls then serve gRPC alone."),
    row("max-snapshots", Unsigned, "5", Idle("there are no snapshot files to keep"), "Snapshot files to keep."),
    row("max-wals", Unsigned, "5", Idle("log segments are recycled after each checkpoint"), "Log files to keep."),
    row("memory-mlock", Switch, "false", Used, "Keep the process in memory."),
    row("quota-backend-bytes", Signed, "0", Knob,
        "Data, history included, at which writes are refused; 0 is 32 GiB, negative is no quota."),
    row("backend-bbolt-freelist-type", Text, "map", Idle(NO_BBOLT), "Free list of bbolt."),
    row("backend-batch-interval", Duration, "0s", Idle(NO_BBOLT), "Time between commits of bbolt."),
    row("backend-batch-limit", Signed, "0", Idle(NO_BBOLT), "Operations between commits of bbolt."),
    row("max-txn-ops", Unsigned, "128", Knob, "Operations in one level of a transaction."),
    row("max-request-bytes", Unsigned, "1572864", Knob, "Largest client request."),
    row("max-concurrent-streams", Unsigned32, "4294967295", Knob,
        "Streams that a client may have open on a connection."),
    row("grpc-keepalive-min-time", Duration, "5s", Knob, "Shortest time between two pings of a client."),
    row("grpc-keepalive-interval", Duration, "2h", Knob, "Silence after which the server pings a client; 0 never."),
    row("grpc-keepalive-timeout", Duration, "20s", Knob, "Time a client has to answer that ping."),
    row("socket-reuse-port", Switch, "false", Used, "Set SO_REUSEPORT on listeners."),
    row("socket-reuse-address", Switch, "false", Idle("listeners have SO_REUSEADDR anyway, as Go gives it"),
        "Set SO_REUSEADDR on listeners."),
    row("enable-grpc-gateway", Switch, "true", Idle("the JSON gateway does not exist yet"), "Serve the JSON gateway."),
    row("raft-read-timeout", Duration, "5s", Used, "Read timeout between members."),
    row("raft-write-timeout", Duration, "5s", Used, "Write timeout between members."),
    row("feature-gates", Gates, "", Used, "Feature gates, as in 'A=true,B=false'."),
]);

#[rustfmt::skip]
const CLUSTERING: Section = ("Clustering", &[
    row("initial-advertise-peer-urls", Urls, "http://localhost:2380", Used,
        "This member's URLs for the other members."),
    row("initial-cluster", Text, "default=http://localhost:2380", Used,
        "The members of a new cluster, or of the joined one, as in 'name=url,name=url'."),
    row("initial-cluster-state", Words(&["new", "existing"]), "new", Used,
        "'new', or 'existing' to join a cluster to which this member was added."),
    row("initial-cluster-token", Text, "etcd-cluster", Used, "Keeps clusters made of the same URLs apart."),
    row("advertise-client-urls", Urls, "http://localhost:2379", Used,
        "This member's URLs for clients; mandatory with --listen-client-urls."),
    row("discovery-token", Text, "", FirstStart(NO_DISCOVERY), "Token of the cluster to discover."),
    row("discovery-endpoints", Text, "", FirstStart(NO_DISCOVERY), "Endpoints of the discovery service."),
    row("discovery-dial-timeout", Duration, "2s", Idle(NO_DISCOVERY), "Discovery: time to connect."),
    row("discovery-request-timeout", Duration, "5s", Idle(NO_DISCOVERY), "Discovery: time for a request."),
    row("discovery-keepalive-time", Duration, "2s", Idle(NO_DISCOVERY), "Discovery: time between pings."),
    row("discovery-keepalive-timeout", Duration, "6s", Idle(NO_DISCOVERY), "Discovery: time for a ping's answer."),
    row("discovery-insecure-transport", Switch, "true", Idle(NO_DISCOVERY), "Discovery: without TLS."),
    row("discovery-insecure-skip-tls-verify", Switch, "false", Idle(NO_DISCOVERY),
        "Discovery: trust any certificate."),
    row("discovery-cert", Text, "", Idle(NO_DISCOVERY), "Discovery: certificate file."),
    row("discovery-key", Text, "", Idle(NO_DISCOVERY), "Discovery: key file."),
    row("discovery-cacert", Text, "", Idle(NO_DISCOVERY), "Discovery: CA file."),
    row("discovery-user", Text, "", Idle(NO_DISCOVERY), "Discovery: user."),
    row("discovery-password", Text, "", Idle(NO_DISCOVERY), "Discovery: password."),
    row("discovery-fallback", Words(&["exit", "proxy"]), "exit", Used, "What to do when discovery fails; only 'exit'."),
    row("discovery", Text, "", FirstStart(NO_DISCOVERY), "Discovery of etcd 3.6 and before."),
    row("discovery-proxy", Text, "", FirstStart(NO_DISCOVERY), "Proxy for that discovery."),
    row("discovery-srv", Text, "", FirstStart(NO_DISCOVERY), "Domain whose SRV records name the members."),
    row("discovery-srv-name", Text, "", FirstStart(NO_DISCOVERY), "Suffix of the SRV name."),
    row("strict-reconfig-check", Switch, "true", Used, "Refuse changes that would lose the quorum."),
    row("pre-vote", Switch, "true", Used, "Ask before an election whether it could be won."),
    row("auto-compaction-retention", Text, "0", Used, "What compaction leaves: a time, hours, or revisions; 0 is off."),
    row("auto-compaction-mode", Text, "periodic", Used, "'periodic' by time, 'revision' by revisions."),
    row("v2-deprecation", WordList(&["write-only", "write-only-skip-check", "write-only-drop-data", "gone"]),
        "write-only",
        Idle("there is no v2 store"), "Deprecated."),
    row("max-learners", Signed, "1", Used, "Learners that a cluster may have."),
]);

#[rustfmt::skip]
const SECURITY: Section = ("Security", &[
    row("cert-file", Text, "", Used, "Certificate for clients."),
    row("key-file", Text, "", Used, "Its key."),
    row("client-cert-auth", Switch, "false", Used, "Demand certificates of clients."),
    row("client-cert-file", Text, "", Idle(NO_OUTGOING), "Certificate for outgoing connections."),
    row("client-key-file", Text, "", Idle(NO_OUTGOING), "Its key."),
    row("client-crl-file", Text, "", Used, "Revoked certificates of clients."),
    row("client-cert-allowed-hostname", Text, "", Used, "Names allowed in clients' certificates."),
    row("trusted-ca-file", Text, "", Used, "CA of clients' certificates."),
    row("auto-tls", Switch, "false", Used, "Make a certificate for clients."),
    row("peer-cert-file", Text, "", Used, "Certificate for members."),
    row("peer-key-file", Text, "", Used, "Its key."),
    row("peer-client-cert-auth", Switch, "false", Used, "Demand certificates of members."),
    row("peer-client-cert-file", Text, "", Idle(NO_OUTGOING), "Certificate for outgoing connections to members."),
    row("peer-client-key-file", Text, "", Idle(NO_OUTGOING), "Its key."),
    row("peer-trusted-ca-file", Text, "", Used, "CA of members' certificates."),
    row("peer-cert-allowed-cn", Text, "", Used, "Common names allowed in members' certificates."),
    row("peer-cert-allowed-hostname", Text, "", Used, "Names allowed in members' certificates."),
    row("peer-auto-tls", Switch, "false", Used, "Make a certificate for members."),
    row("peer-crl-file", Text, "", Used, "Revoked certificates of members."),
    row("peer-skip-client-san-verification", Switch, "false",
        Idle("members' certificates are not compared with their addresses yet"),
        "Do not compare members' certificates with their addresses."),
    row("self-signed-cert-validity", Unsigned, "1", Used, "Years that certificates made here are valid."),
    row("cipher-suites", Text, "", Used, "TLS cipher suites."),
    row("tls-min-version", Text, "TLS1.2", Used, "Lowest TLS version."),
    row("tls-max-version", Text, "", Used, "Highest TLS version."),
    row("cors", Text, "*", Missing("restricting origins is not supported yet"), "Origins allowed in HTTP requests."),
    row("host-whitelist", Text, "*", Missing("restricting hosts is not supported yet"),
        "Host names allowed in HTTP requests."),
]);

#[rustfmt::skip]
const AUTH: Section = ("Auth", &[
    row("auth-token", Text, "simple", Missing(NO_AUTH), "Kind of token, and its options."),
    row("bcrypt-cost", Unsigned, "10", Missing(NO_AUTH), "Cost of hashing a password."),
    row("auth-token-ttl", Unsigned, "300", Missing(NO_AUTH), "Seconds that a token lives."),
]);

#[rustfmt::skip]
const MONITORING: Section = ("Profiling and Monitoring", &[
    row("enable-pprof", Switch, "false", Idle("Go's profiler does not exist here"), "Serve Go's profiler."),
    row("metrics", Text, "basic", Used, "'basic', or 'extensive' with a histogram for each method."),
    row("listen-metrics-urls", Urls, "", Used, "More addresses for /metrics and /health."),
]);

#[rustfmt::skip]
const LOGGING: Section = ("Logging", &[
    row("logger", Text, "zap", Used, "Only 'zap', which is this server's own logger in zap's format."),
    row("log-outputs", Text, "default", Used, "'stderr', 'stdout' or paths, comma separated; 'default' is stderr."),
    row("log-level", Text, "info", Used, "debug, info, warn, error, panic or fatal."),
    row("log-format", Text, "json", Used, "json or console."),
    row("enable-log-rotation", Switch, "false", Missing("log rotation is not supported yet"), "Rotate a log file."),
    row("log-rotation-config-json", Text,
        r#"{"maxsize": 100, "maxage": 0, "maxbackups": 0, "localtime": false, "compress": false}"#,
        Missing("log rotation is not supported yet"), "How to rotate."),
    row("warning-unary-request-duration", Duration, "300ms", Knob, "A request that takes longer is logged."),
    row("warning-apply-duration", Duration, "100ms", Knob, "An apply that takes longer is logged."),
]);

#[rustfmt::skip]
const TRACING: Section = ("Distributed tracing", &[
    row("enable-distributed-tracing", Switch, "false", Missing(NO_TRACING), "Send traces."),
    row("distributed-tracing-address", Text, "localhost:4317", Missing(NO_TRACING), "Where to."),
    row("distributed-tracing-service-name", Text, "etcd", Missing(NO_TRACING), "Name of the service in traces."),
    row("distributed-tracing-instance-id", Text, "", Missing(NO_TRACING), "Name of this member in traces."),
    row("distributed-tracing-sampling-rate", Signed, "0", Missing(NO_TRACING), "Spans sampled in a million."),
]);

#[rustfmt::skip]
const FEATURES: Section = ("Features", &[
    row("corrupt-check-time", Duration, "0s", Used, "Time between comparisons of members' hashes; 0 never."),
    row("compact-hash-check-time", Duration, "1m", Used,
        "Time between comparisons of compaction hashes (gate CompactHashCheck)."),
    row("compaction-batch-limit", Signed, "1000", Knob, "Versions that one step of compaction looks at."),
    row("compaction-sleep-interval", Duration, "10ms", Idle("steps of compaction yield to traffic by themselves"),
        "Pause between two steps of compaction."),
    row("watch-progress-notify-interval", Duration, "10m", Knob, "Time between progress notices to an idle watcher."),
    row("bootstrap-defrag-threshold-megabytes", Unsigned, "0", Idle("space is reused without a pass at start"),
        "Defragment at start if this much would be freed."),
    row("downgrade-check-time", Duration, "5s", Used, "Time between checks of a downgrade; 0 never."),
]);

#[rustfmt::skip]
const UNSAFE: Section = ("Unsafe", &[
    row("import", Switch, "false", Used,
        "Take over the data directory of a stopped etcd, once; its own files are kept in member.imported."),
    row("force-new-cluster", Switch, "false", Used,
        "Make a cluster of this member alone: the others are removed, and what is not known to be committed is lost."),
    row("unsafe-no-fsync", Switch, "false", Idle("every write is synced before it is acknowledged"),
        "Do without durability."),
]);

#[rustfmt::skip]
const OWN: Section = ("Orlop", &[
    row("profile", Text, "", Used, "Knobs for a kind of work, by name (see below)."),
    row("knobs", Text, "", Used, "File with a knob a line, as in 'wal-segment-bytes = 128MiB'."),
]);

#[rustfmt::skip]
const GENERAL: Section = ("General", &[
    row("config-file", Text, "", Missing("configuration files are not supported yet: use flags or ETCD_ variables"),
        "Configuration file in YAML."),
    row("version", Switch, "false", Used, "Print the version and exit."),
]);

#[rustfmt::skip]
const LEGACY: Section = ("Ignored", &[
    row("cluster-active-size", Switch, "", Legacy, ""),
    row("cluster-remove-delay", Switch, "", Legacy, ""),
    row("cluster-sync-interval", Switch, "", Legacy, ""),
    row("config", Switch, "", Legacy, ""),
    row("force", Switch, "", Legacy, ""),
    row("max-result-buffer", Switch, "", Legacy, ""),
    row("max-retry-attempts", Switch, "", Legacy, ""),
    row("peer-heartbeat-interval", Switch, "", Legacy, ""),
    row("peer-election-timeout", Switch, "", Legacy, ""),
    row("retry-interval", Switch, "", Legacy, ""),
    row("snapshot", Switch, "", Legacy, ""),
    row("v", Switch, "", Legacy, ""),
    row("vv", Switch, "", Legacy, ""),
    row("test.coverprofile", Switch, "", Legacy, ""),
    row("test.outputdir", Switch, "", Legacy, ""),
]);

/// The present meaning of an `--experimental-` flag. Manifests of etcd 3.5 and 3.6 still use such flags.
///
/// **Source**: etcd v3.6.14 `server/embed/config.go`.
fn renamed(name: &str) -> Option<Target> {
    let gate = match name.strip_prefix("experimental-")? {
        "compact-hash-check-enabled" => "CompactHashCheck",
        "enable-lease-checkpoint" => "LeaseCheckpoint",
        "enable-lease-checkpoint-persist" => "LeaseCheckpointPersist",
        "initial-corrupt-check" => "InitialCorruptCheck",
        "stop-grpc-service-on-defrag" => "StopGRPCServiceOnDefrag",
        "txn-mode-write-with-shared-buffer" => "TxnModeWriteWithSharedBuffer",
        "snapshot-catch-up-entries" => return TABLE.row("snapshot-catchup-entries").map(Target::Flag),
        same @ ("bootstrap-defrag-threshold-megabytes"
        | "compact-hash-check-time"
        | "compaction-batch-limit"
        | "compaction-sleep-interval"
        | "corrupt-check-time"
        | "distributed-tracing-address"
        | "distributed-tracing-instance-id"
        | "distributed-tracing-sampling-rate"
        | "distributed-tracing-service-name"
        | "downgrade-check-time"
        | "enable-distributed-tracing"
        | "memory-mlock"
        | "peer-skip-client-san-verification"
        | "snapshot-catchup-entries"
        | "warning-apply-duration"
        | "warning-unary-request-duration"
        | "watch-progress-notify-interval") => return TABLE.row(same).map(Target::Flag),
        _ => return None,
    };
    Some(Target::Gate(gate))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_are_unique_and_their_defaults_are_values() {
        TABLE.check();
    }

    #[test]
    fn knobs_with_a_flag_of_etcds_and_rows_with_a_knob_are_the_same() {
        let by_knob: BTreeSet<_> = tuning::REGISTRY.iter().filter_map(|knob| knob.etcd_flag).collect();
        let by_row: BTreeSet<_> = TABLE.rows().filter(|row| row.fate == Knob).map(|row| row.name).collect();
        assert_eq!(by_knob, by_row);
    }

    #[test]
    fn old_names_lead_to_present_ones() {
        let flag = |old| renamed(old).map(|new| if let Target::Flag(row) = new { row.name } else { "" });
        assert_eq!(flag("experimental-watch-progress-notify-interval"), Some("watch-progress-notify-interval"));
        assert_eq!(flag("experimental-snapshot-catch-up-entries"), Some("snapshot-catchup-entries"));
        let gate = renamed("experimental-initial-corrupt-check");
        assert!(matches!(gate, Some(Target::Gate("InitialCorruptCheck"))));
        assert!(renamed("experimental-bogus").is_none() && renamed("name").is_none());
    }
}
