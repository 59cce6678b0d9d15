//! Runs on: connection core.
//!
//! Range: how a call is answered. One key is answered at once, and a small answer is built whole. A large answer is
//! counted first, and then written as fast as the client takes it.
//!
//! - `scan`: the keys of a range at a held revision, piece by piece
//! - `large`: an answer that is longer than one piece
//! - `stream`: RangeStream
//!
//! **Source** etcd v3.7.1 `server/etcdserver/txn/range.go`.

use std::sync::Arc;

use bytes::Bytes;
use engine::{KeyRange, Outline, ReadView};
use proto::etcdserverpb as pb;

use self::{
    large::{Frame, Large, PIECE_BYTES, PIECE_KEYS, framed_point, shown_len},
    scan::{Piece, PieceBounds, Scan},
};
use super::{
    body::Body,
    desk::{Consistency, Desk, Reading},
};
use crate::{
    error::Error,
    gathered::Share,
    kv::{
        check, keys,
        range::{Job, LEAVES_AHEAD_MAX, is_filtered, is_in_key_order, is_point, read_at},
    },
    protobuf::framed_answer,
};

pub mod large;
pub mod scan;
pub mod stream;

/// Answers a Range call.
///
/// **Errors** the static checks; a compacted or a future revision.
pub(super) async fn serve(desk: &Desk, request: &pb::RangeRequest) -> Result<Body, Error> {
    check::range(request)?;
    if is_point(request) {
        return point(desk, request).await.map(Body::Whole);
    }
    if !request.count_only && is_in_key_order(request) {
        return Box::pin(scan(desk, request)).await;
    }
    Box::pin(gather(desk, request.clone())).await.map(Body::Whole)
}

/// Answers a request that counts only, or wants another order than that of the keys. Sorted keys have to be gathered
/// first.
///
/// **Errors** as [`serve`]; the answer is too large to be gathered.
async fn gather(desk: &Desk, request: pb::RangeRequest) -> Result<Bytes, Error> {
    let mut view = desk.view(Consistency::of(request.serializable)).await?;
    desk.counters.ranges.add(1);
    loop {
        let mut job = Job::new(&view, request.clone(), desk.shared.limits.gathered_bytes_max)?;
        let mut reading = desk.reading(view, job.at);
        let mut share = desk.shared.gathered.share();
        match run(&mut reading, &mut job, &mut share).await {
            Err(Error::Compacted) if !reading.is_held() => {
                view = desk.view(Consistency::of(request.serializable)).await?;
            }
            response => {
                let header = Some(desk.header(job.header_revision));
                return framed_answer(&pb::RangeResponse { header, ..response? }).map(|answer| share.hold(answer));
            }
        }
    }
}

/// Runs a job to its end; what it gathers is added to `share`. Returns the response, whose header is still empty.
///
/// **Errors** the answer is too large to be gathered; as [`Reading::run`].
pub(super) async fn run(
    reading: &mut Reading<'_>,
    job: &mut Job,
    share: &mut Share,
) -> Result<pb::RangeResponse, Error> {
    let before = share.bytes();
    let step = |view: &ReadView, budget: usize| {
        let answer = job.step(view, budget).map_err(|fault| job.wanted(fault, LEAVES_AHEAD_MAX));
        // A step that needs a page has gathered, too.
        match share.grow_to(before + job.bytes()) {
            Ok(()) => answer,
            Err(error) => Ok(Some(Err(error))),
        }
    };
    reading.run(step).await?
}

/// Answers in key order. A small answer is built at once. A large one is counted now and written later.
async fn scan(desk: &Desk, request: &pb::RangeRequest) -> Result<Body, Error> {
    let range = keys(&request.key, &request.range_end);
    let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
    let (mut scan, at, revision) = Scan::new(desk, request, &range).await?;
    // A filter makes the limit apply to what it lets through: the whole range has to be met to know how many keys there
    // are.
    let is_filtered = is_filtered(request);
    let total = if limit.is_some() && !is_filtered { Some(count(desk, &scan, &range, at).await?) } else { None };
    let wanted = limit.unwrap_or(usize::MAX);
    let view = desk.published();
    let mut piece = Piece::default();
    scan.piece(desk, PieceBounds { keys: wanted.min(PIECE_KEYS), bytes: PIECE_BYTES }, &mut piece).await?;
    let mut shown = piece.len();
    let mut len = piece.iter().map(|(_, outline)| shown_len(outline, request.keys_only)).sum::<usize>();
    let mut beyond = 0_u64;
    let goes_on = !piece.is_last && (is_filtered || shown < wanted);
    let is_in_sums = goes_on && view.is_newest(at) && !is_filtered && !request.keys_only;
    if is_in_sums {
        (shown, len) = sums(desk, view, &range, wanted).await?;
        scan.seen = shown as u64;
    } else if goes_on {
        drop(view);
        let each = |outline: &Outline| {
            if shown < wanted {
                shown += 1;
                len += shown_len(outline, request.keys_only);
            } else {
                beyond += 1;
            }
            is_filtered || shown < wanted
        };
        let met = scan.measure(desk, each).await?;
        scan.seen += met;
    }
    let total = total.unwrap_or(scan.seen);
    let more = if is_filtered { beyond > 0 } else { limit.is_some_and(|limit| total > limit as u64) };
    let frame = Frame { header: desk.header_bytes(revision), more, count: i64::try_from(total).expect("counts fit") };
    let is_whole = piece.len() == shown;
    let large = Large::new(scan, piece, frame, (shown, len), request.keys_only)?;
    if is_whole { large.whole(desk).await.map(Body::Whole) } else { Ok(Body::Large(Box::new(large))) }
}

/// Counts the first keys of a range, `wanted` at most, and sums up the lengths of their fields. It reads at the
/// revision of `view`, its newest one.
///
/// **Errors** damaged data.
async fn sums(desk: &Desk, view: Arc<ReadView>, range: &KeyRange, wanted: usize) -> Result<(usize, usize), Error> {
    let (keys, bytes) = desk.step_through(&view, |view, _| view.sums(range, wanted as u64).map(Some)).await?;
    let size = |sum| usize::try_from(sum).expect("sums fit in 64 bits");
    Ok((size(keys), size(bytes)))
}

/// Keys of the range of a scan at its revision, in O(log n) where that is the newest.
///
/// **Errors** as [`Scan::piece`].
pub(super) async fn count(desk: &Desk, scan: &Scan, range: &KeyRange, at: i64) -> Result<u64, Error> {
    let view = desk.published();
    if view.is_newest(at) {
        return desk.step_through(&view, |view, _| view.count(range, at).map(Some)).await;
    }
    let mut count = view.counter(range, at);
    drop(view);
    desk.step_along(scan.floor(), |view, budget| {
        view.lead_count(&mut count);
        count.step(budget).map_err(|fault| count.wanted(fault, LEAVES_AHEAD_MAX))
    })
    .await
}

/// Answers the most frequent read, of one key, where nothing has to be waited for: neither a view nor a page.
///
/// **Errors** as [`serve`].
pub(super) fn at_once(desk: &Desk, request: &pb::RangeRequest) -> Option<Result<Bytes, Error>> {
    if !is_point(request) || check::range(request).is_err() {
        return None;
    }
    let view = match desk.view_at_once(Consistency::of(request.serializable))? {
        Ok(view) => view,
        Err(error) => return Some(Err(error)),
    };
    let at = match read_at(&view, request.revision) {
        Ok(at) => at,
        Err(error) => {
            desk.counters.ranges.add(1);
            return Some(Err(error));
        }
    };
    let record = view.get(&request.key, at).ok()?;
    desk.counters.ranges.add(1);
    Some(Ok(framed_point(desk.header_bytes(view.revision()), record.as_ref())))
}

async fn point(desk: &Desk, request: &pb::RangeRequest) -> Result<Bytes, Error> {
    let view = desk.view(Consistency::of(request.serializable)).await?;
    desk.counters.ranges.add(1);
    let at = read_at(&view, request.revision)?;
    let record = desk.step_through(&view, |view, _| view.get(&request.key, at).map(Some)).await?;
    Ok(framed_point(desk.header_bytes(view.revision()), record.as_ref()))
}
