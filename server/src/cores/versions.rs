//! Runs on: connection core.
//!
//! What a leader does about the cluster's version: it asks the members which release they are, and has the lowest of
//! these decided, so that nobody is asked for what an older member does not know. It goes down only where an operator
//! has decided so (the Downgrade call), by one minor, so that members of that release can take part; once all members
//! are of that release, the downgrade is over.
//!
//! Invariant: nothing is raised while a member does not answer: it may be an older one, which would end when it hears
//! of a later version than its own.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/version/monitor.go`, `server/etcdserver/cluster_util.go`.

use std::{rc::Rc, sync::atomic, time::Duration};

use tokio::time::MissedTickBehavior;

use crate::{
    api::{desk::Desk, downgrade::is_one_down, others::Asking},
    apply::message::ToApply,
    shared::{Cluster, Minor, minor_of},
};

/// Time between two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Time between two rounds of questions. **Source** etcd, `monitorVersionInterval`.
const ASK_EVERY: Duration = Duration::from_secs(4);
/// The same before anything is decided.
const ASK_SOON: Duration = Duration::from_millis(500);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// An answer at most. **Units** bytes.
const ANSWER_BYTES_MAX: usize = 4096;
/// What is decided before all members are known. **Source** etcd v3.7.1 `api/version/version.go MinClusterVersion`.
const LEAST: &str = "3.0.0";

/// Runs until its core ends. A downgrade is looked after at `downgrade_every`; never if it is 0.
pub async fn run(desk: Rc<Desk>, downgrade_every: Duration) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The term in which was asked last, and when; and when a downgrade was looked after.
    let mut asked: Option<(u64, Duration)> = None;
    let mut looked = desk.clock.now();
    loop {
        ticks.tick().await;
        let shared = &desk.shared;
        let (term, now) = (shared.raft.term.load(atomic::Ordering::Acquire), desk.clock.now());
        let leads = shared.raft.leader.load(atomic::Ordering::Acquire) == shared.identity.member_id;
        let cluster = shared.cluster.load_full();
        if !leads || cluster.members.is_empty() {
            continue;
        }
        if target(&cluster).is_some() && !downgrade_every.is_zero() && now >= looked + downgrade_every {
            looked = now;
            end_downgrade(&desk, &cluster).await;
        }
        // No member serves clients before.
        let every = if cluster.version.is_some() { ASK_EVERY } else { ASK_SOON };
        let is_early = asked.is_some_and(|(before, at)| before == term && now < at + every);
        // Nothing is above this release.
        let is_highest = cluster.version.as_deref() == Some(crate::CLUSTER_VERSION) && target(&cluster).is_none();
        if is_early || is_highest {
            continue;
        }
        asked = Some((term, now));
        let lowest = releases(&desk, &cluster).await.and_then(|releases| releases.into_iter().min());
        if let Some(version) = due(cluster.version.as_deref(), target(&cluster), lowest) {
            desk.tell_apply(ToApply::ClusterVersion(version)).await;
        }
    }
}

/// The version to which the cluster is downgraded, if it is.
fn target(cluster: &Cluster) -> Option<&str> {
    cluster.downgrade.as_ref().filter(|known| known.is_enabled).map(|known| known.target.as_str())
}

/// Has the downgrade ended once all members are of the release to which it leads.
async fn end_downgrade(desk: &Rc<Desk>, cluster: &Cluster) {
    let Some(wanted) = target(cluster).and_then(minor_of) else { return };
    let Some(releases) = releases(desk, cluster).await else { return };
    if releases.iter().all(|release| *release == wanted) {
        tracing::info!("cluster-version" = target(cluster), "the cluster has been downgraded");
        desk.tell_apply(ToApply::Downgraded).await;
    }
}

/// The version that is to be decided next, if there is one. `lowest` is the lowest release among all members, if all
/// have answered; `target` is that to which the cluster is downgraded, if it is.
fn due(decided: Option<&str>, target: Option<&str>, lowest: Option<Minor>) -> Option<String> {
    let shown = |(major, minor): Minor| format!("{major}.{minor}.0");
    let Some(decided) = decided else { return Some(lowest.map_or_else(|| LEAST.to_owned(), shown)) };
    let (decided, lowest) = (minor_of(decided)?, lowest?);
    if let Some(target) = target {
        let target = minor_of(target)?;
        if target == decided {
            return None;
        }
        if is_one_down(decided, target) && is_one_down(lowest, target) {
            return Some(shown(target));
        }
        tracing::error!(?target, ?decided, ?lowest, "the cluster cannot be downgraded: invalid downgrade target");
        return None;
    }
    let is_higher = decided.0 == lowest.0 && decided.1 < lowest.1;
    is_higher.then(|| shown(lowest))
}

/// The releases of all members; `None` if one of them does not say.
async fn releases(desk: &Rc<Desk>, cluster: &Cluster) -> Option<Vec<Minor>> {
    let own = desk.shared.identity.member_id;
    let others = || cluster.members.iter().filter(|member| member.id != own);
    let questions = others().map(|member| {
        let (desk, urls) = (Rc::clone(desk), member.peer_urls.clone());
        tokio::task::spawn_local(async move { release(&desk, &urls).await })
    });
    let questions: Vec<_> = questions.collect();
    let mut releases = vec![minor_of(crate::ETCD_VERSION)?];
    for (question, member) in questions.into_iter().zip(others()) {
        match question.await {
            Ok(Ok(release)) => releases.push(release),
            Ok(Err(error)) => {
                tracing::warn!("remote-member-id" = format!("{:x}", member.id), error, "failed to get version");
                return None;
            }
            Err(_ended) => return None,
        }
    }
    Some(releases)
}

/// The release of the member at one of `urls`.
async fn release(desk: &Desk, urls: &[String]) -> Result<Minor, String> {
    let mut why = "its URLs are not known".to_owned();
    for url in urls {
        match tokio::time::timeout(ANSWER_MAX, ask(desk, url)).await {
            Ok(Ok(release)) => return Ok(release),
            Ok(Err(error)) => why = error,
            Err(_late) => why = format!("{url}: it does not answer"),
        }
    }
    Err(why)
}

async fn ask(desk: &Desk, url: &str) -> Result<Minor, String> {
    let path = "/version".to_owned();
    let asking = Asking { method: "GET", path, answer_bytes_max: ANSWER_BYTES_MAX, ..Asking::default() };
    let answered = desk.others.ask(url, &asking).await?;
    let told: Option<serde_json::Value> = serde_json::from_slice(&answered.body).ok();
    let release = told.and_then(|told| minor_of(told["etcdserver"].as_str()?));
    release.ok_or_else(|| format!("{url}: it does not say which release it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_release_is_decided_once_all_have_answered() {
        for (decided, lowest, expected) in [
            (None, None, Some("3.0.0")),
            (None, Some((3, 6)), Some("3.6.0")),
            (Some("3.0.0"), None, None),
            (Some("3.0.0"), Some((3, 7)), Some("3.7.0")),
            (Some("3.6.0"), Some((3, 7)), Some("3.7.0")),
            (Some("3.7.0"), Some((3, 6)), None),
            (Some("3.6.0"), Some((3, 6)), None),
            (Some("3.9.0"), Some((3, 10)), Some("3.10.0")),
            (Some("3.6.0"), Some((4, 0)), None),
        ] {
            assert_eq!(due(decided, None, lowest).as_deref(), expected, "{decided:?} {lowest:?}");
        }
    }

    #[test]
    fn it_goes_down_by_one_where_that_is_decided() {
        for (decided, target, lowest, expected) in [
            ("3.7.0", "3.6.0", Some((3, 7)), Some("3.6.0")),
            ("3.7.0", "3.6.0", None, None),
            ("3.6.0", "3.6.0", Some((3, 7)), None),
            ("3.7.0", "3.5.0", Some((3, 7)), None),
            ("3.7.0", "3.6.0", Some((3, 6)), None),
        ] {
            assert_eq!(due(Some(decided), Some(target), lowest).as_deref(), expected, "{decided} {target} {lowest:?}");
        }
    }
}
