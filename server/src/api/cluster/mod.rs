//! Runs on: connection core.
//!
//! The Cluster service. Changes of the members go through the log; apply checks them and makes them.
//!
//! - `strict`: what speaks against a change, before it is proposed
//! - `promote`: learners become voters
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/member.go`, `server/etcdserver/server.go`.

use bytes::Bytes;
use consensus::{ConfChangeKind, Member, member_id};
use proto::etcdserverpb as pb;

use self::{promote::promote, strict::Sight};
use super::desk::{Consistency, Desk};
use crate::{
    config::{Url, needs_tls},
    error::Error,
    protobuf::framed,
    shared::Shared,
};

pub mod promote;
mod strict;

/// Answers MemberList. The header has no revision, as in etcd.
///
/// **Errors** as [`Desk::view`], if the client wants a linearizable answer.
pub(super) async fn list(desk: &Desk, request: pb::MemberListRequest) -> Result<Bytes, Error> {
    // What apply has changed of the members is published before the view that has applied it.
    drop(desk.view(Consistency::of(!request.linearizable)).await?);
    let members = shown(&desk.shared.cluster.load().members);
    Ok(framed(&pb::MemberListResponse { header: Some(desk.header(0)), members }))
}

/// Answers MemberAdd. The member's id follows from its URLs and the time.
///
/// **Errors** etcd's.
pub(super) async fn add(desk: &Desk, request: pb::MemberAddRequest) -> Result<Bytes, Error> {
    let (peer_urls, is_learner) = (parsed(&request.peer_ur_ls)?, request.is_learner);
    check_dialled(&peer_urls)?;
    check(desk, "member add", |sight| sight.check_add(is_learner))?;
    if is_learner {
        check_learners(desk, &peer_urls).await?;
    }
    let now_s = i64::try_from(desk.clock.unix_us() / 1_000_000).unwrap_or(i64::MAX);
    let id = member_id(&peer_urls, "", Some(now_s));
    let named = Member { id, peer_urls, is_learner, ..Member::default() };
    let kind = if is_learner { ConfChangeKind::AddLearnerNode } else { ConfChangeKind::AddNode };
    let members = desk.change_members(kind, id, named.to_json().into()).await?;
    let (header, member) = (Some(desk.header(0)), Some(shown_one(&named)));
    Ok(framed(&pb::MemberAddResponse { header, member, members: shown(&members) }))
}

/// Answers MemberRemove.
///
/// **Errors** etcd's.
pub(super) async fn remove(desk: &Desk, request: pb::MemberRemoveRequest) -> Result<Bytes, Error> {
    check(desk, "member remove", |sight| sight.check_remove(request.id))?;
    let members = desk.change_members(ConfChangeKind::RemoveNode, request.id, Bytes::new()).await?;
    Ok(framed(&pb::MemberRemoveResponse { header: Some(desk.header(0)), members: shown(&members) }))
}

/// Answers MemberUpdate. As in etcd, the URLs may be anything.
///
/// **Errors** etcd's.
pub(super) async fn update(desk: &Desk, request: pb::MemberUpdateRequest) -> Result<Bytes, Error> {
    check_dialled(&request.peer_ur_ls)?;
    let named = Member { id: request.id, peer_urls: request.peer_ur_ls, ..Member::default() };
    let members = desk.change_members(ConfChangeKind::UpdateNode, request.id, named.to_json().into()).await?;
    Ok(framed(&pb::MemberUpdateResponse { header: Some(desk.header(0)), members: shown(&members) }))
}

/// Answers MemberPromote.
///
/// **Errors** etcd's.
pub(super) async fn promote_learner(desk: &Desk, request: pb::MemberPromoteRequest) -> Result<Bytes, Error> {
    let members = promote(desk, request.id).await?;
    Ok(framed(&pb::MemberPromoteResponse { header: Some(desk.header(0)), members: shown(&members) }))
}

/// Peer URLs, checked and sorted as etcd does it.
///
/// **Errors** there are none, or one that is no URL.
fn parsed(texts: &[String]) -> Result<Vec<String>, Error> {
    let text = |url: Url| {
        // Go writes the scheme of a URL in lower case, and no slashes before nothing.
        let (scheme, rest) = url.as_str().split_once(':').expect("a URL has a scheme");
        format!("{}:{}", scheme.to_ascii_lowercase(), if rest == "//" { "" } else { rest })
    };
    let urls = texts.iter().map(|given| Url::parse(given).map(text)).collect::<Result<Vec<_>, _>>();
    let mut urls = urls.map_err(|_invalid| Error::MemberBadUrls)?;
    urls.sort_unstable();
    if urls.is_empty() { Err(Error::MemberBadUrls) } else { Ok(urls) }
}

/// Refuses URLs that no member could dial: as a voter it would count, and could never be reached.
fn check_dialled(peer_urls: &[String]) -> Result<(), Error> {
    if peer_urls.iter().any(|url| needs_tls(url)) { Err(Error::MemberUrlsNeedTls) } else { Ok(()) }
}

/// Refuses what `speaks_against` refuses, unless the operator wants no such check.
fn check(desk: &Desk, what: &str, speaks_against: impl FnOnce(Sight<'_>) -> Result<(), Error>) -> Result<(), Error> {
    let Shared { limits, cluster, links, identity, .. } = &*desk.shared;
    if !limits.is_reconfig_strict {
        return Ok(());
    }
    let (cluster, links) = (cluster.load(), links.load());
    let sight = Sight { own: identity.member_id, members: &cluster.members, links: &links, now: desk.clock.now() };
    speaks_against(sight).inspect_err(|error| tracing::warn!(%error, "rejecting {what} request"))
}

/// Refuses another learner where there are as many as there may be. Apply refuses it, too; this one leaves no entry.
///
/// **Errors** there are too many learners; no linearizable view.
async fn check_learners(desk: &Desk, peer_urls: &[String]) -> Result<(), Error> {
    let is_over = || {
        let members = &desk.shared.cluster.load().members;
        // That the URLs are in use is the earlier refusal, which apply gives.
        let is_taken = members.iter().any(|member| member.peer_urls.iter().any(|url| peer_urls.contains(url)));
        !is_taken && members.iter().filter(|member| member.is_learner).count() >= desk.shared.limits.learners_max
    };
    if !is_over() {
        return Ok(());
    }
    // A learner may have been promoted or removed by another member.
    drop(desk.view(Consistency::Linearizable).await?);
    if is_over() { Err(Error::TooManyLearners) } else { Ok(()) }
}

fn shown(members: &[Member]) -> Vec<pb::Member> {
    members.iter().map(shown_one).collect()
}

fn shown_one(member: &Member) -> pb::Member {
    pb::Member {
        id: member.id,
        name: member.name.clone(),
        peer_ur_ls: member.peer_urls.clone(),
        client_ur_ls: member.client_urls.clone(),
        is_learner: member.is_learner,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_taken_and_written_as_go_does() {
        let of = |texts: &[&str]| parsed(&texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["http://b:1", " HTTPS://a:2 "]).unwrap(), ["http://b:1", "https://a:2"]);
        for bad in [&[][..], &[""], &["http://a"], &["http://a:1", "a:1"], &["http://a:1/"], &["ftp://a:1"]] {
            assert_eq!(of(bad), Err(Error::MemberBadUrls), "{bad:?}");
        }
    }
}
