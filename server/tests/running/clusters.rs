//! Members of one cluster, each a process of its own, over real sockets.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use proto::etcdserverpb::{
    MemberAddRequest, MemberAddResponse, MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest,
    MemberRemoveResponse, MoveLeaderRequest, MoveLeaderResponse, PutRequest, PutResponse, RangeRequest, RangeResponse,
    SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
};
use rustix::process::{Pid, Signal, kill_process};
use server::wire::client::Client;
use tempfile::TempDir;

use crate::{
    grpc::Raw,
    insight::block_on,
    member::{deadline, free_addresses, is_over},
    ports::until,
};

/// Three members at most that run, and the ports of each: for clients, for members.
struct Cluster {
    dir: TempDir,
    ports: [[SocketAddr; 2]; 3],
    running: [Option<Child>; 3],
    /// They reach each other by Unix sockets.
    is_local: bool,
}

impl Cluster {
    fn new() -> Self {
        let [a, b, c, d, e, f] = free_addresses();
        let (ports, running) = ([[a, b], [c, d], [e, f]], [const { None }; 3]);
        Self { dir: TempDir::new().unwrap(), ports, running, is_local: false }
    }

    fn data_dir(&self, at: usize) -> PathBuf {
        self.dir.path().join(format!("m{at}"))
    }

    fn log_text(&self, at: usize) -> String {
        fs::read_to_string(self.dir.path().join(format!("m{at}.log"))).unwrap_or_default()
    }

    /// The flags that say who the member is, and who all are.
    fn identity(&self, at: usize) -> Vec<String> {
        let all: Vec<String> = (0..3).map(|of| format!("m{of}={}", self.peer_url(of))).collect();
        vec![
            format!("--name=m{at}"),
            format!("--data-dir={}", self.data_dir(at).display()),
            format!("--initial-cluster={}", all.join(",")),
            format!("--initial-advertise-peer-urls={}", self.peer_url(at)),
        ]
    }

    fn peer_url(&self, at: usize) -> String {
        // The socket is in the directory in which the member runs.
        if self.is_local { format!("unix://m{at}:1") } else { format!("http://{}", self.ports[at][1]) }
    }

    /// Starts a member, with these flags besides.
    fn start(&mut self, at: usize, flags: &[&str]) {
        let client = self.ports[at][0];
        let log = File::create(self.dir.path().join(format!("m{at}.log"))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(self.identity(at))
            .arg(format!("--listen-client-urls=http://{client}"))
            .arg(format!("--advertise-client-urls=http://{client}"))
            .arg(format!("--listen-peer-urls={}", self.peer_url(at)))
            .current_dir(self.dir.path())
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.running[at] = Some(child.unwrap());
    }

    /// Waits until the member serves clients.
    fn wait(&mut self, at: usize) {
        let until = deadline();
        while !self.log_text(at).contains("ready to serve client requests") {
            let ended = self.running[at].as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "it ends before it serves:\n{}", self.log_text(at));
            assert!(!is_over(until), "a member serves:\n{}", self.log_text(at));
            thread::yield_now();
        }
    }

    /// Waits until the member ends, and returns its exit status.
    fn wait_end(&mut self, at: usize) -> Option<i32> {
        self.running[at].take().unwrap().wait().unwrap().code()
    }

    /// Ends a member by `signal`.
    fn end(&mut self, at: usize, signal: Signal) {
        let mut child = self.running[at].take().unwrap();
        kill_process(Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(), signal).unwrap();
        child.wait().unwrap();
    }

    fn start_all(&mut self) {
        (0..3).for_each(|at| self.start(at, &[]));
        (0..3).for_each(|at| self.wait(at));
    }

    /// Puts by this member. While there is no leader, it is tried again.
    async fn put(&self, at: usize, key: &str, value: &str) {
        let request =
            PutRequest { key: key.to_owned().into(), value: value.to_owned().into(), ..PutRequest::default() };
        let _: PutResponse = self.call(at, "/etcdserverpb.KV/Put", &request).await;
    }

    /// Puts so that member `at` knows durably that this is committed: once it has read it, it has more to write.
    async fn put_for_sure(&self, at: usize, key: &str, value: &str) {
        self.put(at, key, value).await;
        assert_eq!(self.get(at, key).await, value);
        self.put(at, "later", "").await;
        assert_eq!(self.get(at, "later").await, "");
    }

    /// The value that a linearizable read by this member finds; empty if there is none.
    async fn get(&self, at: usize, key: &str) -> String {
        let request = RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() };
        let response: RangeResponse = self.call(at, "/etcdserverpb.KV/Range", &request).await;
        let value = response.kvs.first().map(|found| found.value.to_vec()).unwrap_or_default();
        String::from_utf8(value).unwrap()
    }

    async fn call<Q: prost::Message, A: prost::Message + Default>(&self, at: usize, path: &str, request: &Q) -> A {
        let until = deadline();
        loop {
            let answered = match Client::connect(&self.ports[at][0].to_string()).await {
                Ok(mut client) => client.call(path, request).await,
                Err(error) => Err(error),
            };
            match answered {
                Ok(answer) => return answer,
                Err(error) => assert!(!is_over(until), "member {at} answers: {error}"),
            }
        }
    }

    /// Has member `at` lead. All are there.
    async fn lead(&self, at: usize) {
        let until = deadline();
        loop {
            let mut told = Vec::new();
            for of in 0..3 {
                let path = "/etcdserverpb.Maintenance/Status";
                told.push(self.call::<_, StatusResponse>(of, path, &StatusRequest::default()).await);
            }
            let ids: Vec<u64> = told.iter().map(|told| told.header.as_ref().unwrap().member_id).collect();
            if told.iter().all(|told| told.leader == ids[at]) {
                return;
            }
            assert!(!is_over(until), "member {at} leads: {told:?}");
            let Some(leader) = ids.iter().position(|id| *id == told[at].leader) else { continue };
            let mut client = Client::connect(&self.ports[leader][0].to_string()).await.unwrap();
            let request = MoveLeaderRequest { target_id: ids[at] };
            // It may lead no more: that is seen by the next look.
            drop(client.call::<MoveLeaderResponse>("/etcdserverpb.Maintenance/MoveLeader", &request).await);
        }
    }

    /// Ids of the members, as member `at` tells others.
    fn ids(&self, at: usize) -> Vec<u64> {
        self.members(at).iter().map(|member| member["id"].as_u64().unwrap()).collect()
    }

    /// The members, as member `at` tells others.
    fn members(&self, at: usize) -> Vec<serde_json::Value> {
        let mut socket = TcpStream::connect(self.ports[at][1]).unwrap();
        write!(socket, "GET /members HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).unwrap();
        let shown: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        shown.as_array().unwrap().clone()
    }

    /// The id of the member with this peer URL, as member `at` tells others.
    fn id_of(&self, at: usize, url: &str) -> u64 {
        let has_url = |member: &serde_json::Value| member["peerURLs"][0] == url;
        self.members(at).iter().find(|member| has_url(member)).unwrap()["id"].as_u64().unwrap()
    }

    /// Takes a snapshot of member `at`.
    async fn snapshot(&self, at: usize) -> PathBuf {
        let mut raw = Raw::connect_to(self.ports[at][0]).await;
        let mut stream = raw.call_with(&SnapshotRequest {}, "/etcdserverpb.Maintenance/Snapshot").await;
        let mut content = Vec::new();
        while let Some((_, message)) = stream.next().await {
            content.extend_from_slice(&<SnapshotResponse as prost::Message>::decode(message).unwrap().blob);
        }
        let file = self.dir.path().join("snapshot");
        fs::write(&file, content).unwrap();
        file
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.running.iter_mut().flatten() {
            // A process that has ended already is what is wanted.
            drop(child.kill().and_then(|()| child.wait()));
        }
        if thread::panicking() {
            for at in 0..3 {
                let log = self.log_text(at);
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("the end of the log of {at}:\n{}", lines[lines.len().saturating_sub(15)..].join("\n"));
            }
        }
    }
}

#[test]
fn members_on_one_host_reach_each_other_by_unix_sockets() {
    let mut cluster = Cluster::new();
    cluster.is_local = true;
    cluster.start_all();
    block_on(async {
        cluster.put(0, "key", "value").await;
        assert_eq!((cluster.get(1, "key").await, cluster.get(2, "key").await), ("value".into(), "value".into()));
    });
    cluster.end(0, Signal::KILL);
    block_on(async {
        cluster.put(1, "key", "later").await;
        assert_eq!(cluster.get(2, "key").await, "later");
    });
    cluster.start(0, &[]);
    cluster.wait(0);
    block_on(async { assert_eq!(cluster.get(0, "key").await, "later") });
}

#[test]
fn three_members_serve_and_one_that_was_killed_comes_back() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.start_all();
        for at in 0..3 {
            cluster.put(at, &format!("by {at}"), "first").await;
            for reader in 0..3 {
                assert_eq!(cluster.get(reader, &format!("by {at}")).await, "first");
            }
        }
        for at in 0..3 {
            cluster.end(at, Signal::KILL);
            let other = (at + 1) % 3;
            cluster.put(other, "while one is away", &at.to_string()).await;
            cluster.start(at, &["--initial-cluster-state=existing"]);
            cluster.wait(at);
            assert_eq!(cluster.get(at, "while one is away").await, at.to_string());
            cluster.put(at, &format!("by {at}"), "second").await;
            assert_eq!(cluster.get(other, &format!("by {at}")).await, "second");
        }
    });
}

/// Copies a directory with all that is in it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, entry) = (to.join(entry.as_ref().unwrap().file_name()), entry.unwrap());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &path);
        } else {
            fs::copy(entry.path(), path).unwrap();
        }
    }
}

#[test]
fn a_member_that_has_lost_what_it_acknowledged_votes_for_nobody_until_it_has_caught_up() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.start_all();
        cluster.put_for_sure(2, "before", "1").await;
        for is_empty in [false, true] {
            cluster.lead(0).await;
            cluster.end(2, Signal::KILL);
            let copied = cluster.dir.path().join("copy");
            copy(&cluster.data_dir(2), &copied);
            cluster.start(2, &[]);
            cluster.wait(2);
            cluster.put_for_sure(2, "between", "1").await;
            assert_eq!(cluster.get(1, "between").await, "1");
            // Nobody can say without it that this is committed.
            cluster.end(1, Signal::KILL);
            cluster.put_for_sure(2, "acknowledged", &is_empty.to_string()).await;
            cluster.end(2, Signal::KILL);
            fs::remove_dir_all(cluster.data_dir(2)).unwrap();
            if !is_empty {
                fs::rename(&copied, cluster.data_dir(2)).unwrap();
            }
            cluster.start(2, &[&format!("--initial-cluster-state={}", if is_empty { "existing" } else { "new" })]);
            let is_noticed = |log: &str| log.contains("Was the raft log corrupted") || log.contains("may be missing");
            until("what it has lost is missed", || is_noticed(&cluster.log_text(2)));
            cluster.end(0, Signal::KILL);
            cluster.start(1, &[]);
            // Two that may lack what is committed do not elect each other: the third has it. Who knows the other one
            // takes its state, which does not have it, either.
            let has_asked = |log: &str| is_empty || log.contains("all of a state of another member has arrived");
            until("it has asked the other one", || has_asked(&cluster.log_text(2)));
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(!cluster.log_text(1).contains("ready to serve client requests"));
            cluster.start(0, &[]);
            (0..3).for_each(|at| cluster.wait(at));
            assert_eq!(cluster.get(2, "acknowledged").await, is_empty.to_string());
            assert!(cluster.log_text(2).contains("votes as others do"));
        }
    });
}

#[test]
fn a_member_of_the_first_ones_that_never_ran_counts_though_another_one_is_gone() {
    block_on(async {
        let mut cluster = Cluster::new();
        (0..2).for_each(|at| cluster.start(at, &[]));
        (0..2).for_each(|at| cluster.wait(at));
        cluster.put(0, "key", "of two").await;
        cluster.end(1, Signal::KILL);
        cluster.start(2, &["--initial-cluster-state=existing"]);
        cluster.wait(2);
        assert_eq!(cluster.get(2, "key").await, "of two");
        cluster.put(2, "key", "of two others").await;
    });
}

#[test]
fn a_member_without_data_joins_as_who_the_others_say_that_it_is() {
    block_on(async {
        let mut cluster = Cluster::new();
        (0..2).for_each(|at| cluster.start(at, &[]));
        (0..2).for_each(|at| cluster.wait(at));
        cluster.put(0, "key", "from before it came").await;
        let ids = cluster.ids(0);
        // Its token differs, so it cannot know its id by itself.
        cluster.start(2, &["--initial-cluster-state=existing", "--initial-cluster-token=other"]);
        cluster.wait(2);
        assert_eq!(cluster.get(2, "key").await, "from before it came");
        assert_eq!((cluster.ids(2), cluster.ids(0)), (ids.clone(), ids));
        cluster.end(2, Signal::KILL);
        cluster.start(2, &[]);
        cluster.wait(2);
        cluster.end(0, Signal::KILL);
        cluster.put(2, "key", "it counts").await;
        assert_eq!(cluster.get(1, "key").await, "it counts");
    });
}

#[test]
fn a_member_that_is_removed_ends_and_another_one_takes_its_place() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.start_all();
        let before = cluster.ids(0);
        for (at, by) in [(2, 0), (0, 1)] {
            cluster.put(by, "key", &format!("before {at} leaves")).await;
            let url = format!("http://{}", cluster.ports[at][1]);
            let gone = cluster.id_of(by, &url);
            let request = MemberRemoveRequest { id: gone };
            let answer: MemberRemoveResponse = cluster.call(by, "/etcdserverpb.Cluster/MemberRemove", &request).await;
            assert_eq!(answer.members.len(), 2);
            assert_eq!(cluster.wait_end(at), Some(0), "it ends by itself:\n{}", cluster.log_text(at));
            fs::remove_dir_all(cluster.data_dir(at)).unwrap();
            let request = MemberAddRequest { peer_ur_ls: vec![url], is_learner: true };
            let added: MemberAddResponse = cluster.call(by, "/etcdserverpb.Cluster/MemberAdd", &request).await;
            let id = added.member.unwrap().id;
            assert!(!before.contains(&id), "an id never returns");
            cluster.start(at, &["--initial-cluster-state=existing"]);
            cluster.wait(at);
            let request = MemberPromoteRequest { id };
            let _: MemberPromoteResponse = cluster.call(by, "/etcdserverpb.Cluster/MemberPromote", &request).await;
            assert_eq!(cluster.get(at, "key").await, format!("before {at} leaves"));
            assert_eq!(cluster.ids(at), cluster.ids(by));
        }
    });
}

#[test]
fn a_member_that_lost_its_data_is_told_so_and_one_that_does_not_fit_as_well() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.start_all();
        cluster.end(2, Signal::TERM);
        fs::remove_dir_all(cluster.data_dir(2)).unwrap();
        cluster.start(2, &[]);
        assert_eq!(cluster.wait_end(2), Some(1));
        assert!(cluster.log_text(2).contains(" has already been bootstrapped"), "{}", cluster.log_text(2));
        fs::remove_dir_all(cluster.data_dir(2)).unwrap();
        let two = format!("--initial-cluster=m0=http://{},m2=http://{}", cluster.ports[0][1], cluster.ports[2][1]);
        cluster.start(2, &["--initial-cluster-state=existing", &two]);
        assert_eq!(cluster.wait_end(2), Some(1));
        assert!(cluster.log_text(2).contains("RemovedMemberIDs:[]}: member count is unequal"));
    });
}

#[test]
fn one_of_three_goes_on_alone_if_it_is_forced() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.start_all();
        cluster.put_for_sure(0, "key", "of three").await;
        (0..3).for_each(|at| cluster.end(at, Signal::KILL));
        for _ in 0..2 {
            cluster.start(0, &["--force-new-cluster"]);
            cluster.wait(0);
            assert_eq!(cluster.ids(0).len(), 1);
            assert_eq!(cluster.get(0, "key").await, "of three");
            cluster.put(0, "alone", "yes").await;
            cluster.end(0, Signal::KILL);
        }
        cluster.start(0, &[]);
        cluster.wait(0);
        assert_eq!((cluster.get(0, "alone").await, cluster.ids(0).len()), ("yes".to_owned(), 1));
    });
}

#[test]
fn three_restored_members_are_a_cluster_and_one_of_them_can_be_forced_to_be_one() {
    block_on(async {
        let mut cluster = Cluster::new();
        cluster.start_all();
        cluster.put(0, "key", "from the file").await;
        let ids = cluster.ids(0);
        let file = cluster.snapshot(0).await;
        for at in 0..3 {
            cluster.end(at, Signal::TERM);
            fs::remove_dir_all(cluster.data_dir(at)).unwrap();
            let mut restore = Command::new(env!("CARGO_BIN_EXE_orlop"));
            restore.args(["snapshot", "restore"]).arg(&file).args(cluster.identity(at));
            restore.arg("--initial-cluster-token=restored");
            let output = restore.output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        cluster.start_all();
        assert_eq!(cluster.get(2, "key").await, "from the file");
        cluster.put_for_sure(2, "key", "newer").await;
        assert!(cluster.ids(1).len() == 3 && cluster.ids(1) != ids, "it is another cluster");
        (0..3).for_each(|at| cluster.end(at, Signal::KILL));
        cluster.start(2, &["--force-new-cluster"]);
        cluster.wait(2);
        assert_eq!((cluster.get(2, "key").await.as_str(), cluster.ids(2).len()), ("newer", 1));
    });
}

#[test]
fn a_member_that_waits_for_others_serves_them_and_its_metrics_alone() {
    block_on(async {
        let mut cluster = Cluster::new();
        let [metrics] = free_addresses();
        cluster.start(0, &[&format!("--listen-metrics-urls=http://{metrics}")]);
        until("other members are served", || cluster.log_text(0).contains("serving peer traffic"));
        assert!(crate::ports::get(cluster.ports[0][1], "/version").contains("\"etcdserver\""));
        assert!(crate::ports::get(metrics, "/metrics").contains("etcd_server_has_leader 0"));
        assert!(crate::ports::get(metrics, "/health").starts_with("HTTP/1.1 503 "));
        assert!(!cluster.log_text(0).contains("ready to serve client requests"));
        cluster.start(1, &[]);
        cluster.wait(1);
        cluster.wait(0);
        cluster.put(0, "key", "value").await;
    });
}
