//! Runs on: connection core.
//!
//! The way of a request into the log. What it will need is read before it is proposed. So apply rarely waits for the
//! disk, and a request that needs a page that cannot be read fails here, for its client alone, and nothing is logged.
//!
//! Invariant: it only looks. What is read here may be evicted before apply comes to it, and a txn may take a branch
//! that other writes decide meanwhile. Apply looks again.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use engine::{Fault, ReadView};
use proto::internal::Request;

use super::desk::{Desk, Draft};
use crate::{
    apply::{
        needs::{self, Needed},
        outcome::Outcome,
        prefetch,
    },
    error::Error,
    quota::Purpose,
};

/// Looks at one request: one for each level of the trees, some for its records, and some more for what is evicted
/// meanwhile. Beyond that, the request is not proposed.
const LOOKS_MAX: usize = 256;

/// Pages that are read at once.
const FAULTS_MAX: usize = 64;

/// Steps that a walk makes on one view. A view that is held for longer would keep in memory what is evicted meanwhile.
const STEPS_PER_VIEW: usize = 16;

/// Sends a request through the log and waits for its result. `purpose` says whether the request grows the store.
///
/// **Errors** the errors of the entry; the request is too large; it needs a page that cannot be read; there are too
/// many requests; no answer in time.
pub(super) async fn propose(desk: &Desk, draft: Draft, purpose: Purpose) -> Result<Outcome, Error> {
    bring_in(desk, &draft).await?;
    desk.send(draft, purpose).await
}

/// As [`propose`], for a request whose answer may be large. `frame` makes the answer, whose memory is counted until the
/// client has taken it.
///
/// **Errors** as [`propose`], and those of `frame`.
pub(super) async fn propose_shown(
    desk: &Desk,
    draft: Draft,
    purpose: Purpose,
    frame: impl FnOnce(Outcome) -> Result<Bytes, Error>,
) -> Result<Bytes, Error> {
    bring_in(desk, &draft).await?;
    let (outcome, share) = desk.send_shown(draft, purpose).await?;
    let answer = frame(outcome)?;
    Ok(match share {
        Some(share) => share.hold(answer),
        None => answer,
    })
}

/// Reads what a request will need, as far as it is not in memory. It is for puts, whose futures must be small; they
/// send the request themselves.
///
/// **Errors** the request is too large; it needs a page that cannot be read.
pub(super) async fn bring_in(desk: &Desk, draft: &Draft) -> Result<(), Error> {
    if draft.entry_len() > desk.shared.limits.request_bytes_max {
        return Err(Error::RequestTooLarge);
    }
    if !is_at_hand(desk, draft.request()) {
        // Boxed because it is rare: what a request needs is mostly in memory.
        Box::pin(fetch(desk, draft.request())).await?;
    }
    Ok(())
}

/// Whether everything that `request` needs is in memory. What deletes or compares many keys is never at hand.
fn is_at_hand(desk: &Desk, request: &Request) -> bool {
    let has_all = |view: &ReadView| {
        let is_whole = match request {
            Request::LeaseRevoke(revoke) => matches!(needs::look_at_attached(view, revoke.id, None), Ok(None)),
            _ => true,
        };
        is_whole && needs::missing(view, has_leases(desk), request, 1).is_empty()
    };
    desk.shared.view.with(|view| has_all(view)) && needs::ranges(request).is_empty()
}

fn has_leases(desk: &Desk) -> bool {
    desk.shared.has_leases.load(Ordering::Acquire)
}

/// Reads what `request` needs.
///
/// **Errors** a page cannot be read; this has been reported.
async fn fetch(desk: &Desk, request: &Request) -> Result<(), Error> {
    let mut looks = 0;
    loop {
        let view = desk.published();
        let mut faults = needs::missing(&view, has_leases(desk), request, FAULTS_MAX);
        if faults.is_empty() {
            break;
        }
        looks += 1;
        if looks > LOOKS_MAX {
            // Its pages leave memory faster than they come. In the log, it would have apply wait as long.
            return Err(Error::Timeout);
        }
        let ahead = prefetch::faults_of(&view, desk.shared.view.unreadable(), request);
        faults.extend(ahead);
        drop(view);
        faults.sort_by_key(Fault::place);
        faults.dedup_by_key(|fault| fault.place());
        desk.load_all(faults).await?;
    }
    if let Request::LeaseRevoke(revoke) = request {
        fetch_attached(desk, revoke.id).await?;
    }
    for needed in needs::ranges(request) {
        let mut last_key = None;
        while let Some(key) = fetch_piece(desk, &needed, last_key.as_ref()).await? {
            last_key = Some(key);
        }
    }
    Ok(())
}

/// Reads what the revocation of `lease` needs.
///
/// **Errors** a page cannot be read; this has been reported.
async fn fetch_attached(desk: &Desk, lease: i64) -> Result<(), Error> {
    let mut last = None;
    loop {
        let looked = needs::look_at_attached(&desk.published(), lease, last.as_ref());
        match looked {
            Ok(None) => return Ok(()),
            Ok(next) => last = next,
            Err(fault) => desk.load_all([fault]).await?,
        }
        tokio::task::yield_now().await;
    }
}

/// Reads what is `needed` after `last_key`, as far as one view may be held. Returns the last key that was looked at,
/// or `None` at the end of the range.
async fn fetch_piece(desk: &Desk, needed: &Needed, last_key: Option<&Bytes>) -> Result<Option<Bytes>, Error> {
    let view = desk.published();
    let mut walk = needs::Walk::new(&view, needed, last_key);
    let mut steps = 0;
    while steps < STEPS_PER_VIEW {
        match walk.step(desk.shared.limits.scan_entries_per_turn) {
            Ok(true) => return Ok(None),
            Ok(false) => {
                steps += 1;
                tokio::task::yield_now().await;
            }
            Err(faults) => desk.load_all(faults).await?,
        }
    }
    Ok(Some(walk.last_key().expect("each step looks at a key")))
}
