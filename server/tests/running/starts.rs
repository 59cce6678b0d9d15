//! Ways in which others start etcd, on free ports: controller-runtime's envtest, etcd's own unit under systemd, a
//! manifest of kubeadm. And how a member ends, and what it says of both.
//!
//! **Source**: controller-runtime v0.22.0 `pkg/internal/testing/controlplane/etcd.go` and `process/`, etcd
//! `contrib/systemd/etcd.service`, kubeadm `app/phases/etcd/local.go`.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr as UnixAddress, UnixDatagram},
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::member::{WAIT_MAX, deadline, free_addresses, is_over};

/// A free port may be taken between its choice and its use.
const STARTS_MAX: usize = 5;

struct Process {
    child: Child,
    log: PathBuf,
    /// Where its clients are served.
    address: SocketAddr,
}

impl Process {
    /// Starts what `prepare` makes of a command without arguments and two free addresses, and waits until clients are
    /// served.
    fn start(dir: &Path, prepare: impl Fn(&mut Command, [SocketAddr; 2])) -> Self {
        for _ in 0..STARTS_MAX {
            let log = dir.join("log");
            let addresses = free_addresses();
            let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
            command.env_clear().current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null());
            prepare(&mut command, addresses);
            let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
            let mut process = Self { child, log, address: addresses[0] };
            if process.becomes_ready() {
                return process;
            }
            let log = fs::read_to_string(&process.log).unwrap();
            assert!(log.contains("in use"), "it ended before it was ready:\n{log}");
        }
        panic!("no free port in {STARTS_MAX} attempts");
    }

    fn becomes_ready(&mut self) -> bool {
        let until = deadline();
        while self.child.try_wait().unwrap().is_none() {
            if fs::read_to_string(&self.log).unwrap().contains("ready to serve client requests") {
                return true;
            }
            assert!(!is_over(until), "a member becomes ready or ends");
            thread::yield_now();
        }
        false
    }

    /// Ends it by SIGTERM, and gives the lines of its log.
    fn end(mut self) -> Vec<serde_json::Value> {
        let id = i32::try_from(self.child.id()).unwrap();
        kill_process(Pid::from_raw(id).unwrap(), Signal::TERM).unwrap();
        assert_eq!(self.child.wait().unwrap().signal(), Some(15), "it ends by the signal, as etcd does");
        let log = fs::read_to_string(&self.log).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|why| panic!("{why}: {line}"))).collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended already is what is wanted.
        drop(self.child.kill().and_then(|()| self.child.wait()));
    }
}

/// Status line and body of a GET.
fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(WAIT_MAX)).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

/// The lines with this message, without what differs between runs.
fn lines<'a>(log: &'a [serde_json::Value], message: &str) -> Vec<&'a serde_json::Value> {
    log.iter().filter(|line| line["msg"] == message).collect()
}

#[test]
fn envtest_starts_it_by_its_own_command_line() {
    let help = Command::new(env!("CARGO_BIN_EXE_orlop")).arg("--help").output().unwrap();
    assert!(help.status.success());
    // Its pattern for a flag that it then passes: `(?m)^\s*--unsafe-no-fsync\b`.
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.lines().any(|line| line.trim_start().starts_with("--unsafe-no-fsync ")), "{help}");
    let dir = TempDir::new().unwrap();
    let process = Process::start(dir.path(), |command, [client, peer]| {
        command
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--data-dir={}", dir.path().join("etcd").display()))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .arg("--unsafe-no-fsync=true");
    });
    let (status, body) = get(process.address, "/health");
    assert_eq!((status.as_str(), body.starts_with("{\"health\":\"true\"")), ("HTTP/1.1 200 OK", true), "{body}");
    let log = process.end();
    let warned = lines(&log, "flag has no effect: every write is synced before it is acknowledged");
    assert_eq!((warned.len(), &warned[0]["flag-name"]), (1, &"unsafe-no-fsync".into()));
}

/// What the daemon hears next.
fn heard(daemon: &UnixDatagram) -> String {
    let mut message = [0; 64];
    let len = daemon.recv(&mut message).unwrap();
    String::from_utf8(message[..len].to_vec()).unwrap()
}

#[test]
fn systemd_hears_when_it_serves_that_it_lives_and_when_it_stops() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    let name = format!("orlop-test-{}", std::process::id());
    let sockets = [
        (UnixDatagram::bind(&path).unwrap(), path.display().to_string()),
        (UnixDatagram::bind_addr(&UnixAddress::from_abstract_name(&name).unwrap()).unwrap(), format!("@{name}")),
    ];
    for (daemon, name) in sockets {
        daemon.set_read_timeout(Some(WAIT_MAX)).unwrap();
        // The unit names no flag. Its defaults may be taken on this host, and so the ports are given.
        let process = Process::start(dir.path(), |command, [client, peer]| {
            command
                .env("ETCD_DATA_DIR", dir.path().join("etcd"))
                .env("ETCD_NAME", "b0c1")
                .env("NOTIFY_SOCKET", &name)
                .env("WATCHDOG_USEC", "200000")
                .env("ETCD_LISTEN_CLIENT_URLS", format!("http://{client}"))
                .env("ETCD_ADVERTISE_CLIENT_URLS", format!("http://{client}"))
                .env("ETCD_LISTEN_PEER_URLS", format!("http://{peer}"));
        });
        let address = process.address;
        assert_eq!(heard(&daemon), "READY=1");
        assert_eq!([heard(&daemon), heard(&daemon)], ["WATCHDOG=1", "WATCHDOG=1"]);
        let log = process.end();
        let last = std::iter::repeat_with(|| heard(&daemon)).find(|message| message != "WATCHDOG=1");
        assert_eq!(last.as_deref(), Some("STOPPING=1"));
        for message in ["notifying init daemon", "successfully notified init daemon"] {
            assert_eq!(lines(&log, message).len(), 1, "{message}");
        }
        assert_eq!(lines(&log, "received signal; shutting down")[0]["signal"], "terminated");
        let ends = [lines(&log, "closing etcd server")[0], lines(&log, "closed etcd server")[0]];
        for end in ends {
            let data_dir = dir.path().join("etcd").display().to_string();
            assert_eq!((&end["name"], &end["data-dir"]), (&"b0c1".into(), &data_dir.into()));
            assert_eq!(end["advertise-peer-urls"], serde_json::json!(["http://localhost:2380"]));
            assert_eq!(end["advertise-client-urls"], serde_json::json!([format!("http://{address}")]));
        }
        assert_eq!(log.last(), Some(ends[1]));
    }
}

/// Starts it as kubeadm does. What TLS needs is left out.
fn start_by_kubeadm(dir: &Path, state: &[&str]) -> (Process, SocketAddr) {
    let [metrics, _] = free_addresses();
    let process = Process::start(dir, |command, [client, peer]| {
        command
            .args(["--name=cp-1", "--snapshot-count=10000", "--feature-gates=InitialCorruptCheck=true"])
            .arg(format!("--data-dir={}", dir.join("etcd").display()))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--initial-advertise-peer-urls=http://{peer}"))
            .arg(format!("--initial-cluster=cp-1=http://{peer}"))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--listen-metrics-urls=http://{metrics}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .args(state);
    });
    (process, metrics)
}

#[test]
fn kubeadm_starts_it_by_its_manifest_and_again_as_a_member_that_has_joined() {
    let dir = TempDir::new().unwrap();
    let (first, metrics) = start_by_kubeadm(dir.path(), &["--watch-progress-notify-interval=5s"]);
    for probe in ["/livez", "/readyz"] {
        assert_eq!(get(metrics, probe).0, "HTTP/1.1 200 OK", "{probe}");
    }
    let (_, shown) = get(metrics, "/metrics");
    assert!(shown.contains("etcd_server_feature_enabled{name=\"InitialCorruptCheck\",stage=\"ALPHA\"} 1"));
    first.end();
    let others = ["--initial-cluster-state=existing", "--experimental-watch-progress-notify-interval=5s"];
    let discovery = ["--discovery-token=t", "--discovery-endpoints=e"];
    let (again, _) = start_by_kubeadm(dir.path(), &others);
    let told = again.end();
    assert_eq!(told.iter().filter(|line| line["level"] == "error").count(), 0);
    let process = Process::start(dir.path(), |command, [client, peer]| {
        command
            .args(["--name=cp-1", "--data-dir=etcd"])
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"))
            .args(discovery);
    });
    let log = process.end();
    let message = "discovery token is ignored since cluster already initialized; valid logs are found";
    assert_eq!(lines(&log, message)[0]["wal-dir"], "etcd/wal");
}

#[test]
fn its_memory_is_locked_or_it_says_why_not() {
    let dir = TempDir::new().unwrap();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max locked memory")).unwrap();
    let is_root =
        rustix::thread::capabilities(None).unwrap().effective.contains(rustix::thread::CapabilitySet::IPC_LOCK);
    if !is_root && limit.split_whitespace().nth(4) != Some("unlimited") {
        let mut command = Command::new(env!("CARGO_BIN_EXE_orlop"));
        let output = command.current_dir(dir.path()).arg("--memory-mlock").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8(output.stderr).unwrap().contains("(RLIMIT_MEMLOCK), and CAP_IPC_LOCK is missing"));
        return;
    }
    let process = Process::start(dir.path(), |command, [client, peer]| {
        command
            .args(["--name=m", "--data-dir=d", "--memory-mlock"])
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls=http://{peer}"));
    });
    let status = fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let kib = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert!(kib("VmLck:") > kib("VmRSS:"), "{status}");
    drop(process.end());
}
