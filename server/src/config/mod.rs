//! Runs on: main thread, before any core is started.
//!
//! The settings of the operator: etcd's flags and `ETCD_` variables, Orlop's profile, knobs file and knob flags. They
//! become one checked `Config`.
//!
//! Invariants:
//! - The server can start with any `Config` that exists. Combinations that etcd refuses are refused here, in etcd's
//!   words and with its exit codes.
//! - Nothing that the user wrote is dropped silently. A flag that is unknown or unsupported is refused. One without
//!   effect gives a warning.
//! - A later source beats an earlier one: defaults, profile, knobs file, flags and variables.
//!
//! The same parser reads the flags of the other commands. Each command has a table of its own.
//!
//! | file | what it has |
//! |---|---|
//! | `error` | the errors, in the words of etcd and of Go |
//! | `go` | Go's text syntax: arguments, booleans, integers, durations |
//! | `url` | URLs, and lists of them |
//! | `gates` | etcd's feature gates |
//! | `tls` | files, versions and cipher suites of TLS |
//! | `flag` | defines a flag: row, kind, fate, value; and a table of flags |
//! | `values` | the parser: from arguments to values by flag |
//! | `flags` | the server's table |
//! | `variables` | the server's flags in the environment |
//! | `knobs` | profile, knobs file and flags become knobs |
//! | `advertise` | the address of this host in default URLs |
//! | `host` | the resources of this machine |
//! | `init` | what the init daemon asks for |
//!
//! This folder opens no socket, resolves no name and creates no directory. It reads files through the function that is
//! passed in. As etcd does, a member that listens on `0.0.0.0` and was given no URL to advertise advertises the address
//! of the default route; `commands` asks the kernel for it.
//!
//! **Source**: etcd v3.7.1 `server/embed/config.go`, `server/config/config.go`, and the answers of a running one.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

mod advertise;
mod error;
mod flag;
mod flags;
mod gates;
mod go;
mod host;
mod init;
mod knobs;
#[cfg(test)]
mod tests;
mod tls;
mod url;
mod values;
mod variables;

pub use error::{Error, Invalid, Usage};
pub(crate) use flag::{Fate, Kind, Section, Table, row};
pub(crate) use flags::TABLE;
pub use gates::{GATES, Stage};
pub use host::host;
pub use init::Init;
pub use knobs::ReadFile;
pub use tls::{Ciphers, Tls, TlsFiles, TlsVersion};
pub use url::{Scheme, Url, join, needs_tls};
pub(crate) use values::Values;
pub use values::Warning;

/// The compactions that the server makes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoCompaction {
    /// None.
    Off,
    /// Keeps everything that is younger than this.
    Periodic(Duration),
    /// Keeps this many revisions.
    Revision(i64),
}

/// The least severe level that is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Everything.
    Debug,
    /// Facts that an operator may want to know.
    Info,
    /// Facts that an operator should know.
    Warn,
    /// Facts that a human must look at.
    Error,
    /// Only the reason of the process's end.
    Fatal,
}

/// How a line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One object in each line, as in etcd.
    Json,
    /// For a terminal.
    Console,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOutput {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

/// Everything decided before the server starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// This member's name.
    pub name: String,
    /// Directory of the data.
    pub data_dir: PathBuf,
    /// Directory of the log, if it is outside of `data_dir`.
    pub wal_dir: Option<PathBuf>,
    /// Where clients are served.
    pub listen_client_urls: Vec<Url>,
    /// Where other members will be served.
    pub listen_peer_urls: Vec<Url>,
    /// Where clients are served HTTP. If there are any, `listen_client_urls` serves gRPC alone.
    pub listen_client_http_urls: Vec<Url>,
    /// Further addresses where metrics and health are served.
    pub listen_metrics_urls: Vec<Url>,
    /// The URLs that the member list shows to clients.
    pub advertise_client_urls: Vec<Url>,
    /// The URLs that the member list shows to other members. They are part of the member's id.
    pub advertise_peer_urls: Vec<Url>,
    /// Whether a member without data joins a cluster that runs already (`--initial-cluster-state existing`).
    pub joins: bool,
    /// Members of a new cluster, or of the one that is joined, by name.
    pub initial_cluster: BTreeMap<String, Vec<Url>>,
    /// Whether `initial_cluster` follows from the name and the advertised URLs.
    is_initial_cluster_derived: bool,
    /// A text that is part of the cluster's id.
    pub initial_cluster_token: String,
    /// Whether the members of a new cluster are to be discovered. That does not exist yet; see `first_start`.
    pub discovers: bool,
    /// Why a member without data cannot start with these settings. They do not count for a member that has data.
    pub first_start: Vec<String>,
    /// Whether the data of a stopped etcd is taken over.
    pub import: bool,
    /// Whether a member with data makes a cluster of itself alone.
    pub force_new_cluster: bool,
    /// How long nothing may arrive from another member.
    pub raft_read_timeout: Duration,
    /// How long another member may take nothing of what it is sent.
    pub raft_write_timeout: Duration,
    /// Whether connections with others shorten the wait for the first election.
    pub initial_election_tick_advance: bool,
    /// Time between comparisons of all that members hold; 0 for never.
    pub corrupt_check: Duration,
    /// Time between comparisons of their compactions.
    pub compact_hash_check: Duration,
    /// Time between looks at whether a downgrade is over; 0 for never.
    pub downgrade_check: Duration,
    /// Whether a member asks before an election whether it could be won.
    pub pre_vote: bool,
    /// Automatic compaction.
    pub auto_compaction: AutoCompaction,
    /// The least severe level that is logged.
    pub log_level: LogLevel,
    /// How a line is written.
    pub log_format: LogFormat,
    /// Where lines go. There is at least one output.
    pub log_outputs: Vec<LogOutput>,
    /// Whether /metrics has the durations of calls by method.
    pub extensive_metrics: bool,
    /// Whether the memory of the process stays in RAM.
    pub memory_mlock: bool,
    /// Whether listeners set SO_REUSEPORT.
    pub socket_reuse_port: bool,
    /// TLS.
    pub tls: Tls,
    /// Learners that the cluster may have.
    pub learners_max: usize,
    /// A simple token that is not used for so long ends.
    pub auth_token_ttl: Duration,
    /// Whether changes of the members are refused that could lose the quorum.
    pub is_reconfig_strict: bool,
    /// All feature gates with their true values.
    pub gates: BTreeMap<&'static str, bool>,
    /// The profile that `knobs` began with.
    pub profile: Option<&'static str>,
    /// All settings of engine, consensus and server.
    pub knobs: tuning::Knobs,
    /// The machine. It decides what the knobs leave open.
    pub host: tuning::Host,
    /// What the init daemon asks for.
    pub init: Init,
    /// Warnings for the log.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Makes the configuration from the arguments after the program's name, and from the environment.
    ///
    /// **Errors**: the text to print, and how to exit.
    pub fn parse(arguments: &[String], variables: &[(String, String)], read_file: ReadFile<'_>) -> Result<Self, Error> {
        Self::new(Values::read(&TABLE, arguments)?, variables, read_file)
    }

    /// Makes the configuration from the values that the arguments gave for the server's table, and from the
    /// environment.
    ///
    /// **Errors**: the text to print, and how to exit.
    pub(crate) fn new(
        mut values: Values,
        variables: &[(String, String)],
        read_file: ReadFile<'_>,
    ) -> Result<Self, Error> {
        if values.switch("version") {
            return Err(Error::Version);
        }
        variables::read(&mut values, variables)?;
        refuse(missing(&values, |fate| if let Fate::Missing(why) = fate { Some(why) } else { None }))?;
        check_words(&values)?;
        check_discovery(&values)?;
        warn_idle(&mut values);
        let (profile, knobs) = knobs::resolve(&mut values, read_file)?;
        let init = Init::read(variables, std::process::id());
        let config = Self { init, ..Self::build(values, profile, knobs, host(read_file))? };
        config.check()?;
        Ok(config)
    }

    /// Checks what must hold before the first start in an empty data directory, without resolving names. Later starts
    /// take the cluster from the data.
    ///
    /// **Errors**: etcd's text.
    pub fn verify_bootstrap(&self) -> Result<(), Error> {
        let own = self.verify_local_member()?;
        if *own != self.advertise_peer_urls {
            return Err(self.mismatch(own, &difference(own, &self.advertise_peer_urls)));
        }
        self.verify_unique_urls()
    }

    /// The URLs that `initial_cluster` has for this member, for its first start.
    ///
    /// **Errors**: etcd's text.
    pub fn verify_local_member(&self) -> Result<&[Url], Error> {
        refuse(self.first_start.clone())?;
        let own = self.initial_cluster.get(&self.name).ok_or_else(|| {
            refused(format!("couldn't find local name {:?} in the initial cluster configuration", self.name))
        })?;
        Ok(own)
    }

    /// Checks that `initial_cluster` has no URL twice.
    ///
    /// **Errors**: etcd's text.
    pub fn verify_unique_urls(&self) -> Result<(), Error> {
        let cluster = || self.initial_cluster.values().flatten();
        if cluster().map(Url::as_str).collect::<BTreeSet<_>>().len() < cluster().count() {
            let cluster = cluster_text(&self.initial_cluster);
            return Err(refused(format!("initial cluster {cluster} has duplicate url")));
        }
        Ok(())
    }

    /// What etcd says if the URLs that `initial_cluster` has for this member, `own`, do not lead where those lead that
    /// it advertises, because of `why`.
    pub fn mismatch(&self, own: &[Url], why: &str) -> Error {
        let advertised = self.advertise_peer_urls.as_slice();
        let named = |urls: &[Url]| urls.iter().map(|url| format!("{}={url}", self.name)).collect::<Vec<_>>().join(",");
        let beyond = |urls: &[Url], others: &[Url]| -> Vec<Url> {
            urls.iter().filter(|url| !others.contains(url)).cloned().collect()
        };
        let (missing, unknown) = (beyond(own, advertised), beyond(advertised, own));
        refused(if !missing.is_empty() {
            format!(
                "--initial-cluster has {} but missing from --initial-advertise-peer-urls={} ({why})",
                named(&missing),
                join(advertised)
            )
        } else if !unknown.is_empty() {
            format!(
                "--initial-advertise-peer-urls has {} but missing from --initial-cluster={}",
                join(&unknown),
                named(advertised)
            )
        } else {
            format!("failed to resolve {} to match --initial-cluster={} ({why})", join(advertised), named(advertised))
        })
    }

    /// The time that a proposal may take, or a read that must be current.
    ///
    /// **Source**: etcd v3.7.1 `server/config/config.go`, `ReqTimeout`.
    pub fn request_timeout(&self) -> Duration {
        Duration::from_secs(5) + 2 * Duration::from_millis(self.knobs.consensus.election_ms)
    }

    fn build(
        mut values: Values,
        profile: Option<&'static str>,
        knobs: tuning::Knobs,
        host: tuning::Host,
    ) -> Result<Self, Error> {
        let name = values.text("name");
        let advertise_peer_urls = values.urls("initial-advertise-peer-urls");
        let is_initial_cluster_derived = name != "default" && values.text("initial-cluster") == DEFAULT_CLUSTER;
        let initial_cluster = if is_initial_cluster_derived {
            [(name.clone(), advertise_peer_urls.clone())].into()
        } else {
            initial_cluster(&values.text("initial-cluster"))?
        };
        let data_dir = match values.text("data-dir") {
            empty if empty.is_empty() => {
                let dir = format!("{name}.etcd");
                values.warn("'data-dir' was empty; using default", "data-dir", &dir);
                dir
            }
            given => given,
        };
        if name == "default" {
            let message = "it isn't recommended to use default name, please set a value for --name. Note that etcd \
                might run into issue when multiple members have the same default name";
            values.warn(message, "name", &name);
        }
        let mut gates = gates::asked(&values.gates("feature-gates"));
        gates::check(&gates)?;
        for (name, why) in gates::correct(&mut gates) {
            values.warn(&format!("feature gate has no effect: {why}"), "feature-gate", name);
        }
        let has_no_advertised = values.is_set("listen-client-urls") && !values.is_set("advertise-client-urls");
        Ok(Self {
            data_dir: PathBuf::from(data_dir),
            wal_dir: Some(values.text("wal-dir")).filter(|dir| !dir.is_empty()).map(PathBuf::from),
            listen_client_urls: values.urls("listen-client-urls"),
            listen_peer_urls: values.urls("listen-peer-urls"),
            listen_client_http_urls: values.urls("listen-client-http-urls"),
            listen_metrics_urls: values.urls("listen-metrics-urls"),
            advertise_client_urls: if has_no_advertised { Vec::new() } else { values.urls("advertise-client-urls") },
            advertise_peer_urls,
            joins: values.text("initial-cluster-state") == "existing",
            initial_cluster,
            is_initial_cluster_derived,
            initial_cluster_token: values.text("initial-cluster-token"),
            discovers: DISCOVERIES.iter().any(|name| !values.text(name).is_empty()),
            first_start: missing(&values, |fate| if let Fate::FirstStart(why) = fate { Some(why) } else { None }),
            import: values.switch("import"),
            force_new_cluster: values.switch("force-new-cluster"),
            raft_read_timeout: raft_timeout(&values, "raft-read-timeout"),
            raft_write_timeout: raft_timeout(&values, "raft-write-timeout"),
            initial_election_tick_advance: values.switch("initial-election-tick-advance"),
            corrupt_check: interval(&values, "corrupt-check-time"),
            compact_hash_check: interval(&values, "compact-hash-check-time"),
            downgrade_check: interval(&values, "downgrade-check-time"),
            pre_vote: values.switch("pre-vote"),
            auto_compaction: auto_compaction(&values)?,
            log_level: log_level(&values.text("log-level"))?,
            log_format: log_format(&values.text("log-format"))?,
            log_outputs: log_outputs(&values.text("log-outputs"))?,
            extensive_metrics: values.text("metrics") == "extensive",
            memory_mlock: values.switch("memory-mlock"),
            socket_reuse_port: values.switch("socket-reuse-port"),
            tls: Tls::of(&mut values)?,
            learners_max: usize::try_from(values.signed("max-learners")).unwrap_or(0),
            auth_token_ttl: Duration::from_secs(values.unsigned("auth-token-ttl")),
            is_reconfig_strict: values.switch("strict-reconfig-check"),
            gates,
            profile,
            knobs,
            host,
            init: Init::default(),
            warnings: values.warnings,
            name,
        })
    }

    /// etcd's checks of the whole configuration, in etcd's order.
    fn check(&self) -> Result<(), Error> {
        let listened = [
            &self.listen_peer_urls,
            &self.listen_client_urls,
            &self.listen_client_http_urls,
            &self.listen_metrics_urls,
        ];
        for url in listened.into_iter().flatten() {
            if matches!(url.scheme, Scheme::Http | Scheme::Https) {
                url.bind_address()?;
            }
        }
        if let Some(url) = self.advertise_peer_urls.iter().find(|url| url.host.is_empty()) {
            return Err(refused(format!(
                "--initial-advertise-peer-urls {:?} must be \"host:port\" (unexpected empty host ({url}))",
                join(&self.advertise_peer_urls)
            )));
        }
        if let Some(url) = self.advertise_client_urls.iter().find(|url| url.host.is_empty()) {
            return Err(refused(format!(
                "--advertise-client-urls {:?} must be in the format \"host:port\", \"unix:/path/to/socket\" or \
                 \"unixs:/path/to/socket\" (unexpected empty host ({url}))",
                join(&self.advertise_client_urls)
            )));
        }
        if self.advertise_client_urls.is_empty() {
            return Err(refused("--advertise-client-urls is required when --listen-client-urls is set explicitly"));
        }
        self.check_tls()?;
        self.knobs
            .check()
            .map_err(|problems| refused(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
    }
}

impl Config {
    /// Checks that what the ports need for TLS is given.
    fn check_tls(&self) -> Result<(), Error> {
        let Tls { clients, peers, clients_auto, peers_auto, .. } = &self.tls;
        let secure = |urls: &[Url]| urls.iter().find(|url| url.scheme.is_secure()).cloned();
        let for_clients = secure(&self.listen_client_urls).or_else(|| secure(&self.listen_client_http_urls));
        let for_metrics = secure(&self.listen_metrics_urls);
        if !clients_auto || !clients.is_empty() {
            match (&for_clients, &for_metrics) {
                (Some(url), _) if clients.is_empty() => {
                    return Err(refused(format!(
                        "TLS key/cert (--cert-file, --key-file) must be provided for client url {url} with HTTPS scheme"
                    )));
                }
                (_, Some(_)) if clients.is_empty() => {
                    return Err(refused(
                        "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url",
                    ));
                }
                (None, None) => {}
                _ => clients.check()?,
            }
        }
        match secure(&self.listen_peer_urls) {
            Some(url) if peers.is_empty() && !peers_auto => Err(refused(format!(
                "cannot listen on TLS for {}:{}: KeyFile and CertFile are not presented",
                url.host, url.port
            ))),
            Some(_) if !peers.is_empty() => peers.check(),
            _ => Ok(()),
        }
    }
}

fn refused(text: impl Into<String>) -> Error {
    Error::Refused(text.into())
}

/// Flags of features that do not exist, unless they ask for what is true anyway, with what `reason` gives for the fates
/// that it looks for.
fn missing(values: &Values, reason: impl Fn(Fate) -> Option<&'static str>) -> Vec<String> {
    TABLE
        .rows()
        .filter(|row| values.differs(row))
        .filter_map(|row| Some(format!("--{}: {}", row.name, reason(row.fate)?)))
        .collect()
}

/// Refuses with an error that has all `reasons`, if there is one.
fn refuse(reasons: Vec<String>) -> Result<(), Error> {
    if reasons.is_empty() { Ok(()) } else { Err(refused(reasons.join("; "))) }
}

fn warn_idle(values: &mut Values) {
    let idle = TABLE.rows().filter(|row| values.differs(row)).filter_map(|row| match row.fate {
        Fate::Idle(why) => Some((row.name, why)),
        _ => None,
    });
    for (name, why) in idle.collect::<Vec<_>>() {
        values.warn(&format!("flag has no effect: {why}"), "flag-name", name);
    }
    for (name, message) in [
        ("max-snapshots", "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8."),
        (
            "v2-deprecation",
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, \
             ignoring user input.",
        ),
    ] {
        if values.is_set(name) {
            values.warn_plainly(message);
        }
    }
}

/// Refuses texts that etcd refuses in its own validation, not in its flag parser. Also refuses durations that must be
/// positive and are not.
fn check_words(values: &Values) -> Result<(), Error> {
    if values.text("discovery-fallback") == "proxy" {
        return Err(refused("v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\""));
    }
    match values.text("logger").as_str() {
        "zap" => {}
        "capnslog" => return Err(refused("--logger=capnslog is removed in v3.5")),
        other => return Err(refused(format!("unknown logger option {other:?}"))),
    }
    match values.text("auto-compaction-mode").as_str() {
        "periodic" | "revision" => {}
        "" => return Err(refused("undefined auto-compaction-mode")),
        other => return Err(refused(format!("unknown auto-compaction-mode {other:?}"))),
    }
    if values.duration("compact-hash-check-time") <= 0 {
        return Err(refused("--compact-hash-check-time must be >0"));
    }
    Ok(())
}

/// The flags that ask for a discovery of the other members.
const DISCOVERIES: [&str; 4] = ["discovery-endpoints", "discovery-srv", "discovery-srv-name", "discovery"];

/// Refuses what contradicts itself about the members of a new cluster, as etcd does even where there is data.
fn check_discovery(values: &Values) -> Result<(), Error> {
    let text = |name| values.text(name);
    let ways = ["initial-cluster", "discovery-endpoints", "discovery-srv"];
    if ways.iter().filter(|way| values.is_set(way) && !text(way).is_empty()).count() > 1 {
        return Err(refused(
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
             \"discovery-endpoints\" or \"discovery-srv\"",
        ));
    }
    let endpoints = text("discovery-endpoints");
    if text("discovery-token").is_empty() != endpoints.is_empty() {
        return Err(refused("both --discovery-token and --discovery-endpoints must be set"));
    }
    if !endpoints.is_empty() && endpoints.split(',').any(|endpoint| endpoint.trim().is_empty()) {
        return Err(refused("--discovery-endpoints must not contain empty endpoints"));
    }
    Ok(())
}

/// The default of `--initial-cluster`. With another name, it means this member as it advertises itself.
const DEFAULT_CLUSTER: &str = "default=http://localhost:2380";

/// The members in the text of `--initial-cluster`.
fn initial_cluster(text: &str) -> Result<BTreeMap<String, Vec<Url>>, Error> {
    let mut cluster: BTreeMap<String, Vec<Url>> = BTreeMap::new();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (member, url) = part.split_once('=').unwrap_or((part, ""));
        let url = Url::parse(url).map_err(|why| refused(format!("error setting up initial cluster: {why}")))?;
        cluster.entry(member.to_owned()).or_default().push(url);
    }
    for urls in cluster.values_mut() {
        urls.sort_by(|a, b| a.as_str().cmp(b.as_str()));
    }
    Ok(cluster)
}

/// How a member's URLs differ between the two flags, in etcd's words. It resolves no names.
fn difference(own: &[Url], advertised: &[Url]) -> String {
    if own.len() != advertised.len() {
        return format!("len({}) != len({})", quoted(advertised), quoted(own));
    }
    let pair = advertised.iter().zip(own).find(|(a, b)| a != b);
    pair.map_or_else(String::new, |(a, b)| format!("resolved urls: {:?} != {:?}", a.as_str(), b.as_str()))
}

/// A list as Go prints the texts of its URLs: `["a" "b"]`.
pub fn quoted(urls: &[Url]) -> String {
    format!("[{}]", urls.iter().map(|url| format!("{:?}", url.as_str())).collect::<Vec<_>>().join(" "))
}

fn cluster_text(cluster: &BTreeMap<String, Vec<Url>>) -> String {
    let mut pairs: Vec<String> =
        cluster.iter().flat_map(|(name, urls)| urls.iter().map(move |url| format!("{name}={url}"))).collect();
    pairs.sort();
    pairs.join(",")
}

/// The time between two checks; 0 for never, which a negative one means as well.
fn interval(values: &Values, name: &str) -> Duration {
    u64::try_from(values.duration(name)).map_or(Duration::ZERO, Duration::from_nanos)
}

/// A timeout between members: at least etcd's 5 seconds.
///
/// **Source** etcd v3.7.1 `server/etcdserver/api/rafthttp/transport.go`.
fn raft_timeout(values: &Values, name: &str) -> Duration {
    const LEAST: Duration = Duration::from_secs(5);
    u64::try_from(values.duration(name)).map_or(LEAST, Duration::from_nanos).max(LEAST)
}

/// An integer means hours or revisions, by the mode. Anything else is a duration. For revisions, etcd takes the
/// nanoseconds of the duration as the number.
fn auto_compaction(values: &Values) -> Result<AutoCompaction, Error> {
    let is_periodic = values.text("auto-compaction-mode") == "periodic";
    let text = values.text("auto-compaction-retention");
    let retention = match text.parse::<i64>() {
        Ok(number) if number >= 0 && is_periodic => number.saturating_mul(3_600_000_000_000),
        Ok(number) if number >= 0 => number,
        _ => go::parse_duration(&text).map_err(|why| refused(format!("error parsing CompactionRetention: {why}")))?,
    };
    match u64::try_from(retention) {
        Ok(0) => Ok(AutoCompaction::Off),
        Ok(nanoseconds) if is_periodic => Ok(AutoCompaction::Periodic(Duration::from_nanos(nanoseconds))),
        Ok(_) => Ok(AutoCompaction::Revision(retention)),
        Err(_negative) => Err(refused(format!("--auto-compaction-retention must not be negative (set to {text})"))),
    }
}

fn log_level(text: &str) -> Result<LogLevel, Error> {
    match text {
        "debug" | "DEBUG" => Ok(LogLevel::Debug),
        "info" | "INFO" | "" => Ok(LogLevel::Info),
        "warn" | "WARN" => Ok(LogLevel::Warn),
        "error" | "ERROR" => Ok(LogLevel::Error),
        "dpanic" | "DPANIC" | "panic" | "PANIC" | "fatal" | "FATAL" => Ok(LogLevel::Fatal),
        other => Err(refused(format!("unrecognized level: {other:?}"))),
    }
}

fn log_format(text: &str) -> Result<LogFormat, Error> {
    match text {
        "json" | "" => Ok(LogFormat::Json),
        "console" => Ok(LogFormat::Console),
        other => Err(refused(format!("unknown log format: {other}, supported values json, console"))),
    }
}

fn log_outputs(text: &str) -> Result<Vec<LogOutput>, Error> {
    let words: BTreeSet<&str> = text.split(',').collect();
    if words.len() > 1 && words.contains("default") {
        return Err(refused("multi logoutput for \"default\" is not supported yet"));
    }
    let output = |word: &str| match word {
        "default" | "stderr" => Ok(LogOutput::Stderr),
        "stdout" => Ok(LogOutput::Stdout),
        "systemd/journal" => Err(refused("--log-outputs: systemd/journal is not supported yet")),
        "" => Err(refused("open sink \"\": open : no such file or directory")),
        path => Ok(LogOutput::File(PathBuf::from(path))),
    };
    words.into_iter().map(output).collect()
}
