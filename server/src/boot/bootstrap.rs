//! Runs on: core 0, before the member's threads.
//!
//! Who a member without data is, and with whom it begins.
//!
//! Invariants: nothing here runs for a member with data, whatever the flags say. All of it is bounded in time. A member
//! of a new cluster has the ids that etcd's hashes give; who has been in a cluster with its id is refused, because what
//! it knew there is gone.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go`, `server/etcdserver/api/membership/{cluster,member}.go`.

use std::time::Duration;

use consensus::{Identity, Member, peer::hello::Remote};

use super::running::{self, Running, Unknown, urls_of_others};
use crate::{
    api::others::Others,
    config::{self, Config, Url, needs_tls},
    peer::resolve::{Lookup, Resolver},
};

/// Refuses URLs of other members that nothing here can dial.
pub(super) fn check_dialled(urls: &[String]) -> Result<(), Error> {
    match urls.iter().find(|url| needs_tls(url)) {
        Some(url) => Err(Error::TlsBetweenMembers { url: url.clone() }),
        None => Ok(()),
    }
}

/// How long the other members are asked whether this one is in a cluster already.
const PROBE_WAIT: Duration = Duration::from_secs(1);

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// The member, and its cluster.
    pub identity: Identity,
    /// The members with which a new cluster begins, ascending by id. None for a member that joins: its log comes from
    /// others.
    pub members: Vec<Member>,
    /// Where the others are reached, for a member that joins.
    pub remotes: Vec<Remote>,
    /// The other members have seen this one run.
    pub has_run: bool,
}

/// Why a member without data cannot begin, in etcd's words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The settings contradict themselves.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Another member is reached with TLS alone.
    #[error("the peer URL {url} of another member needs TLS between members, which this release does not have yet")]
    TlsBetweenMembers {
        /// Its URL.
        url: String,
    },
    /// A cluster that runs knows the member.
    #[error("member {id:x} has already been bootstrapped")]
    Bootstrapped {
        /// Its id.
        id: u64,
    },
    /// No member of the cluster to join answers.
    #[error("cannot fetch cluster info from peer urls: {0}")]
    Unknown(#[from] Unknown),
    /// The cluster to join is another one than the flags say.
    #[error("error validating peerURLs {running}: {why}")]
    Mismatch {
        /// The cluster that was found.
        running: Running,
        /// In what it differs.
        why: String,
    },
    /// The releases do not fit together.
    #[error("incompatible with current running cluster")]
    Incompatible,
    /// The cluster has more learners than this member allows.
    #[error("membership: too many learner members in cluster")]
    TooManyLearners,
}

impl Bootstrap {
    /// The member that `config` names, of the new cluster that it describes.
    pub fn of_new_cluster(config: &Config) -> Self {
        let texts = |urls: &[Url]| urls.iter().map(ToString::to_string).collect::<Vec<_>>();
        let id_of = |urls: &[String]| consensus::member_id(urls, &config.initial_cluster_token, None);
        let member = |(name, urls): (&String, &Vec<Url>)| {
            let peer_urls = texts(urls);
            Member { id: id_of(&peer_urls), peer_urls, name: name.clone(), ..Member::default() }
        };
        let mut members: Vec<Member> = config.initial_cluster.iter().map(member).collect();
        members.sort_by_key(|member| member.id);
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        let own = members.iter().find(|member| member.name == config.name);
        let member_id = own.map_or_else(|| id_of(&texts(&config.advertise_peer_urls)), |own| own.id);
        let identity = Identity { cluster_id: consensus::cluster_id(&ids), member_id };
        Self { identity, members, remotes: Vec::new(), has_run: false }
    }

    /// The same, after etcd's checks.
    ///
    /// **Errors** why it cannot begin.
    pub async fn begin<L: Lookup>(config: &Config, others: &dyn Others, resolver: &Resolver<L>) -> Result<Self, Error> {
        let own = config.verify_local_member()?;
        check_dialled(&urls_of_others(config))?;
        let equal = resolver.check_equal(&config.advertise_peer_urls, own).await;
        equal.map_err(|why| config.mismatch(own, &why))?;
        config.verify_unique_urls()?;
        let bootstrap = Self::of_new_cluster(config);
        let id = bootstrap.identity.member_id;
        let running = running::members(others, &urls_of_others(config), PROBE_WAIT, false).await;
        let known = running.ok().and_then(|running| running.members.into_iter().find(|member| member.id == id));
        if known.is_some_and(|known| !known.client_urls.is_empty()) {
            return Err(Error::Bootstrapped { id });
        }
        Ok(bootstrap)
    }

    /// The same as [`Bootstrap::of_new_cluster`], for a member whose data says that it is `identity`. What its log
    /// begins with matters if it stopped before that was written. If the flags describe another member, the log comes
    /// from others.
    pub fn of_data(config: &Config, identity: Identity) -> Self {
        let of_flags = Self::of_new_cluster(config);
        let members = if of_flags.identity == identity { of_flags.members } else { Vec::new() };
        Self { identity, members, remotes: Vec::new(), has_run: false }
    }
}
