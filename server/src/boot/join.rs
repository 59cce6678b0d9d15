//! Runs on: core 0, before the member's threads.
//!
//! How a member without data joins a cluster that runs (`--initial-cluster-state existing`): it asks the other members
//! who the members are, and finds itself among them by its peer URLs.
//!
//! Invariants: the cluster and all ids are those that a member tells, the own one included. The log begins empty: what
//! it is to hold comes from the leader, the members too.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go`, `cluster_util.go`, `api/membership/cluster.go`.

use std::time::Duration;

use consensus::{Identity, Member, peer::hello::Remote};

use super::{
    bootstrap::{Bootstrap, Error, check_dialled},
    running::{self, Running, urls_of_others},
};
use crate::{
    api::others::Others,
    config::{Config, Url},
    peer::resolve::{Lookup, Resolver},
};

/// How long each member is asked who the members are.
const MEMBERS_WAIT: Duration = Duration::from_secs(10);

/// The same when it is asked again only to be reached sooner.
const AGAIN_WAIT: Duration = Duration::from_secs(1);

/// Joins the cluster that `config` describes.
///
/// **Errors** why not.
pub async fn join<L: Lookup>(config: &Config, others: &dyn Others, resolver: &Resolver<L>) -> Result<Bootstrap, Error> {
    config.verify_local_member()?;
    check_dialled(&urls_of_others(config))?;
    config.verify_unique_urls()?;
    let running = running::members(others, &urls_of_others(config), MEMBERS_WAIT, true).await?;
    let names = match assign(config, &running, resolver).await {
        Ok(names) => names,
        Err(why) => return Err(Error::Mismatch { running, why }),
    };
    let own = names.iter().position(|name| *name == config.name);
    let own = own.map(|position| &running.members[position]);
    let Some(own) = own else {
        return Err(Error::Mismatch { running, why: "PeerURLs: no match found for the local member".to_owned() });
    };
    let member_id = own.id;
    let members: Vec<&Member> = running.members.iter().filter(|member| member.id != member_id).collect();
    if !is_compatible(config, others, &members).await {
        return Err(Error::Incompatible);
    }
    if running.members.iter().filter(|member| member.is_learner).count() > config.learners_max {
        return Err(Error::TooManyLearners);
    }
    let remote = |member: &&Member| Remote { member_id: member.id, peer_urls: member.peer_urls.clone() };
    let remotes = members.iter().map(remote).collect();
    // A member tells where clients find it when it has caught up for the first time. Those that a cluster began with
    // have a name before.
    let has_run = !own.client_urls.is_empty();
    let identity = Identity { cluster_id: running.cluster_id, member_id };
    Ok(Bootstrap { identity, members: Vec::new(), remotes, has_run })
}

/// Where the other members are reached, of which a member that has joined has heard nothing yet, though it has data:
/// its log brings them, or one of them says that it was removed. Nobody may answer.
pub async fn remotes(config: &Config, others: &dyn Others, own_id: u64) -> Vec<Remote> {
    let running = running::members(others, &urls_of_others(config), AGAIN_WAIT, false).await;
    let members = running.map_or_else(|_nobody| Vec::new(), |running| running.members);
    let other = members.into_iter().filter(|member| member.id != own_id);
    other.map(|member| Remote { member_id: member.id, peer_urls: member.peer_urls }).collect()
}

/// The name that the flags give to each member of `running`, by its peer URLs.
///
/// **Errors** a member that the flags do not know, or that does not exist.
async fn assign<'a, L: Lookup>(
    config: &'a Config,
    running: &Running,
    resolver: &Resolver<L>,
) -> Result<Vec<&'a str>, String> {
    if running.members.len() != config.initial_cluster.len() {
        return Err("member count is unequal".to_owned());
    }
    // As in etcd, in the order of the ids that the members would have in a new cluster. The error shows which one was
    // compared last.
    let of_new = Bootstrap::of_new_cluster(config);
    let mut names = Vec::new();
    for member in &running.members {
        let mut found = Err(String::new());
        for named in &of_new.members {
            found = match (parsed(&member.peer_urls), parsed(&named.peer_urls)) {
                (Ok(theirs), Ok(ours)) => resolver.check_equal(&theirs, &ours).await,
                (Err(why), _) | (_, Err(why)) => Err(why),
            };
            if found.is_ok() {
                names.extend(config.initial_cluster.keys().find(|name| **name == named.name).map(String::as_str));
                break;
            }
        }
        found.map_err(|why| {
            let (id, urls) = (member.id, member.peer_urls.join(" "));
            format!("PeerURLs: no match found for existing member ({id:x}, [{urls}]), last resolver error ({why})")
        })?;
    }
    Ok(names)
}

fn parsed(urls: &[String]) -> Result<Vec<Url>, String> {
    let parse = |url: &String| Url::parse(url).map_err(|_why| format!("failed to parse string to URL: {url:?}"));
    urls.iter().map(parse).collect()
}

/// Whether at least one of `members` says which version the cluster has, and none says one that this release cannot
/// have.
async fn is_compatible(config: &Config, others: &dyn Others, members: &[&Member]) -> bool {
    let wait = config.request_timeout();
    let mut told = Vec::new();
    for member in members {
        let version = running::cluster_version(others, &member.peer_urls, wait).await;
        told.extend(version.map(|version| (member.id, version)));
    }
    let mut is_downgrading = None;
    for member in members {
        is_downgrading = running::is_downgrading(others, &member.peer_urls, wait).await;
        if is_downgrading.is_some() {
            break;
        }
    }
    are_compatible(&told, is_downgrading.unwrap_or(false))
}

/// The same, from what was `told`: ids, each with a version of the cluster.
fn are_compatible(told: &[(u64, String)], is_downgrading: bool) -> bool {
    let (major, minor, _) = numbers(crate::ETCD_VERSION).expect("its own version is one");
    let range =
        if is_downgrading { (major, minor + 1, 0)..=(major, minor + 1, 0) } else { (3, 0, 0)..=(major, minor, 0) };
    let mut is_told = false;
    for (id, version) in told {
        let Some(numbers) = numbers(version) else {
            let id = format!("{id:x}");
            tracing::warn!(
                "remote-member-id" = id,
                "remote-member-cluster-version" = version,
                "failed to parse cluster version of remote member"
            );
            continue;
        };
        if !range.contains(&numbers) {
            let how = if numbers < *range.start() { "low" } else { "high" };
            let id = format!("{id:x}");
            tracing::warn!(
                "remote-member-id" = id,
                "remote-member-cluster-version" = version,
                "cluster version of remote member is not compatible; too {how}"
            );
            return false;
        }
        is_told = true;
    }
    is_told
}

/// The numbers of a version, without what may follow.
fn numbers(version: &str) -> Option<(u64, u64, u64)> {
    let numbers: Option<Vec<u64>> = version.split(['-', '+']).next()?.split('.').map(|n| n.parse().ok()).collect();
    match numbers?[..] {
        [major, minor, patch] => Some((major, minor, patch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_is_joined_whose_version_this_release_can_have() {
        let told =
            |versions: &[&str]| (1..).zip(versions.iter().map(|version| (*version).to_owned())).collect::<Vec<_>>();
        let cases: [(&[&str], bool, bool); 9] = [
            (&["3.7.0"], false, true),
            (&["3.0.0", "not_decided"], false, true),
            (&["not_decided"], false, false),
            (&[], false, false),
            (&["3.7.0", "2.3.0"], false, false),
            (&["3.8.0", "3.7.0"], false, false),
            (&["3.7.1"], false, false),
            (&["3.8.0"], true, true),
            (&["3.7.0"], true, false),
        ];
        for (versions, is_downgrading, expected) in cases {
            assert_eq!(are_compatible(&told(versions), is_downgrading), expected, "{versions:?} {is_downgrading}");
        }
    }
}
