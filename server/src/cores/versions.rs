//! Runs on: connection core.
//!
//! What a leader does about the cluster's version: it asks the members which release they are, and has the lowest of
//! these decided, so that nobody is asked for what an older member does not know. It never goes down here.
//!
//! Invariant: nothing is raised while a member does not answer: it may be an older one, which would end when it hears
//! of a later version than its own.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/version/monitor.go`, `server/etcdserver/cluster_util.go`.

use std::{cmp::Ordering, rc::Rc, sync::atomic, time::Duration};

use tokio::time::MissedTickBehavior;

use crate::{
    api::{desk::Desk, others::Asking},
    apply::message::ToApply,
    peer::{ask::ask_over, dial::dial},
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

/// A release, as far as clusters care: major and minor.
type Minor = (u64, u64);

/// Runs until its core ends.
pub async fn run(desk: Rc<Desk>) {
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The term in which was asked last, and when.
    let mut asked: Option<(u64, Duration)> = None;
    loop {
        ticks.tick().await;
        let shared = &desk.shared;
        let (term, now) = (shared.raft.term.load(atomic::Ordering::Acquire), desk.clock.now());
        let leads = shared.raft.leader.load(atomic::Ordering::Acquire) == shared.identity.member_id;
        let decided = shared.cluster.load().version.clone();
        // No member serves clients before.
        let every = if decided.is_some() { ASK_EVERY } else { ASK_SOON };
        let is_early = asked.is_some_and(|(before, at)| before == term && now < at + every);
        // Nothing is above this release.
        let is_highest = decided.as_deref() == Some(crate::CLUSTER_VERSION);
        if !leads || is_early || is_highest || shared.cluster.load().members.is_empty() {
            continue;
        }
        asked = Some((term, now));
        if let Some(version) = due(decided.as_deref(), lowest(&desk).await) {
            desk.tell_apply(ToApply::ClusterVersion(version)).await;
        }
    }
}

/// The version that is to be decided next, if there is one. `lowest` is the lowest release among all members, if all
/// have answered.
fn due(decided: Option<&str>, lowest: Option<Minor>) -> Option<String> {
    let shown = |(major, minor): Minor| format!("{major}.{minor}.0");
    let Some(decided) = decided else { return Some(lowest.map_or_else(|| LEAST.to_owned(), shown)) };
    let (decided, lowest) = (minor_of(decided)?, lowest?);
    let is_higher = decided.0 == lowest.0 && decided.1.cmp(&lowest.1) == Ordering::Less;
    is_higher.then(|| shown(lowest))
}

fn minor_of(version: &str) -> Option<Minor> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The lowest release among all members; `None` if one of them does not say.
async fn lowest(desk: &Rc<Desk>) -> Option<Minor> {
    let own = desk.shared.identity.member_id;
    let cluster = desk.shared.cluster.load_full();
    let questions = cluster.members.iter().filter(|member| member.id != own).map(|member| {
        let (desk, urls) = (Rc::clone(desk), member.peer_urls.clone());
        tokio::task::spawn_local(async move { release(&desk, &urls).await })
    });
    let questions: Vec<_> = questions.collect();
    let mut lowest = minor_of(crate::ETCD_VERSION)?;
    for (question, member) in questions.into_iter().zip(cluster.members.iter().filter(|member| member.id != own)) {
        match question.await {
            Ok(Ok(release)) => lowest = lowest.min(release),
            Ok(Err(error)) => {
                tracing::warn!("remote-member-id" = format!("{:x}", member.id), error, "failed to get version");
                return None;
            }
            Err(_ended) => return None,
        }
    }
    Some(lowest)
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
    let mut stream = dial(url, desk.shared.limits.dial_from).await.map_err(|error| format!("{url}: {error}"))?;
    let path = "/version".to_owned();
    let asking = Asking { method: "GET", path, answer_bytes_max: ANSWER_BYTES_MAX, ..Asking::default() };
    let (answered, _) = ask_over(&mut stream, url, &asking).await?;
    let told: Option<serde_json::Value> = serde_json::from_slice(&answered.body).ok();
    let release = told.and_then(|told| minor_of(told["etcdserver"].as_str()?));
    release.ok_or_else(|| format!("{url}: it does not say which release it is"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_release_is_decided_once_all_have_answered_and_it_never_goes_down() {
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
            assert_eq!(due(decided, lowest).as_deref(), expected, "{decided:?} {lowest:?}");
        }
        assert_eq!((minor_of("3.6.16"), minor_of("3"), minor_of("x.1")), (Some((3, 6)), None, None));
    }
}
