//! Runs on: connection core.
//!
//! Txn: a txn that only reads is answered here. Any other goes through the log.

use bytes::Bytes;
use engine::ReadView;
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{request_op::Request as Op, response_op::Response},
    internal::Request,
};

use super::{
    desk::{Consistency, Desk, Draft},
    propose::propose,
};
use crate::{
    apply::outcome::Outcome,
    error::Error,
    kv::{
        check, range,
        txn::{branch, check_range, decide, inner_header, is_read_only, is_serializable},
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
    let outcome = propose(desk, draft, Purpose::of_cost(cost)).await?;
    let Outcome::Txn(mut response) = outcome else { unreachable!("a txn was done, not {outcome:?}") };
    desk.complete(&mut response.header);
    framed_answer(&*response)
}

async fn read(desk: &Desk, request: &pb::TxnRequest) -> Result<Bytes, Error> {
    let view = desk.view(Consistency::of(is_serializable(request))).await?;
    let path = desk.step_through(&view, |view, _| decide(view, request).map(Some)).await?;
    let succeeded = path[0];
    let ops = branch(request, succeeded);
    for op in ops {
        if let Some(Op::RequestRange(request)) = &op.request {
            check_range(&view, request)?;
        }
    }
    desk.counters.ranges.add(ops.len() as u64);
    desk.counters.txns.add(u64::from(ops.len() > 1));
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let Some(Op::RequestRange(request)) = &op.request else { unreachable!("the txn only reads") };
        let response = Some(Response::ResponseRange(read_range(desk, &view, request).await?));
        responses.push(pb::ResponseOp { response });
    }
    framed_answer(&pb::TxnResponse { header: Some(desk.header(view.revision())), succeeded, responses })
}

async fn read_range(desk: &Desk, view: &ReadView, request: &pb::RangeRequest) -> Result<pb::RangeResponse, Error> {
    let mut job = range::Job::new(view, request.clone())?;
    let mut response = desk.step_through(view, |view, budget| job.step(view, budget)).await?;
    response.header = Some(inner_header(job.header_revision));
    Ok(response)
}
