//! Runs on: connection core.
//!
//! Maintenance Downgrade: an operator decides that the cluster's version goes down by one minor, so that members of
//! that release can take part, or takes that back. Who has the version follow is `cores::versions`.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/v3_server.go`, `version/version.go`, `version/downgrade.go`,
//! `cluster_util.go` (`convertToClusterVersion`).

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{self as pb, downgrade_request::DowngradeAction},
    internal::Kind,
    membershippb::DowngradeInfoSetRequest,
};

use super::{
    desk::{Consistency, Desk},
    propose::propose,
};
use crate::{
    error::Error,
    protobuf::framed,
    quota::Purpose,
    shared::{Minor, minor_of},
};

/// Whether a cluster of version `from` may go to `to`.
pub fn is_one_down(from: Minor, to: Minor) -> bool {
    from.1.checked_sub(1).is_some_and(|minor| to == (from.0, minor))
}

/// Answers Downgrade.
///
/// **Errors** a target that is no version, or not the one below; a downgrade under way; those of proposing and of a
/// linearizable read.
pub(super) async fn serve(desk: &Desk, request: pb::DowngradeRequest) -> Result<Bytes, Error> {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Validate) => validate(desk, &request.version).await.map(drop)?,
        Ok(DowngradeAction::Enable) => {
            if let Err(error) = enable(desk, &request.version).await {
                tracing::warn!(target = request.version, %error, "reject downgrade request");
                return Err(error);
            }
        }
        // As in etcd, the answer does not tell whether there was anything to take back.
        Ok(DowngradeAction::Cancel) => {
            if let Err(error) = cancel(desk).await {
                tracing::warn!(%error, "failed to cancel downgrade");
            }
        }
        Err(_unknown) => return Err(Error::UnknownAction),
    }
    let decided = desk.shared.cluster.load().version.clone().unwrap_or_default();
    let version = minor_of(&decided).map_or(decided, |(major, minor)| format!("{major}.{minor}"));
    Ok(framed(&pb::DowngradeResponse { header: Some(desk.newest_header()), version }))
}

async fn validate(desk: &Desk, target: &str) -> Result<Minor, Error> {
    let target = parse(target).ok_or(Error::DowngradeFormat)?;
    if desk.shared.cluster.load().version.is_none() {
        return Err(Error::NoClusterVersion);
    }
    desk.view(Consistency::Linearizable).await?;
    let cluster = desk.shared.cluster.load();
    let decided = cluster.version.as_deref().and_then(minor_of).ok_or(Error::NoClusterVersion)?;
    if !is_one_down(decided, target) {
        return Err(Error::DowngradeTarget);
    }
    if cluster.downgrade.as_ref().is_some_and(|known| known.is_enabled) {
        return Err(Error::DowngradeInProgress);
    }
    Ok(target)
}

async fn enable(desk: &Desk, target: &str) -> Result<(), Error> {
    let (major, minor) = validate(desk, target).await?;
    set(desk, DowngradeInfoSetRequest { enabled: true, ver: format!("{major}.{minor}.0") }).await
}

async fn cancel(desk: &Desk) -> Result<(), Error> {
    desk.view(Consistency::Linearizable).await?;
    if desk.shared.cluster.load().downgrade.as_ref().is_none_or(|known| !known.is_enabled) {
        return Err(Error::NoDowngrade);
    }
    set(desk, DowngradeInfoSetRequest::default()).await
}

async fn set(desk: &Desk, request: DowngradeInfoSetRequest) -> Result<(), Error> {
    let draft = desk.draft(Kind::DowngradeInfoSet, &request.encode_to_vec())?;
    propose(desk, draft, Purpose::Other).await.map(drop)
}

/// Major and minor of a version, or of its first two numbers.
fn parse(text: &str) -> Option<Minor> {
    dotted(text).or_else(|| dotted(&format!("{text}.0")))
}

/// Three numbers with dots between them, and perhaps what names a build.
fn dotted(text: &str) -> Option<Minor> {
    let is_named = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let (text, build) = text.split_once('+').unwrap_or((text, ""));
    let (text, stage) = text.split_once('-').unwrap_or((text, ""));
    let numbers: Option<Vec<u64>> = text.split('.').map(|number| number.parse().ok()).collect();
    match numbers?[..] {
        [major, minor, _] if is_named(build) && is_named(stage) => Some((major, minor)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_read_as_etcd_reads_it() {
        for (text, expected) in [
            ("3.6.0", Some((3, 6))),
            ("3.6", Some((3, 6))),
            ("3.6.14-rc.1+build.5", Some((3, 6))),
            ("", None),
            ("3", None),
            ("v3.6.0", None),
            ("3.6.0.1", None),
            ("3.6.x", None),
            ("3.-6.0", None),
            ("3.6.0-rc_1", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!((minor_of("3.6.16"), minor_of("3"), minor_of("x.1")), (Some((3, 6)), None, None));
        assert!(is_one_down((3, 7), (3, 6)) && !is_one_down((3, 7), (3, 7)) && !is_one_down((3, 7), (3, 5)));
        assert!(!is_one_down((4, 0), (3, 9)));
    }
}
