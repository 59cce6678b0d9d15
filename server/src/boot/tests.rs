//! Runs on: tests.
//!
//! Who a member without data becomes, among others that are made up. The errors are those of stock etcd 3.7.1 with the
//! same flags.

use std::{cell::RefCell, collections::BTreeMap, io, net::IpAddr, time::Duration};

use consensus::{Identity, Member, peer::http1::Headers};

use super::{
    bootstrap::{Bootstrap, Error},
    join::join,
    options,
    ports::Ports,
};
use crate::{
    api::others::{Answered, Asking, Awaited, Others},
    clock::Clock,
    config::Config,
    peer::{
        ask::Network,
        resolve::{Lookup, Resolver},
    },
};

/// A cluster of members a and b, to which c was added. Member a does not answer.
const MEMBERS: &str = r#"[{"id":11,"peerURLs":["http://a:1"],"name":"a","clientURLs":["http://a:2"]},
    {"id":9,"peerURLs":["http://c:1"]},{"id":10,"peerURLs":["http://b:1"],"name":"b","clientURLs":["http://b:2"]}]"#;
const ALL: &str = "a=http://a:1,b=http://b:1,c=http://c:1";

/// Members that answer by URL with path: a header with the cluster's id, and a body. Whoever is not there refuses.
#[derive(Default)]
struct Told {
    answers: BTreeMap<&'static str, (&'static str, &'static str)>,
    asked: RefCell<Vec<String>>,
}

impl Told {
    fn new(members: &'static str, version: &'static str) -> Self {
        let answers = [("http://b:1/members", ("c1", members)), ("http://b:1/version", ("", version))];
        Self { answers: answers.into(), ..Self::default() }
    }
}

impl Others for Told {
    fn ask<'a>(&'a self, url: &'a str, asking: &'a Asking) -> Awaited<'a> {
        assert_eq!((asking.method, asking.body.len()), ("GET", 0));
        let path = format!("{url}{}", asking.path);
        let answer = self.answers.get(path.as_str()).map(|(id, body)| Answered {
            status: 200,
            headers: Headers::new(vec![("x-etcd-cluster-id".to_owned(), (*id).to_owned())]),
            body: body.as_bytes().into(),
        });
        self.asked.borrow_mut().push(path);
        Box::pin(async move { answer.ok_or_else(|| "connection refused".to_owned()) })
    }
}

/// No name is known but `c.example`. What is not known takes long.
struct Names(Clock);

impl Lookup for Names {
    async fn lookup(&self, host: &str) -> io::Result<IpAddr> {
        self.0.advance(Duration::from_secs(60));
        if host == "c.example" { Ok([192, 0, 2, 3].into()) } else { Err(io::ErrorKind::NotFound.into()) }
    }
}

fn config(line: &str) -> Config {
    let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    Config::parse(&arguments, &[], &|_| Err(io::Error::other("no file"))).unwrap()
}

async fn begun(line: &str, told: &Told) -> Result<Bootstrap, Error> {
    let clock = Clock::manual(1);
    let resolver = Resolver::new(Names(clock.clone()), clock);
    let config = config(line);
    if config.joins { join(&config, told, &resolver).await } else { Bootstrap::begin(&config, told, &resolver).await }
}

#[tokio::test]
async fn a_new_member_begins_with_all_unless_it_was_in_the_cluster_before() {
    let line = format!("--name c --initial-cluster {ALL} --initial-advertise-peer-urls http://c:1");
    let nobody = Told::default();
    let bootstrap = begun(&line, &nobody).await.unwrap();
    assert_eq!(*nobody.asked.borrow(), ["http://a:1/members", "http://b:1/members"], "those of others, in order");
    assert_eq!((bootstrap.members.len(), bootstrap.remotes.len()), (3, 0));
    let id = bootstrap.identity.member_id;
    let known = |client_urls: &[&str]| {
        let client_urls = client_urls.iter().map(|url| (*url).to_owned()).collect();
        let member = Member { id, client_urls, ..Member::default() };
        let json = format!("[{}]", String::from_utf8(member.to_json()).unwrap());
        Told { answers: [("http://a:1/members", ("c1", &*json.leak()))].into(), ..Told::default() }
    };
    assert_eq!(begun(&line, &known(&[])).await.unwrap(), bootstrap, "it has never served");
    let error = begun(&line, &known(&["http://c:2"])).await.unwrap_err();
    assert_eq!(error.to_string(), format!("member {id:x} has already been bootstrapped"));
    assert!(begun(&line, &Told::new(MEMBERS, "")).await.is_ok(), "others have other ids");
}

#[tokio::test]
async fn members_that_could_only_be_reached_with_tls_are_refused_before_anything_is_made() {
    for state in ["new", "existing"] {
        let line = format!(
            "--name c --initial-cluster-state {state} --initial-advertise-peer-urls http://c:1 \
             --initial-cluster a=http://a:1,b=https://b:1,c=http://c:1"
        );
        let nobody = Told::default();
        let error = begun(&line, &nobody).await.unwrap_err().to_string();
        assert!(error.contains("https://b:1 of another member needs TLS"), "{error}");
        assert!(nobody.asked.borrow().is_empty());
    }
}

#[test]
fn others_are_dialled_from_an_address_that_they_could_reach_if_the_gate_says_so() {
    let from = |gates: &str, urls: &str| {
        options::dial_from(&config(&format!(
            "{gates} --initial-advertise-peer-urls {urls} --initial-cluster default={urls}"
        )))
    };
    let gate = "--feature-gates SetMemberLocalAddr=true";
    assert_eq!(from(gate, "http://192.0.2.3:1"), Some([192, 0, 2, 3].into()));
    assert_eq!(from(gate, "http://[2001:db8::1]:1"), Some("2001:db8::1".parse().unwrap()));
    for (gates, url) in
        [("", "http://192.0.2.3:1"), (gate, "http://127.0.0.1:1"), (gate, "http://0.0.0.0:1"), (gate, "http://a:1")]
    {
        assert_eq!(from(gates, url), None, "{gates} {url}");
    }
}

#[tokio::test]
async fn a_new_member_may_advertise_an_address_where_the_cluster_has_a_name() {
    let line = |own: &str| {
        format!(
            "--name c --initial-cluster a=http://a:1,c=http://{own} --initial-advertise-peer-urls http://192.0.2.3:1"
        )
    };
    let bootstrap = begun(&line("c.example:1"), &Told::default()).await.unwrap();
    let own = bootstrap.members.iter().find(|member| member.id == bootstrap.identity.member_id).unwrap();
    assert_eq!(own.peer_urls, ["http://c.example:1"], "its id is what others make of their flags");
    let error = begun(&line("d.example:1"), &Told::default()).await.unwrap_err();
    let expected = "--initial-cluster has c=http://d.example:1 but missing from \
                    --initial-advertise-peer-urls=http://192.0.2.3:1 (failed to resolve \"http://d.example:1\" (lookup \
                    d.example: entity not found))";
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_member_joins_as_the_one_that_the_cluster_says_it_is() {
    let told = Told::new(MEMBERS, r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0"}"#);
    // Its advertised URLs do not count, and names differ from the cluster's.
    let line = format!("--name me --initial-cluster-state existing --initial-cluster {}", ALL.replace("c=", "me="));
    let bootstrap = begun(&line, &told).await.unwrap();
    assert_eq!(bootstrap.identity, Identity { cluster_id: 0xc1, member_id: 9 });
    assert!(bootstrap.members.is_empty(), "its log comes from others");
    let remotes = bootstrap.remotes.iter().map(|remote| (remote.member_id, remote.peer_urls[0].as_str()));
    assert_eq!(remotes.collect::<Vec<_>>(), [(10, "http://b:1"), (11, "http://a:1")]);
    let asked = told.asked.borrow();
    let paths = ["a:1/members", "b:1/members", "b:1/version", "a:1/version"];
    let (who, whether) = asked.split_at(4);
    assert_eq!(who, paths.map(|path| format!("http://{path}")));
    assert_eq!(whether, ["http://b:1/downgrade/enabled", "http://a:1/downgrade/enabled"], "nobody says");
}

#[tokio::test]
async fn a_member_that_does_not_fit_is_refused_in_etcds_words() {
    const VERSION: &str = r#"{"etcdserver":"3.7.1","etcdcluster":"3.7.0"}"#;
    const ONE: &str = r#"[{"id":5481,"peerURLs":["http://b:1"],"name":"b","clientURLs":["http://b:2","http://b:3"]}]"#;
    const TWO: &str = r#"[{"id":7,"peerURLs":["http://b:1"],"name":"b","clientURLs":["http://b:2"]},
        {"id":255,"peerURLs":["http://x:1"],"isLearner":true}]"#;
    let join = "--name c --initial-cluster-state existing --initial-cluster";
    let shown = "ClusterID:c1 Members:[&{ID:7 RaftAttributes:{PeerURLs:[http://b:1] IsLearner:false} \
                 Attributes:{Name:b ClientURLs:[http://b:2]}} &{ID:ff RaftAttributes:{PeerURLs:[http://x:1] \
                 IsLearner:true} Attributes:{Name: ClientURLs:[]}}] RemovedMemberIDs:[]";
    let rows = [
        (
            format!("{join} b=http://b:1,c=http://c:1"),
            Told::new(ONE, VERSION),
            "error validating peerURLs {ClusterID:c1 Members:[&{ID:1569 RaftAttributes:{PeerURLs:[http://b:1] \
             IsLearner:false} Attributes:{Name:b ClientURLs:[http://b:2 http://b:3]}}] RemovedMemberIDs:[]}: member \
             count is unequal"
                .to_owned(),
        ),
        (
            format!("{join} b=http://b:1,c=http://localhost:1").replace("b:1", "127.0.0.1:1"),
            Told {
                answers: [("http://127.0.0.1:1/members", ("c1", &*TWO.replace("b:1", "127.0.0.1:1").leak()))].into(),
                ..Told::default()
            },
            format!(
                "error validating peerURLs {{{}}}: PeerURLs: no match found for existing member (ff, [http://x:1]), \
                 last resolver error (failed to resolve \"http://x:1\" (context deadline exceeded))",
                shown.replace("b:1", "127.0.0.1:1")
            ),
        ),
        (
            format!("{join} c=http://c:1"),
            Told::new(ONE, VERSION),
            "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
                .to_owned(),
        ),
        (
            format!("{join} b=http://b:1,c=http://c:1"),
            Told::new("[]", VERSION),
            "cannot fetch cluster info from peer urls: failed to get raft cluster member(s) from the given URLs"
                .to_owned(),
        ),
        (
            format!("{join} b=http://b:1,c=http://x:1"),
            Told::new(TWO, r#"{"etcdcluster":"3.8.0"}"#),
            "incompatible with current running cluster".to_owned(),
        ),
        (
            format!("{join} b=http://b:1,c=http://x:1 --max-learners 0"),
            Told::new(TWO, VERSION),
            "membership: too many learner members in cluster".to_owned(),
        ),
        (
            format!("{join} b=http://b:1,d=http://x:1"),
            Told::new(TWO, VERSION),
            "couldn't find local name \"c\" in the initial cluster configuration".to_owned(),
        ),
        (
            format!("{join} b=http://b:1,c=http://b:1"),
            Told::new(TWO, VERSION),
            "initial cluster b=http://b:1,c=http://b:1 has duplicate url".to_owned(),
        ),
    ];
    for (line, told, why) in rows {
        assert_eq!(begun(&line, &told).await.unwrap_err().to_string(), why, "{line}");
    }
}

#[test]
fn data_beats_flags_and_what_it_says_decides_how_a_log_begins_that_was_never_written() {
    let config = config(&format!("--name c --initial-cluster {ALL} --initial-cluster-state existing"));
    let new = Bootstrap::of_new_cluster(&config);
    assert_eq!(Bootstrap::of_data(&config, new.identity), new);
    let joined = Identity { cluster_id: 1, member_id: 9 };
    let found = Bootstrap::of_data(&config, joined);
    assert_eq!((found.identity, found.members.len()), (joined, 0));
}

#[tokio::test]
async fn who_asks_a_member_that_asks_others_is_turned_away() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    let url = format!("http://{free}");
    let line = format!("--listen-peer-urls {url} --listen-client-urls http://127.0.0.1:0");
    let config = config(&format!("{line} --advertise-client-urls http://127.0.0.1:1"));
    let ports = Ports::bind(&config).unwrap();
    let (network, asking) =
        (Network::new(None, 1), Asking { method: "GET", path: "/members".into(), ..Asking::default() });
    // Two members of a new cluster that ask each other are like one that asks itself, twice.
    let asks = async { [network.ask(&url, &asking).await, network.ask(&url, &asking).await] };
    let answers = tokio::time::timeout(Duration::from_secs(60), ports.decline_during(asks)).await;
    assert!(answers.expect("it does not wait in the backlog").iter().all(Result::is_err));
}
