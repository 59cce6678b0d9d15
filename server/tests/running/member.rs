//! A member under test: the server's binary as a process of its own, on free loopback ports and a directory of its own.
//!
//! It is ready when it says so in its log; nobody waits in any other way, and never without a bound. Dropping it ends
//! the process; a test that fails shows the end of its log.

use std::{
    env,
    fs::{self, File},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longest wait for anything that must happen: only a failing test waits so long.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(60);

/// A free port may be taken between its choice and its use.
const STARTS_MAX: usize = 5;

pub(crate) struct Member {
    child: Child,
    log: PathBuf,
    pub(crate) address: SocketAddr,
    pub(crate) peer_address: SocketAddr,
    flags: Vec<String>,
    dir: TempDir,
}

impl Member {
    /// A member without data, with these flags besides.
    pub(crate) fn start(flags: &[&str]) -> Self {
        for _ in 0..STARTS_MAX {
            let mut member = Self::spawn(flags);
            if member.becomes_ready() {
                return member;
            }
            assert!(member.log_text().contains("in use"), "the member ended before it was ready");
        }
        panic!("no free port in {STARTS_MAX} attempts");
    }

    fn spawn(flags: &[&str]) -> Self {
        let (dir, flags) = (TempDir::new().unwrap(), flags.iter().map(|flag| (*flag).to_owned()).collect());
        Self::spawn_in(dir, flags, free_addresses())
    }

    fn spawn_in(dir: TempDir, flags: Vec<String>, [address, peer]: [SocketAddr; 2]) -> Self {
        let log = dir.path().join("log");
        let (client_url, peer_url) = (format!("http://{address}"), format!("http://{peer}"));
        let child = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(["--name", "m", "--data-dir"])
            .arg(dir.path().join("data"))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("m={peer_url}")])
            // What a whole run of these tests is to be made with, see `.ci/test`.
            .args(env::var("ORLOP_FLAGS").unwrap_or_default().split_whitespace())
            .args(&flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log, address, peer_address: peer, flags, dir }
    }

    /// The data directory.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Stops the member, lets `meanwhile` have its data directory, and starts it again.
    pub(crate) fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.signal(Signal::TERM);
        self.child.wait().unwrap();
        meanwhile(&self.data_dir());
        let (dir, flags) = (std::mem::replace(&mut self.dir, TempDir::new().unwrap()), self.flags.clone());
        *self = Self::spawn_in(dir, flags, [self.address, self.peer_address]);
        assert!(self.becomes_ready(), "it starts again");
    }

    /// Whether the process still runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    fn becomes_ready(&mut self) -> bool {
        let until = deadline();
        while self.child.try_wait().unwrap().is_none() {
            if self.log_text().contains("ready to serve client requests") {
                return true;
            }
            assert!(!is_over(until), "a member becomes ready or ends");
            thread::yield_now();
        }
        false
    }

    /// The member's process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the member.
    pub(crate) fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    pub(crate) fn log_text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // A process that has ended already is what is wanted.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if thread::panicking() {
            let log = self.log_text();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{ended:?}; the end of its log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// When patience ends.
#[expect(clippy::disallowed_methods, reason = "a test bounds what it polls")]
pub(crate) fn deadline() -> Instant {
    Instant::now() + WAIT_MAX
}

#[expect(clippy::disallowed_methods, reason = "a test bounds what it polls")]
pub(crate) fn is_over(until: Instant) -> bool {
    Instant::now() >= until
}

/// Addresses that nobody listens on, held together so that they differ.
pub(crate) fn free_addresses<const COUNT: usize>() -> [SocketAddr; COUNT] {
    let held = [(); COUNT].map(|()| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    held.map(|listener| listener.local_addr().unwrap())
}
