//! Runs on: connection core.
//!
//! The promotion of a learner. The leader alone knows how far a learner has come, so any other member asks the leader
//! to promote it.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/server.go`: `PromoteMember`; `server/etcdserver/cluster_util.go`:
//! `promoteMemberHTTP`.

use bytes::Bytes;
use consensus::{ConfChangeKind, Member, Progress};

use super::strict::Sight;
use crate::{
    api::{
        applied::await_applied,
        desk::Desk,
        leader::{Leader, Way},
        others::{Answered, Asking},
    },
    error::Error,
};

/// A learner is ready when its log has come as far as so many hundredths of the leader's.
const READY_PERCENT: u64 = 90;

/// A list of members, as another member answers. **Units** bytes.
const MEMBERS_BYTES_MAX: usize = 1 << 20;

/// Where a leader is asked for a promotion: behind it comes the id, in decimal.
pub const PATH: &str = "/members/promote/";

/// Says that a request comes from a member that does not lead. Whoever gets it does not pass it on: two members that
/// take each other for the leader would pass it to and fro.
pub const PASSED_ON: &str = "x-orlop-passed-on";

/// Promotes the learner `id`. Returns the members after that.
///
/// **Errors** etcd's.
pub async fn promote(desk: &Desk, id: u64) -> Result<Vec<Member>, Error> {
    let way = Way::new(desk);
    let asking = Asking {
        method: "POST",
        path: format!("{PATH}{id}"),
        lines: format!("{PASSED_ON}: 1\r\n"),
        body: Bytes::new(),
        answer_bytes_max: MEMBERS_BYTES_MAX,
        is_repeatable: false,
    };
    loop {
        match way.leader().await? {
            Leader::Own => match promote_here(desk, id).await {
                Err(Error::NotLeader) => {}
                promoted => return promoted,
            },
            Leader::Other(urls) => {
                for url in &urls {
                    if let Some(promoted) = way.ask(url, &asking).await.as_ref().and_then(told) {
                        return promoted;
                    }
                }
            }
        }
        way.again().await?;
    }
}

/// What the leader says for good; `None` if it is to be asked again.
fn told(answered: &Answered) -> Option<Result<Vec<Member>, Error>> {
    let body = std::str::from_utf8(&answered.body).unwrap_or_default();
    match answered.status {
        200 => serde_json::from_slice(&answered.body).ok().map(Ok),
        404 => Some(Err(Error::MemberNotFound)),
        412 if body.contains(&Error::LearnerNotReady.to_string()) => Some(Err(Error::LearnerNotReady)),
        412 if body.contains(NOT_LEARNER) => Some(Err(Error::MemberNotLearner)),
        _ => None,
    }
}

/// How members tell each other that a voter cannot be promoted.
pub const NOT_LEARNER: &str = "membership: can only promote a learner member";

/// Promotes the learner `id`, if this member leads.
///
/// **Errors** etcd's; `NotLeader`.
pub async fn promote_here(desk: &Desk, id: u64) -> Result<Vec<Member>, Error> {
    let promoted = decide(desk, id).await;
    if promoted != Err(Error::NotLeader) {
        desk.counters.promoted(promoted.as_ref().map(drop));
    }
    promoted
}

async fn decide(desk: &Desk, id: u64) -> Result<Vec<Member>, Error> {
    await_applied(desk).await?;
    let Progress { matched, leader_matched, .. } = desk.progress(id).await?;
    if !is_ready(matched, leader_matched) {
        let (member, percent) = (format!("{id:x}"), READY_PERCENT);
        tracing::error!(member, matched, leader_matched, percent, "rejecting promote learner: learner is not ready");
        return Err(Error::LearnerNotReady);
    }
    let shared = &desk.shared;
    if shared.limits.is_reconfig_strict {
        let (cluster, links) = (shared.cluster.load(), shared.links.load());
        let sight =
            Sight { own: shared.identity.member_id, members: &cluster.members, links: &links, now: desk.clock.now() };
        sight.check_promote().inspect_err(|error| {
            tracing::warn!(member = format!("{id:x}"), %error, "rejecting member promote request");
        })?;
    }
    let named = Member { id, is_promote: true, ..Member::default() };
    desk.change_members(ConfChangeKind::AddNode, id, named.to_json().into()).await
}

fn is_ready(matched: u64, leader_matched: u64) -> bool {
    u128::from(matched) * 100 >= u128::from(leader_matched) * u128::from(READY_PERCENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_learner_is_ready_with_nine_tenths_of_the_leaders_log() {
        for (matched, leader_matched, expected) in
            [(0, 0, true), (0, 1, false), (8, 9, false), (9, 10, true), (89, 100, false), (u64::MAX, u64::MAX, true)]
        {
            assert_eq!(is_ready(matched, leader_matched), expected, "{matched} of {leader_matched}");
        }
    }

    #[test]
    fn only_what_the_leader_says_for_good_is_an_answer() {
        let said = |status, body: &'static str| {
            told(&Answered { status, body: Bytes::from_static(body.as_bytes()), ..Answered::default() })
        };
        let members = said(200, r#"[{"id":9007199254740993,"peerURLs":["http://a:1"],"name":"m"}]"#);
        assert_eq!(members.unwrap().unwrap()[0].id, 9_007_199_254_740_993);
        assert_eq!(said(200, "<html>"), None);
        assert_eq!(said(404, "membership: ID not found\n"), Some(Err(Error::MemberNotFound)));
        assert_eq!(said(412, format_of(&Error::LearnerNotReady)), Some(Err(Error::LearnerNotReady)));
        assert_eq!(said(412, "membership: can only promote a learner member\n"), Some(Err(Error::MemberNotLearner)));
        for status in [400, 408, 412, 500, 503] {
            assert_eq!(said(status, "something else"), None, "{status}");
        }
    }

    fn format_of(error: &Error) -> &'static str {
        format!("{error}\n").leak()
    }
}
