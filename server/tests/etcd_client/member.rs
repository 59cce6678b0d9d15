//! A member under test: the binary that `ORLOP` names, as a process of its own on free loopback ports.
//!
//! A member is ready when it answers Status. Tests wait for it in no other way, and never without a bound. Dropping it
//! ends the process. A test that fails shows the end of its log.

use std::{
    env,
    fs::{self, File},
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use etcd_client::{Client, ConnectOptions};
use tempfile::TempDir;

/// Longest wait for anything that must happen: only a failing test waits so long.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// The pause between two looks at a member that starts.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How often to try a start, because a free port may be taken between its choice and its use.
const STARTS_MAX: usize = 5;

const NAME: &str = "tested";

const SIGKILL: i32 = 9;

pub struct Member {
    child: Child,
    log: PathBuf,
    pub client_url: String,
    pub peer_url: String,
}

/// A member without data and a client of it; the directory lasts as long as its handle.
pub async fn fresh() -> (TempDir, Member, Client) {
    let dir = TempDir::new().expect("a directory for the test");
    let member = Member::start(dir.path()).await;
    let client = member.connect().await;
    (dir, member, client)
}

impl Member {
    /// Starts a member on what `dir` holds, and waits until it answers.
    pub async fn start(dir: &Path) -> Self {
        Self::start_with(dir, &[]).await
    }

    /// As `start`, with more on its command line.
    pub async fn start_with(dir: &Path, arguments: &[&str]) -> Self {
        for _ in 0..STARTS_MAX {
            let mut member = Self::spawn(dir, arguments);
            if member.is_answering().await {
                return member;
            }
            let log = fs::read_to_string(&member.log).expect("the member's log");
            assert!(log.contains("in use"), "the member ended before it answered");
        }
        panic!("no free port in {STARTS_MAX} attempts");
    }

    fn spawn(dir: &Path, arguments: &[&str]) -> Self {
        let [client_url, peer_url] = free_urls();
        let log = dir.join("log");
        let mut command = Command::new(env::var_os("ORLOP").expect("ORLOP names the server's binary"));
        for (name, _) in env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"ETCD_")) {
            command.env_remove(name);
        }
        command
            .args(["--name", NAME, "--data-dir"])
            .arg(dir.join("data"))
            .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
            .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
            .args(["--initial-cluster", &format!("{NAME}={peer_url}")])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a file for the member's log"));
        let child = command.spawn().expect("ORLOP names a program");
        Self { child, log, client_url, peer_url }
    }

    /// Waits until the member answers; false if it ended instead.
    async fn is_answering(&mut self) -> bool {
        let waiting = async {
            let mut looks = tokio::time::interval(LOOK_EVERY);
            while self.child.try_wait().expect("the member is our child").is_none() {
                if let Ok(mut client) = Client::connect([&self.client_url], None).await
                    && client.status().await.is_ok()
                {
                    return true;
                }
                looks.tick().await;
            }
            false
        };
        tokio::time::timeout(WAIT_MAX, waiting).await.expect("a member answers or ends")
    }

    /// A client with a connection of its own.
    pub async fn connect(&self) -> Client {
        let options = ConnectOptions::new().with_timeout(WAIT_MAX);
        Client::connect([&self.client_url], Some(options)).await.expect("a member that runs accepts connections")
    }

    /// The most memory that it has had so far.
    pub fn peak_memory_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("the member runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells it");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).expect("the member's log")
    }

    /// Ends the member by SIGKILL, which no program can prepare for.
    pub fn kill(&mut self) {
        self.child.kill().expect("the member is our child");
        let status = self.child.wait().expect("the member is our child");
        assert_eq!(status.signal(), Some(SIGKILL), "the member ended by itself: {status}");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // The process may have ended already; that is just as well.
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("{ended:?}; the end of its log:\n{}", lines[lines.len().saturating_sub(30)..].join("\n"));
        }
    }
}

/// Two addresses that nobody listens on. They are held at the same time, so they differ.
fn free_urls() -> [String; 2] {
    let held = [(); 2].map(|()| TcpListener::bind(("127.0.0.1", 0)).expect("a free port"));
    held.map(|listener| format!("http://{}", listener.local_addr().expect("it is bound")))
}
