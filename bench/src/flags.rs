//! The command line, checked and turned into a `Plan`.
//!
//! Names and defaults follow etcd's `tools/benchmark` where it has the same flag. Every combination that cannot mean
//! anything is refused here with the flag's name, so that nothing later has to ask.

use std::{net::ToSocketAddrs, sync::Arc, time::Duration};

use clap::{Args, Parser, Subcommand};
use rustls::ClientConfig;
use trust::Trust;

use crate::{
    client::Endpoint,
    clock,
    error::Error,
    load::Plan,
    tls::{self, Secure},
    workload::{Keys, Kind, Reading, STAMP_BYTES, Target, Workload, prefix_end},
};

const CONNS_MAX: usize = 60_000;
const CLIENTS_MAX: usize = 10_000_000;
const THREADS_MAX: usize = 64;
const RATE_MAX: u64 = 100_000_000;
const AUTHORITY_BYTES_MAX: usize = 255;
const VALUE_BYTES_MAX: usize = 64 << 20;
const TOTAL_DEFAULT: u64 = 10_000;

/// How an endpoint with TLS begins.
const HTTPS: &str = "https://";

/// Load generator for servers of the etcd API.
///
/// Without --rate, each client sends its next request when the last was answered (closed loop). With --rate, requests
/// are due at fixed times whatever the server does, and latency is measured from then (open loop).
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Flags {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Servers, separated by commas; connections are spread over them.
    #[arg(long, global = true, default_value = "127.0.0.1:2379", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// TCP connections.
    #[arg(long, global = true, default_value_t = 1)]
    conns: usize,
    /// Clients of a closed loop, spread over the connections [default: as many as connections].
    #[arg(long, global = true)]
    clients: Option<usize>,
    /// Requests of the run [default: 10000, or without bound if --duration is given; list: 10 listings; watch: 1000
    /// puts].
    #[arg(long, global = true)]
    total: Option<u64>,
    /// Length of the run: 60, 60s, 500ms, 5m, 1h.
    #[arg(long, global = true, value_parser = parse_duration)]
    duration: Option<Duration>,
    /// Requests a second for an open loop; 0 for a closed loop.
    #[arg(long, global = true, default_value_t = 0)]
    rate: u64,
    /// Threads of load; connections are spread over them.
    #[arg(long, global = true, default_value_t = 1)]
    threads: usize,
    /// How long a reply may take before it counts as an error.
    #[arg(long, global = true, default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
    /// Requests after which a connection is replaced, with a whole handshake; 0: never.
    #[arg(long, global = true, default_value_t = 0)]
    calls_per_conn: u32,
    /// Makes keys and values repeatable.
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
    /// Print the report as one JSON object.
    #[arg(long, global = true)]
    json: bool,
    /// Certificates that sign those of servers, for endpoints with https:// [default: those that the host trusts].
    #[arg(long, global = true)]
    cacert: Option<String>,
    /// Certificate to show to servers.
    #[arg(long, global = true)]
    cert: Option<String>,
    /// Its key.
    #[arg(id = "tls_key", long = "key", global = true)]
    tls_key: Option<String>,
    /// Take any certificate of a server.
    #[arg(long, global = true)]
    insecure_skip_tls_verify: bool,
}

#[derive(Debug, Args)]
struct KeyFlags {
    /// Bytes of a key: a decimal number with leading zeros.
    #[arg(long, default_value_t = 8)]
    key_size: usize,
    /// Number of different keys.
    #[arg(long, default_value_t = 1)]
    key_space_size: u64,
    /// Take the keys in order, not at random.
    #[arg(long)]
    sequential_keys: bool,
}

#[derive(Debug, Args)]
struct ValueFlags {
    /// Bytes of a value.
    #[arg(long, default_value_t = 8)]
    val_size: usize,
}

#[derive(Debug, Args)]
struct ReadFlags {
    /// At most so many keys in a reply; 0 for all.
    #[arg(long, default_value_t = 0)]
    limit: i64,
    /// Only count.
    #[arg(long)]
    count_only: bool,
    /// Leave values out.
    #[arg(long)]
    keys_only: bool,
    /// l: linearizable, s: serializable.
    #[arg(long, default_value = "l", value_parser = ["l", "s"])]
    consistency: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts.
    Put {
        #[command(flatten)]
        keys: KeyFlags,
        #[command(flatten)]
        values: ValueFlags,
    },
    /// Transactions of puts.
    Txn {
        #[command(flatten)]
        keys: KeyFlags,
        #[command(flatten)]
        values: ValueFlags,
        /// Puts in each transaction, of consecutive keys.
        #[arg(long, default_value_t = 1)]
        txn_ops: usize,
    },
    /// Ranges: one and the same, or single keys of the key space.
    Range {
        /// Key, or first key; without it, keys of the key space as put writes them.
        first: Option<String>,
        /// End of the range, exclusive.
        end: Option<String>,
        /// KEY is a prefix.
        #[arg(long)]
        prefix: bool,
        #[command(flatten)]
        keys: KeyFlags,
        #[command(flatten)]
        read: ReadFlags,
    },
    /// Reads and puts of single keys.
    Mixed {
        #[command(flatten)]
        keys: KeyFlags,
        #[command(flatten)]
        values: ValueFlags,
        #[command(flatten)]
        read: ReadFlags,
        /// Reads for each put.
        #[arg(long, default_value_t = 1.0)]
        rw_ratio: f64,
    },
    /// Whole listings of a prefix, page by page at one revision.
    List {
        /// Prefix; without it, all keys.
        prefix: Option<String>,
        /// Keys in a page.
        #[arg(long, default_value_t = 500)]
        limit: i64,
        /// l: linearizable, s: serializable.
        #[arg(long, default_value = "l", value_parser = ["l", "s"])]
        consistency: String,
    },
    /// Keepalives, one lease and one stream for each client.
    Lease {
        /// TTL of the leases in seconds.
        #[arg(long, default_value_t = 60)]
        ttl: i64,
        /// A stream for each keepalive, as clientv3's KeepAliveOnce.
        #[arg(long)]
        once: bool,
    },
    /// Puts under watch: latency from when a put was due to each watcher's event.
    Watch {
        /// Watch streams, spread over the connections.
        #[arg(long, default_value_t = 10)]
        streams: usize,
        /// Watchers on each stream.
        #[arg(long, default_value_t = 100)]
        watchers_per_stream: usize,
        /// Number of different keys, watched and put in turn.
        #[arg(long, default_value_t = 1)]
        watched_key_total: u64,
        /// Puts a second; 0 for a closed loop [default: --rate, or 100].
        #[arg(long)]
        put_rate: Option<u64>,
        /// Ask for the previous key-value pair.
        #[arg(long)]
        prev_kv: bool,
        /// Bytes of a key.
        #[arg(long, default_value_t = 32)]
        key_size: usize,
        /// Bytes of a value, 8 of which say when the put was due.
        #[arg(long, default_value_t = 32)]
        val_size: usize,
    },
}

impl Flags {
    pub(crate) fn is_json(&self) -> bool {
        self.common.json
    }

    pub(crate) fn command_name(&self) -> &'static str {
        match self.command {
            Command::Put { .. } => "put",
            Command::Txn { .. } => "txn",
            Command::Range { .. } => "range",
            Command::Mixed { .. } => "mixed",
            Command::List { .. } => "list",
            Command::Lease { .. } => "lease",
            Command::Watch { .. } => "watch",
        }
    }

    /// **Errors**: a flag that cannot be obeyed, named.
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let common = &self.common;
        let workload = self.workload()?;
        let clients = common.clients.unwrap_or(common.conns);
        bounded("conns", common.conns, 1, CONNS_MAX)?;
        bounded("clients", clients, common.conns, CLIENTS_MAX)?;
        bounded("threads", common.threads, 1, THREADS_MAX.min(common.conns))?;
        let is_watch = matches!(workload.kind, Kind::Watch { .. });
        if is_watch && common.threads > 1 {
            return Err(refused("threads", "a watch is measured by one thread"));
        }
        let has_streams = matches!(workload.kind, Kind::Watch { .. } | Kind::Lease { .. });
        if has_streams && common.calls_per_conn > 0 {
            return Err(refused("calls-per-conn", "watchers and leases keep their streams"));
        }
        let rate = match self.command {
            Command::Watch { put_rate, .. } => put_rate.unwrap_or(if common.rate == 0 { 100 } else { common.rate }),
            _ => common.rate,
        };
        bounded("rate", rate, 0, RATE_MAX)?;
        if common.duration.is_some_and(|duration| duration.is_zero()) {
            return Err(refused("duration", "must be longer than nothing"));
        }
        if common.timeout.is_zero() {
            return Err(refused("timeout", "must be longer than nothing"));
        }
        let total = common.total.unwrap_or(match (&common.duration, &workload.kind) {
            (Some(_), _) => u64::MAX,
            (None, Kind::List { .. }) => 10,
            (None, Kind::Watch { .. }) => 1_000,
            (None, _) => TOTAL_DEFAULT,
        });
        bounded("total", total, 1, u64::MAX)?;
        Ok(Plan {
            endpoints: self.endpoints()?,
            conns: common.conns,
            clients,
            threads: common.threads,
            total,
            duration_ns: common.duration.map(clock::duration_ns),
            rate,
            timeout_ns: clock::duration_ns(common.timeout),
            calls_per_conn: if common.calls_per_conn == 0 { u32::MAX } else { common.calls_per_conn },
            workload,
        })
    }

    fn endpoints(&self) -> Result<Vec<Endpoint>, Error> {
        let Common { endpoints, cacert, cert, tls_key, insecure_skip_tls_verify, .. } = &self.common;
        let (cacert, cert, key) = (cacert.clone(), cert.clone(), tls_key.clone());
        let trust = Trust { cacert, cert, key, skips_verify: *insecure_skip_tls_verify };
        let is_secure = endpoints.iter().any(|text| text.trim().starts_with(HTTPS));
        let config = if is_secure { Some(tls::config(&trust)?) } else { None };
        endpoints.iter().map(|text| endpoint(text.trim(), config.as_ref())).collect()
    }

    fn workload(&self) -> Result<Workload, Error> {
        let no_keys = KeyFlags { key_size: 1, key_space_size: 1, sequential_keys: false };
        let (kind, keys, value_bytes) = match &self.command {
            Command::Put { keys, values } => (Kind::Put, keys.keys()?, values.val_size),
            Command::Txn { keys, values, txn_ops } => {
                bounded("txn-ops", *txn_ops, 1, 1 << 20)?;
                let keys = keys.keys()?;
                if usize::try_from(keys.space()).is_ok_and(|space| space < *txn_ops) {
                    return Err(refused(
                        "txn-ops",
                        "a transaction may put a key once: needs as large a --key-space-size",
                    ));
                }
                (Kind::Txn { puts: *txn_ops }, keys, values.val_size)
            }
            Command::Range { first, end, prefix, keys, read } => {
                let target = target(first.as_deref(), end.as_deref(), *prefix)?;
                (Kind::Range(read.reading(target)?), keys.keys()?, 0)
            }
            Command::Mixed { keys, values, read, rw_ratio } => {
                if !rw_ratio.is_finite() || *rw_ratio < 0.0 {
                    return Err(refused("rw-ratio", "must be 0 or more"));
                }
                let kind = Kind::Mixed { reading: read.reading(None)?, reads_per_write: *rw_ratio };
                (kind, keys.keys()?, values.val_size)
            }
            Command::List { prefix, limit, consistency } => {
                bounded("limit", *limit, 1, i64::MAX)?;
                let prefix = prefix.clone().unwrap_or_default().into_bytes();
                let kind = Kind::List { prefix, page_keys: *limit, is_serializable: consistency == "s" };
                (kind, no_keys.keys()?, 0)
            }
            Command::Lease { ttl, once } => {
                bounded("ttl", *ttl, 1, 9_000_000_000)?;
                (Kind::Lease { ttl_s: *ttl, is_once: *once }, no_keys.keys()?, 0)
            }
            Command::Watch { .. } => self.watch()?,
        };
        bounded("val-size", value_bytes, 0, VALUE_BYTES_MAX)?;
        Ok(Workload { kind, keys, value_bytes, seed: self.common.seed })
    }

    fn watch(&self) -> Result<(Kind, Keys, usize), Error> {
        let Command::Watch { streams, watchers_per_stream, watched_key_total, prev_kv, key_size, val_size, .. } =
            &self.command
        else {
            unreachable!("asked for a watch only");
        };
        bounded("streams", *streams, 1, 1_000_000)?;
        bounded("watchers-per-stream", *watchers_per_stream, 1, 1_000_000)?;
        bounded("val-size", *val_size, STAMP_BYTES, VALUE_BYTES_MAX)?;
        let keys = Keys::new(*key_size, *watched_key_total, true)?;
        let kind = Kind::Watch {
            streams: *streams,
            watchers_per_stream: *watchers_per_stream,
            keys: *watched_key_total,
            wants_prev_kv: *prev_kv,
        };
        Ok((kind, keys, *val_size))
    }
}

impl KeyFlags {
    fn keys(&self) -> Result<Keys, Error> {
        bounded("key-size", self.key_size, 1, 1 << 20)?;
        Keys::new(self.key_size, self.key_space_size, self.sequential_keys)
    }
}

impl ReadFlags {
    fn reading(&self, target: Option<Target>) -> Result<Reading, Error> {
        bounded("limit", self.limit, 0, i64::MAX)?;
        Ok(Reading {
            target,
            limit: self.limit,
            is_count_only: self.count_only,
            is_keys_only: self.keys_only,
            is_serializable: self.consistency == "s",
        })
    }
}

fn target(first: Option<&str>, end: Option<&str>, is_prefix: bool) -> Result<Option<Target>, Error> {
    let Some(first) = first else {
        return if is_prefix { Err(refused("prefix", "needs a key")) } else { Ok(None) };
    };
    let key = first.as_bytes().to_vec();
    match (end, is_prefix) {
        (Some(_), true) => Err(refused("prefix", "excludes an end of the range")),
        (Some(end), false) => Ok(Some(Target { key, range_end: end.as_bytes().to_vec() })),
        // All keys begin with the empty prefix, but a request with an empty key is refused by the server.
        (None, true) if key.is_empty() => Ok(Some(Target { key: vec![0], range_end: vec![0] })),
        (None, true) => {
            let range_end = prefix_end(&key);
            Ok(Some(Target { key, range_end }))
        }
        (None, false) => Ok(Some(Target { key, range_end: Vec::new() })),
    }
}

fn endpoint(text: &str, config: Option<&Arc<ClientConfig>>) -> Result<Endpoint, Error> {
    let (config, text) = match text.strip_prefix(HTTPS) {
        Some(rest) => (config, rest),
        None => (None, text.strip_prefix("http://").unwrap_or(text)),
    };
    let authority = text.trim_end_matches('/');
    if authority.is_empty() || authority.len() > AUTHORITY_BYTES_MAX {
        return Err(refused("endpoints", "expected HOST:PORT"));
    }
    let mut addresses =
        authority.to_socket_addrs().map_err(|error| refused("endpoints", &format!("{authority}: {error}")))?;
    let address = addresses.next().ok_or_else(|| refused("endpoints", &format!("{authority} has no address")))?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _port)| host);
    let secure = config.map(|config| Secure::new(config, host)).transpose()?;
    Ok(Endpoint { authority: authority.to_owned(), address, secure })
}

/// A number of seconds, or one with a unit.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let unit_at = text.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let unit_s = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unknown unit {unit:?}: expected ms, s, m or h")),
    };
    let number: f64 = number.parse().map_err(|error| format!("{number:?}: {error}"))?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|error| error.to_string())
}

fn bounded<T: PartialOrd + std::fmt::Display>(flag: &'static str, value: T, min: T, max: T) -> Result<(), Error> {
    if value < min || value > max {
        return Err(refused(flag, &format!("{value} is not within {min} to {max}")));
    }
    Ok(())
}

fn refused(flag: &'static str, reason: &str) -> Error {
    Error::Flag { flag, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(line: &str) -> Result<Plan, String> {
        let flags = Flags::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        flags.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn clients_default_to_connections() {
        let found = plan("bench put --conns 100 --rate 10000").unwrap();
        assert_eq!((found.conns, found.clients, found.rate, found.total), (100, 100, 10_000, 10_000));
        assert!(plan("bench put --conns 100 --clients 10").unwrap_err().contains("--clients"));
    }

    #[test]
    fn duration_lifts_the_default_total() {
        let found = plan("bench --duration 1.5m put").unwrap();
        assert_eq!((found.total, found.duration_ns), (u64::MAX, Some(90_000_000_000)));
        assert_eq!(plan("bench put --duration 10s --total 7").unwrap().total, 7);
        assert!(plan("bench put --duration 10x").is_err());
    }

    #[test]
    fn what_cannot_be_obeyed_is_refused_by_name() {
        for (line, flag) in [
            ("bench put --endpoints https://127.0.0.1:2379 --cacert no-such-file", "--cacert"),
            ("bench put --endpoints https://127.0.0.1:2379 --key k.pem", "--cert"),
            ("bench put --endpoints https://127.0.0.1:2379 --cert c.pem", "--key"),
            ("bench put --endpoints https://127.0.0.1", "--endpoints"),
            ("bench put --key-size 2 --key-space-size 101", "--key-space-size"),
            ("bench txn --txn-ops 2", "--txn-ops"),
            ("bench watch --val-size 7", "--val-size"),
            ("bench watch --threads 2 --conns 2", "--threads"),
            ("bench range --prefix", "--prefix"),
            ("bench lease --calls-per-conn 1", "--calls-per-conn"),
            ("bench put --user root:x", "--user"),
        ] {
            let message = plan(line).unwrap_err();
            assert!(message.contains(flag), "{line}: {message}");
        }
    }

    #[test]
    fn endpoints_are_read_with_and_without_scheme() {
        let found = plan("bench put --endpoints http://127.0.0.1:1,127.0.0.1:2/").unwrap();
        let authorities: Vec<_> = found.endpoints.iter().map(|endpoint| endpoint.authority.as_str()).collect();
        assert_eq!(authorities, ["127.0.0.1:1", "127.0.0.1:2"]);
        assert!(found.endpoints.iter().all(|endpoint| endpoint.secure.is_none()));
        let found =
            plan("bench put --insecure-skip-tls-verify --endpoints https://[::1]:1,https://localhost:2,localhost:3");
        let is_secure = |found: Plan| found.endpoints.iter().map(|e| e.secure.is_some()).collect::<Vec<_>>();
        assert_eq!(is_secure(found.unwrap()), [true, true, false]);
    }
}
