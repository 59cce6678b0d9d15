//! Runs on: connection core.
//!
//! Txn: a txn that only reads is answered here. Any other goes through the log.

use std::sync::Arc;

use bytes::Bytes;
use engine::ReadView;
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{request_op::Request as Op, response_op::Response},
    internal::Request,
};

use super::{
    desk::{Consistency, Desk, Draft, Reading},
    propose::propose_shown,
    range::run,
};
use crate::{
    apply::outcome::Outcome,
    error::Error,
    gathered::Share,
    kv::{
        check,
        range::Job,
        txn::{Decision, branch, check_range, inner_header, is_read_only, is_serializable},
    },
    protobuf::framed_answer,
    quota::{Purpose, txn_cost},
};

/// Answers Txn.
///
/// **Errors** the static checks, those of its operations and of proposing.
pub(super) async fn serve(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let Request::Txn(request) = draft.request() else { unreachable!("asked for a txn") };
    let cost = txn_cost(request);
    check::txn(request, desk.shared.limits.txn_ops_max)?;
    if is_read_only(request) {
        return Box::pin(read(desk, request)).await;
    }
    let shown = propose_shown(desk, draft, Purpose::of_cost(cost), |outcome| {
        let Outcome::Txn(mut response) = outcome else { unreachable!("a txn was done, not {outcome:?}") };
        desk.complete(&mut response.header);
        framed_answer(&*response)
    });
    // Boxed, or every call would be larger.
    Box::pin(shown).await
}

/// Answers a txn that only reads. All of it is about the state of one moment.
async fn read(desk: &Desk, request: &pb::TxnRequest) -> Result<Bytes, Error> {
    loop {
        let view = desk.view(Consistency::of(is_serializable(request))).await?;
        let at = view.revision();
        let checked = [false, true].map(|succeeded| check_ranges(&view, branch(request, succeeded)));
        let mut reading = desk.reading(Arc::clone(&view), lowest_read(&view, request));
        drop(view);
        let succeeded = match decide(&mut reading, at, request).await {
            Err(Error::Compacted) if !reading.is_held() => continue,
            succeeded => succeeded?,
        };
        checked[usize::from(succeeded)].clone()?;
        let ops = branch(request, succeeded);
        let mut share = desk.shared.gathered.share();
        let responses = match read_all(desk, &mut reading, &mut share, (at, ops)).await {
            Err(Error::Compacted) if !reading.is_held() => continue,
            responses => responses?,
        };
        desk.counters.ranges.add(ops.len() as u64);
        desk.counters.txns.add(u64::from(ops.len() > 1));
        let response = pb::TxnResponse { header: Some(desk.header(at)), succeeded, responses };
        return framed_answer(&response).map(|answer| share.hold(answer));
    }
}

fn ranges(ops: &[pb::RequestOp]) -> impl Iterator<Item = &pb::RangeRequest> {
    ops.iter().map(|op| match &op.request {
        Some(Op::RequestRange(range)) => range,
        _ => unreachable!("the txn only reads"),
    })
}

fn check_ranges(view: &ReadView, ops: &[pb::RequestOp]) -> Result<(), Error> {
    ranges(ops).try_for_each(|range| check_range(view, range))
}

/// The lowest revision that the txn may have to read.
fn lowest_read(view: &ReadView, request: &pb::TxnRequest) -> i64 {
    let ranges = ranges(&request.success).chain(ranges(&request.failure));
    let read = ranges.filter(|range| range.revision > 0 && check_range(view, range).is_ok());
    read.map(|range| range.revision).min().unwrap_or(i64::MAX).min(view.revision())
}

async fn decide(reading: &mut Reading<'_>, at: i64, request: &pb::TxnRequest) -> Result<bool, Error> {
    let mut decision = Decision::default();
    let step = |view: &ReadView, budget: usize| {
        let made = decision.step(view, at, request, budget);
        made.map(|is_made| is_made.then_some(())).map_err(|fault| decision.wanted(view, at, fault))
    };
    reading.run(step).await?;
    Ok(decision.path()[0])
}

async fn read_all(
    desk: &Desk,
    reading: &mut Reading<'_>,
    share: &mut Share,
    (at, ops): (i64, &[pb::RequestOp]),
) -> Result<Vec<pb::ResponseOp>, Error> {
    let max = desk.shared.limits.gathered_bytes_max;
    let mut responses = Vec::with_capacity(ops.len());
    for request in ranges(ops) {
        let mut job =
            Job::at(&reading.view(), (at, request.revision), request.clone(), max.saturating_sub(share.bytes()));
        let response = run(reading, &mut job, share).await?;
        let header = Some(inner_header(at));
        let response = Response::ResponseRange(pb::RangeResponse { header, ..response });
        responses.push(pb::ResponseOp { response: Some(response) });
    }
    Ok(responses)
}
