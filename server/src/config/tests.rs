//! Runs on: tests.
//!
//! Whole command lines and environments. Each comes with the result that stock etcd 3.7.1 had for it, or with the
//! reason why ours differs.

use super::*;

fn parse(line: &str) -> Result<Config, Error> {
    parse_with(line, &[], "")
}

fn parse_with(line: &str, variables: &[(&str, &str)], knobs_file: &str) -> Result<Config, Error> {
    let arguments: Vec<String> = line.split_whitespace().map(|word| word.replace('~', " ")).collect();
    let variables: Vec<(String, String)> = variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
    Config::parse(&arguments, &variables, &|path| match path {
        "knobs" => Ok(knobs_file.to_owned()),
        _ => Err(std::io::Error::other("no such file")),
    })
}

/// The text of a usage error.
fn usage(line: &str) -> String {
    match parse(line) {
        Err(Error::Usage(fault)) => fault.to_string(),
        other => panic!("{line}: {other:?}"),
    }
}

/// The warnings for a line, each with its field.
fn warnings(line: &str) -> Vec<String> {
    let text = |warning: &Warning| match &warning.field {
        Some((name, value)) => format!("{} {name}={value}", warning.message),
        None => warning.message.clone(),
    };
    parse(line).unwrap().warnings.iter().map(text).collect()
}

#[test]
fn no_arguments_give_etcds_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.name, "default");
    assert_eq!(config.data_dir, PathBuf::from("default.etcd"));
    assert_eq!(config.wal_dir, None);
    assert_eq!(join(&config.listen_client_urls), "http://localhost:2379");
    assert_eq!(join(&config.advertise_client_urls), "http://localhost:2379");
    assert_eq!((config.initial_cluster_token.as_str(), config.joins), ("etcd-cluster", false));
    assert_eq!(config.auto_compaction, AutoCompaction::Off);
    assert_eq!(config.log_outputs, [LogOutput::Stderr]);
    assert_eq!(config.request_timeout(), Duration::from_secs(7));
    assert_eq!(config.knobs, tuning::Knobs::default());
    assert_eq!(config.verify_bootstrap(), Ok(()));
    let told: Vec<&str> = config.warnings.iter().filter_map(|warning| Some(warning.field.as_ref()?.0)).collect();
    assert_eq!(told, ["data-dir", "name"], "only that both are the defaults");
}

#[test]
fn a_flag_that_does_not_parse_is_refused_in_gos_words() {
    let rows = [
        ("--bogus", "flag provided but not defined: -bogus"),
        ("-bogus=1", "flag provided but not defined: -bogus"),
        ("---x", "bad flag syntax: ---x"),
        ("--=x", "bad flag syntax: --=x"),
        ("--heartbeat-interval", "flag needs an argument: -heartbeat-interval"),
        ("--heartbeat-interval=abc", "invalid value \"abc\" for flag -heartbeat-interval: parse error"),
        (
            "--heartbeat-interval=99999999999999999999",
            "invalid value \"99999999999999999999\" for flag -heartbeat-interval: value out of range",
        ),
        ("--pre-vote=maybe", "invalid boolean value \"maybe\" for -pre-vote: parse error"),
        ("--pre-vote=", "invalid boolean value \"\" for -pre-vote: parse error"),
        ("--version=foo", "invalid boolean value \"foo\" for -version: parse error"),
        ("--grpc-keepalive-min-time=5", "invalid value \"5\" for flag -grpc-keepalive-min-time: parse error"),
        ("--max-request-bytes -1", "invalid value \"-1\" for flag -max-request-bytes: parse error"),
        ("--quota-backend-bytes=1e3", "invalid value \"1e3\" for flag -quota-backend-bytes: parse error"),
        (
            "--max-concurrent-streams=4294967296",
            "invalid value \"4294967296\" for flag -max-concurrent-streams: strconv.ParseUint: parsing \"4294967296\": \
             value out of range",
        ),
        (
            "--listen-client-urls localhost:2379",
            "invalid value \"localhost:2379\" for flag -listen-client-urls: URL scheme must be http, https, unix, or \
             unixs: localhost:2379",
        ),
        ("--initial-cluster-state foo", "invalid value \"foo\" for flag -initial-cluster-state: invalid value"),
        ("--v2-deprecation foo", "invalid value \"foo\" for flag -v2-deprecation: invalid value \"foo\""),
        (
            "--feature-gates Foo=true",
            "invalid value \"Foo=true\" for flag -feature-gates: unrecognized feature gate: Foo",
        ),
        ("--experimental-bogus", "flag provided but not defined: -experimental-bogus"),
        (
            "--io-path=floppy",
            "invalid value \"floppy\" for flag -io-path: invalid value \"floppy\" for io-path: expected auto, uring or \
             portable",
        ),
    ];
    for (line, want) in rows {
        assert_eq!(usage(line), want, "{line}");
    }
}

#[test]
fn a_setting_that_cannot_be_is_refused_in_etcds_words() {
    let rows = [
        ("extra", "\"extra\" is not a valid flag"),
        ("--pre-vote false", "\"false\" is not a valid flag"),
        ("-- --name=x", "\"--name=x\" is not a valid flag"),
        ("--heartbeat-interval=0", "--heartbeat-interval must be >0 (set to 0ms)"),
        ("--election-timeout=0", "--election-timeout must be >0 (set to 0ms)"),
        (
            "--heartbeat-interval=300",
            "--election-timeout[1000ms] should be at least as 5 times as --heartbeat-interval[300ms]",
        ),
        ("--election-timeout=60000", "--election-timeout[60000ms] is too long, and should be set less than 50000ms"),
        (
            "--listen-client-urls http://localhost:1",
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        ("--listen-client-urls=", "--advertise-client-urls is required when --listen-client-urls is set explicitly"),
        ("--listen-client-urls http://example.com:2379", "expected IP in URL for binding (http://example.com:2379)"),
        ("--log-format foo", "unknown log format: foo, supported values json, console"),
        ("--log-level foo", "unrecognized level: \"foo\""),
        ("--logger foo", "unknown logger option \"foo\""),
        ("--log-outputs=", "open sink \"\": open : no such file or directory"),
        ("--log-outputs=default,stdout", "multi logoutput for \"default\" is not supported yet"),
        ("--auto-compaction-mode foo", "unknown auto-compaction-mode \"foo\""),
        ("--auto-compaction-retention foo", "error parsing CompactionRetention: time: invalid duration \"foo\""),
        ("--auto-compaction-retention -1", "error parsing CompactionRetention: time: missing unit in duration \"-1\""),
        (
            "--feature-gates LeaseCheckpointPersist=true",
            "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint",
        ),
        ("--discovery-token a", "both --discovery-token and --discovery-endpoints must be set"),
        ("--discovery-token a --discovery-endpoints b,,c", "--discovery-endpoints must not contain empty endpoints"),
        (
            "--discovery-srv a --initial-cluster default=http://localhost:2380",
            "multiple discovery or bootstrap flags are set. Choose one of \"initial-cluster\", \
             \"discovery-endpoints\" or \"discovery-srv\"",
        ),
        (
            "--discovery-fallback proxy",
            "v2 proxy is deprecated, and --discovery-fallback can't be configured as \"proxy\"",
        ),
        (
            "--initial-cluster default=foo",
            "error setting up initial cluster: URL scheme must be http, https, unix, or unixs: foo",
        ),
    ];
    for (line, want) in rows {
        assert_eq!(parse(line).unwrap_err(), refused(want), "{line}");
    }
}

#[test]
fn what_is_not_supported_is_named_all_at_once_and_its_default_is_fine() {
    let rows = [
        ("--auth-token=jwt", "--auth-token: authentication is not supported yet"),
        ("--config-file x", "--config-file: configuration files are not supported yet: use flags or ETCD_ variables"),
    ];
    for (line, want) in rows {
        assert_eq!(parse(line).unwrap_err(), refused(want), "{line}");
    }
    assert!(parse("--cert-file= --client-cert-auth=false --auth-token simple --initial-cluster-state new").is_ok());
}

#[test]
fn tls_is_checked_as_etcd_checks_it() {
    const SECURE: &str = "--listen-client-urls https://1.2.3.4:5 --advertise-client-urls https://a:5";
    let cases = [
        (
            "",
            "TLS key/cert (--cert-file, --key-file) must be provided for client url https://1.2.3.4:5 with HTTPS \
             scheme",
        ),
        ("--cert-file a", "KeyFile and CertFile must both be present[key: , cert: a]"),
        ("--key-file b", "KeyFile and CertFile must both be present[key: b, cert: ]"),
        (
            "--cert-file a --key-file b --client-cert-file c",
            "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: c]",
        ),
        (
            "--cert-file a --key-file b --listen-peer-urls https://1.2.3.4:6",
            "cannot listen on TLS for 1.2.3.4:6: KeyFile and CertFile are not presented",
        ),
        ("--auto-tls --self-signed-cert-validity 0", "selfSignedCertValidity is invalid,it should be greater than 0"),
        ("--tls-min-version TLS1.1", "unexpected TLS version \"TLS1.1\" (must be one of: TLS1.2, TLS1.3)"),
        (
            "--tls-min-version TLS1.3 --tls-max-version TLS1.2",
            "min version (TLS1.3) is greater than max version (TLS1.2)",
        ),
        ("--cipher-suites TLS_NO", "unexpected TLS cipher suite \"TLS_NO\""),
        (
            "--tls-min-version TLS1.3 --cipher-suites TLS_AES_128_GCM_SHA256",
            "cipher suites cannot be configured when only TLS1.3 is enabled",
        ),
        (
            "--cipher-suites TLS_RSA_WITH_RC4_128_SHA",
            "none of the TLS cipher suites [\"TLS_RSA_WITH_RC4_128_SHA\"] is supported",
        ),
    ];
    for (line, want) in cases {
        assert_eq!(parse(&format!("{SECURE} {line}")).unwrap_err(), refused(want), "{line}");
    }
    let metrics = parse("--listen-metrics-urls https://1.2.3.4:7").unwrap_err();
    let want = "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url";
    assert_eq!(metrics, refused(want));
    let suites = "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_RSA_WITH_RC4_128_SHA";
    let config = parse(&format!("{SECURE} --cert-file a --key-file b --cipher-suites {suites}")).unwrap();
    assert_eq!(config.tls.ciphers.suites, [0xc02f], "what is missing is warned of");
    assert!(config.warnings.iter().any(|warning| warning.message.contains("cipher suite")));
    assert!(parse(&format!("{SECURE} --auto-tls")).is_ok());
}

#[test]
fn what_has_no_effect_is_warned_of() {
    let line = "--name a --data-dir d --max-wals=3 --force --v --max-snapshots 5 --pre-vote=true --unsafe-no-fsync \
                --v2-deprecation gone";
    assert_eq!(
        warnings(line),
        [
            "flag is no longer supported - ignoring flag-name=force",
            "flag is no longer supported - ignoring flag-name=v",
            "flag has no effect: log segments are recycled after each checkpoint flag-name=max-wals",
            "flag has no effect: there is no v2 store flag-name=v2-deprecation",
            "flag has no effect: every write is synced before it is acknowledged flag-name=unsafe-no-fsync",
            "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
            "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, \
             ignoring user input.",
        ]
    );
}

#[test]
fn values_reach_the_config() {
    let config = parse(
        "--name=m1 -data-dir /d --wal-dir /w --listen-client-urls http://0.0.0.0:1,http://[::1]:2 \
         --advertise-client-urls http://h:1 --listen-metrics-urls http://127.0.0.1:3 \
         --initial-advertise-peer-urls http://h:4 --initial-cluster-token t --auto-compaction-retention 10 \
         --log-level debug --log-format console --log-outputs stdout,/f --metrics extensive \
         --warning-apply-duration 1s --feature-gates InitialCorruptCheck=true --socket-reuse-port",
    )
    .unwrap();
    assert_eq!((config.name.as_str(), config.data_dir.as_os_str()), ("m1", "/d".as_ref()));
    assert_eq!(config.wal_dir, Some("/w".into()));
    assert_eq!(join(&config.listen_client_urls), "http://0.0.0.0:1,http://[::1]:2");
    assert_eq!(join(&config.listen_metrics_urls), "http://127.0.0.1:3");
    assert_eq!(join(&config.initial_cluster["m1"]), "http://h:4");
    assert_eq!(config.auto_compaction, AutoCompaction::Periodic(Duration::from_secs(36_000)));
    assert_eq!((config.log_level, config.log_format), (LogLevel::Debug, LogFormat::Console));
    assert_eq!(config.log_outputs, [LogOutput::File("/f".into()), LogOutput::Stdout]);
    assert!(config.extensive_metrics && config.knobs.server.warning_apply_ms == 1000);
    assert!(config.socket_reuse_port && config.gates["InitialCorruptCheck"]);
    assert_eq!(config.verify_bootstrap(), Ok(()));
}

#[test]
fn retention_means_hours_revisions_or_a_time() {
    let rows = [
        ("--auto-compaction-retention 0", AutoCompaction::Off),
        ("--auto-compaction-retention 5m", AutoCompaction::Periodic(Duration::from_secs(300))),
        ("--auto-compaction-mode revision --auto-compaction-retention 1000", AutoCompaction::Revision(1000)),
        ("--auto-compaction-mode revision --auto-compaction-retention 0", AutoCompaction::Off),
    ];
    for (line, want) in rows {
        assert_eq!(parse(line).unwrap().auto_compaction, want, "{line}");
    }
    // Stock etcd crashes here.
    assert!(matches!(parse("--auto-compaction-retention -1h"), Err(Error::Refused(_))));
}

#[test]
fn variables_set_flags_unless_the_flag_is_given() {
    let config =
        parse_with("", &[("ETCD_NAME", "e"), ("ETCD_HEARTBEAT_INTERVAL", ""), ("ETCD_FOO", "s3cret")], "").unwrap();
    assert_eq!(config.name, "e");
    let fields = config.warnings.into_iter().filter_map(|warning| warning.field);
    let unknown: Vec<_> = fields.filter(|field| field.0 == "environment-variable").map(|field| field.1).collect();
    assert_eq!(unknown, ["ETCD_HEARTBEAT_INTERVAL", "ETCD_FOO"]);
    assert_eq!(
        parse_with("--name b", &[("ETCD_NAME", "b")], "").unwrap_err(),
        refused(
            "conflicting environment variable is shadowed by corresponding command-line flag (either unset environment \
             variable or disable flag)): ETCD_NAME"
        )
    );
    assert_eq!(
        parse_with("", &[("ETCD_HEARTBEAT_INTERVAL", "x")], "").unwrap_err(),
        refused("invalid value \"x\" for ETCD_HEARTBEAT_INTERVAL: parse error")
    );
    let config = parse_with("", &[("ORLOP_PROFILE", "low-memory"), ("ORLOP_IO_PATH", "portable")], "").unwrap();
    assert_eq!((config.profile, config.knobs.io.path), (Some("low-memory"), tuning::IoPathChoice::Portable));
    assert!(parse_with("--io-path=auto", &[("ORLOP_IO_PATH", "auto")], "").is_err());
    // A Kubernetes service named orlop or etcd creates such variables in every pod.
    assert!(parse_with("--name=a", &[("ORLOP_NAME", "x"), ("ETCD_PORT", "tcp://1.2.3.4:2379")], "").is_ok());
}

#[test]
fn later_settings_of_a_knob_beat_earlier_ones() {
    let file = "store-cache-bytes = 16MiB\nserver-watch-progress-interval-ms = 7s";
    let line = "--profile kubernetes --knobs knobs";
    let knobs = parse_with(line, &[], file).unwrap().knobs;
    assert_eq!(knobs.server.stream_buffer_bytes_max, 8 << 20, "from the profile");
    assert_eq!(knobs.store.cache_bytes, 16 << 20, "from the file");
    let line = "--profile kubernetes --knobs knobs --watch-progress-notify-interval 9s --store-cache-bytes 32MiB";
    let knobs = parse_with(line, &[], file).unwrap().knobs;
    assert_eq!((knobs.server.watch_progress_interval_ms, knobs.store.cache_bytes), (9_000, 32 << 20));
    for (line, file, want) in [
        ("--knobs knobs", "x = 1", "--knobs knobs: line 1: unknown knob \"x\""),
        ("--knobs none", "", "--knobs none: no such file"),
        (
            "--wal-segment-bytes 1MiB",
            "",
            "wal-segment-bytes, wal-group-bytes-max, server-max-request-bytes: a log segment must hold the largest \
             group and the largest request's entry, with its framing",
        ),
    ] {
        assert_eq!(parse_with(line, &[], file).unwrap_err(), refused(want), "{line}");
    }
}

#[test]
fn etcds_special_values_of_knobs_keep_their_meaning() {
    let quota = |line: &str| parse(line).unwrap().knobs.server.quota_backend_bytes;
    assert_eq!(quota("--quota-backend-bytes 0"), 32 << 30);
    assert_eq!(quota("--quota-backend-bytes -1"), u64::MAX);
    assert_eq!(quota("--quota-backend-bytes 8192"), 8192);
    assert_eq!(parse("--compaction-batch-limit -1").unwrap().knobs.store.sweep_entries_per_step, 1000);
    let progress = |line: &str| parse(line).unwrap().knobs.server.watch_progress_interval_ms;
    assert_eq!(progress("--watch-progress-notify-interval 0"), 600_000);
    assert_eq!(progress("--watch-progress-notify-interval 1ms"), 100);
    assert_eq!(progress("--experimental-watch-progress-notify-interval=5s"), 5_000);
    assert_eq!(parse("--max-concurrent-streams 0").unwrap().knobs.server.max_concurrent_streams, u32::MAX);
    let warning = |line: &str| parse(line).unwrap().knobs.server.warning_unary_ms;
    assert_eq!(warning("--warning-unary-request-duration 0"), 300);
    assert_eq!(warning("--warning-unary-request-duration 1ns"), 0, "everything");
    assert_eq!(warning("--warning-unary-request-duration 1001us"), 2);
    assert_eq!(parse("--grpc-keepalive-interval 0").unwrap().knobs.server.keepalive_interval_ms, 0);
    assert_eq!(parse("--grpc-keepalive-timeout 1500us").unwrap().knobs.server.keepalive_timeout_ms, 2);
    let large = parse("--max-request-bytes 33554432").unwrap();
    assert_eq!(large.knobs.server.max_request_bytes, 32 << 20);
    assert!(large.warnings.iter().any(|w| w.field == Some(("knob", "store-segment-bytes".into()))));
}

#[test]
fn the_first_start_needs_a_cluster_of_this_member() {
    let rows = [
        (
            "--name=foo --initial-cluster bar=http://localhost:2380",
            "couldn't find local name \"foo\" in the initial cluster configuration",
        ),
        (
            "--initial-advertise-peer-urls http://localhost:2390",
            "--initial-cluster has default=http://localhost:2380 but missing from \
             --initial-advertise-peer-urls=http://localhost:2390 (resolved urls: \"http://localhost:2390\" != \
             \"http://localhost:2380\")",
        ),
        (
            "--name x --initial-cluster x=http://localhost:2380,x=http://localhost:2381",
            "--initial-cluster has x=http://localhost:2381 but missing from \
             --initial-advertise-peer-urls=http://localhost:2380 (len([\"http://localhost:2380\"]) != \
             len([\"http://localhost:2380\" \"http://localhost:2381\"]))",
        ),
        (
            "--name x --initial-cluster x=http://localhost:2380 --initial-advertise-peer-urls \
             http://localhost:2380,http://localhost:2381",
            "--initial-advertise-peer-urls has http://localhost:2381 but missing from \
             --initial-cluster=x=http://localhost:2380,x=http://localhost:2381",
        ),
        (
            "--name x --initial-cluster x=http://localhost:2380,y=http://localhost:2380",
            "initial cluster x=http://localhost:2380,y=http://localhost:2380 has duplicate url",
        ),
        (
            "--discovery-token a --discovery-endpoints b",
            "--discovery-token: discovery is not supported yet; --discovery-endpoints: discovery is not supported yet",
        ),
        ("--discovery-srv a", "--discovery-srv: discovery is not supported yet"),
    ];
    for (line, want) in rows {
        assert_eq!(parse(line).unwrap().verify_bootstrap(), Err(refused(want)), "{line}");
    }
    let several = parse("--name x --initial-cluster x=http://localhost:2380,y=http://localhost:2390").unwrap();
    assert_eq!(several.verify_bootstrap(), Ok(()));
    assert!(parse("--initial-cluster-state existing").unwrap().joins);
}

/// The advertised URLs of a member on host 192.0.2.7, or on one without a default route, and its initial cluster.
fn advertised(line: &str, has_route: bool) -> (String, String, String) {
    let mut config = parse(line).unwrap();
    let host = || if has_route { Ok([192, 0, 2, 7].into()) } else { Err(std::io::Error::other("no route")) };
    config.advertise(host);
    let (peer, client) = (join(&config.advertise_peer_urls), join(&config.advertise_client_urls));
    (peer, client, cluster_text(&config.initial_cluster))
}

#[test]
fn a_member_that_listens_on_all_addresses_advertises_its_host_by_default() {
    let all = "--name m --listen-peer-urls http://0.0.0.0:5 --listen-client-urls http://0.0.0.0:6 \
               --advertise-client-urls http://localhost:2379";
    let [peer, client] = ["http://192.0.2.7:5", "http://192.0.2.7:6"];
    assert_eq!(advertised(all, true), (peer.into(), client.into(), format!("m={peer}")));
    let defaults = ("http://localhost:2380".into(), "http://localhost:2379".into(), "m=http://localhost:2380".into());
    assert_eq!(advertised(all, false), defaults, "nobody knows better");
    assert_eq!(advertised("--name m --listen-peer-urls http://10.0.0.1:5", true), defaults);
    let given = "--name m --listen-peer-urls http://0.0.0.0:5 --initial-advertise-peer-urls http://127.0.0.1:5";
    assert_eq!(advertised(given, true).0, "http://127.0.0.1:5");
    // As in etcd, a cluster that was given stays, and so does that of the default name.
    let cluster = "--name m --listen-peer-urls http://0.0.0.0:5 --initial-cluster m=http://localhost:2380";
    assert_eq!(advertised(cluster, true), (peer.into(), defaults.1, "m=http://localhost:2380".into()));
    let mut unnamed = parse("--listen-peer-urls http://0.0.0.0:5").unwrap();
    assert!(unnamed.advertise(|| Ok([192, 0, 2, 7].into())).is_some() && unnamed.verify_bootstrap().is_err());
    assert!(parse("").unwrap().advertise(|| unreachable!("nothing is to be known")).is_none());
}

#[test]
fn help_and_version_stop_before_anything_is_checked() {
    assert!(matches!(parse("--heartbeat-interval=0 -h"), Err(Error::Help)));
    assert!(matches!(parse("--help"), Err(Error::Help)));
    assert_eq!(parse("--unsafe-no-fsync=T --version"), Err(Error::Version));
}
