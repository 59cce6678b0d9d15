//! Command lines of the binary: the exit status, and what is said on which stream.
//!
//! Nothing here reaches a server. What the flags of the server mean is tested beside `config`.

use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

fn orlop(dir: &TempDir, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
    command.args(line.split_whitespace()).current_dir(dir.path()).stdin(Stdio::null()).env_clear();
    command.output().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Runs a line; its exit status, stdout and stderr.
fn run(dir: &TempDir, line: &str) -> (i32, String, String) {
    let output = orlop(dir, line);
    (output.status.code().expect("it ends by itself"), text(output.stdout), text(output.stderr))
}

/// Line, exit status, first line on stderr, first line behind it if there is one.
const FAULTS: [(&str, i32, &str, &str); 26] = [
    ("--bogus", 2, "flag provided but not defined: -bogus", "Usage:"),
    ("--name", 2, "flag needs an argument: -name", "Usage:"),
    ("--pre-vote=maybe", 2, "invalid boolean value \"maybe\" for -pre-vote: parse error", "Usage:"),
    ("---x", 2, "bad flag syntax: ---x", "Usage:"),
    ("tune --bogus", 2, "flag provided but not defined: -bogus", "Usage:"),
    ("tune here", 2, "\"here\" is not a valid flag", "Usage:"),
    ("tune --data-dir", 2, "flag needs an argument: -data-dir", "Usage:"),
    ("tune --data-dir=", 2, "--data-dir is empty", "Usage:"),
    ("top fast", 2, "\"fast\" is not a valid flag", "Usage:"),
    ("top --endpoint", 2, "flag needs an argument: -endpoint", "Usage:"),
    (
        "top --rows x",
        2,
        "invalid value \"x\" for flag -rows: strconv.ParseUint: parsing \"x\": invalid syntax",
        "Usage:",
    ),
    ("top --bogus --help", 2, "flag provided but not defined: -bogus", "Usage:"),
    ("top --once --endpoint=no/address", 1, "orlop top: ", ""),
    ("inspect", 2, "inspect requires exactly one data directory", "Usage:"),
    ("verify a b", 2, "verify requires exactly one data directory", "Usage:"),
    ("inspect --bogus d", 2, "flag provided but not defined: -bogus", "Usage:"),
    ("inspect nothing", 1, "orlop inspect: lock of nothing failed: No such file or directory (os error 2)", ""),
    ("verify nothing", 1, "orlop verify: lock of nothing failed: No such file or directory (os error 2)", ""),
    ("snapshot", 128, "Error: snapshot requires a command", "Usage:"),
    ("snapshot take f", 128, "Error: unknown command \"take\" for \"snapshot\"", "Usage:"),
    ("snapshot status", 128, "Error: snapshot status requires exactly one argument", ""),
    ("snapshot restore a b", 128, "Error: snapshot restore requires exactly one argument", ""),
    ("snapshot status --bogus=x f", 128, "Error: flag provided but not defined: -bogus", "Usage:"),
    ("snapshot status f -w protobuf", 4, "Error: unsupported output format", ""),
    ("snapshot restore f --bump-revision 3", 128, "Error: --mark-compacted required if --revision-bump > 0", ""),
    (
        "snapshot restore f --initial-advertise-peer-urls x",
        1,
        "Error: invalid value \"x\" for flag -initial-advertise-peer-urls: URL scheme must be http, https, unix, or \
         unixs: x",
        "",
    ),
];

#[test]
fn a_faulty_command_line_has_its_status_and_says_why() {
    let dir = TempDir::new().unwrap();
    for (line, status, first, second) in FAULTS {
        let (code, out, err) = run(&dir, line);
        assert_eq!((code, out.as_str()), (status, ""), "{line}: {err}");
        let mut lines = err.lines();
        assert!(lines.next().is_some_and(|line| line.starts_with(first)), "{line}: {err}");
        assert_eq!(lines.next().unwrap_or(""), second, "{line}: {err}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn what_the_server_refuses_is_a_line_of_its_log() {
    let dir = TempDir::new().unwrap();
    for (line, error) in [
        ("extra", r#""\"extra\" is not a valid flag""#),
        ("top-secret", r#""\"top-secret\" is not a valid flag""#),
        ("--heartbeat-interval=0", r#""--heartbeat-interval must be >0 (set to 0ms)""#),
        ("--log-outputs=none/log", r#""log outputs: No such file or directory (os error 2)""#),
    ] {
        let (code, out, err) = run(&dir, line);
        assert_eq!((code, out.as_str(), err.lines().count()), (1, "", 1), "{line}: {err}");
        assert!(err.starts_with(r#"{"level":"error","ts":"20"#), "{line}: {err}");
        let end = format!(r#""msg":"failed to verify flags","error":{error}}}"#);
        assert!(err.trim_end().ends_with(&end), "{line}: {err}");
    }
}

#[test]
fn help_is_printed_for_each_command_from_its_table() {
    let dir = TempDir::new().unwrap();
    for (line, first, contained) in [
        ("--help", "  orlop [flags]", "--heartbeat-interval '100'"),
        ("--name x -h", "  orlop [flags]", "  orlop snapshot restore FILE [flags]"),
        ("tune --help", "  orlop tune [flags]", "--data-dir '.'"),
        ("top -help", "  orlop top [flags]", "--endpoint '127.0.0.1:2379'"),
        ("inspect -h", "  orlop inspect [flags] DATA-DIR", "--wal-dir ''"),
        ("verify --h", "  orlop verify [flags] DATA-DIR", "--wal-dir ''"),
        ("snapshot --help", "  orlop snapshot status FILE [flags]", "--skip-hash-check 'false'"),
        ("snapshot restore f --help", "  orlop snapshot status FILE [flags]", "--initial-cluster '"),
    ] {
        let (code, out, err) = run(&dir, line);
        assert_eq!((code, err.as_str()), (0, ""), "{line}");
        assert!(out.starts_with(&format!("Usage:\n\n{first}\n")), "{line}: {out}");
        assert!(out.contains(contained), "{line}: {out}");
    }
}

#[test]
fn the_version_is_etcds_and_ours() {
    let dir = TempDir::new().unwrap();
    let (code, out, err) = run(&dir, "--version");
    assert_eq!((code, err.as_str()), (0, ""));
    let arch = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let go = format!("Go OS/Arch: linux/{arch}");
    let starts = ["etcd Version: 3.", "Git SHA: ", "Go Version: go", &go, "Orlop Version: "];
    assert_eq!(out.lines().count(), starts.len());
    assert!(out.lines().zip(starts).all(|(line, start)| line.starts_with(start)), "{out}");
    assert!(out.lines().all(|line| line.split_once(": ").is_some_and(|(_, value)| !value.is_empty())), "{out}");
}
