//! Runs on: connection core.
//!
//! The time that a client gives its call, and the leader that it wants all that time. A call without a deadline costs
//! one comparison each time that it is polled.
//!
//! A client that gave a deadline mostly ends its call by itself when its time is over, which is about when it is over
//! here. So a call that its client ends that near to its deadline is taken for one whose time was over.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;

use super::{
    call::Call,
    deadlines::NEVER,
    desk::{Desk, EXPIRE_EVERY},
    leaderless::Lost,
};
use crate::{
    error::Error,
    insight::trace::{Stamps, Trace},
    method::{Flow, Method},
};

/// The part of its time that a client may leave early, and still be taken for one that left because it was over.
const NEAR: u32 = 8;

/// The deadline of a call under way, or of something that it waits for.
pub(super) struct Due<'a> {
    desk: &'a Desk,
    deadline: Duration,
    /// Its place in the core's deadlines.
    place: Option<usize>,
}

impl<'a> Due<'a> {
    /// The deadline of `call`.
    pub(super) fn of(desk: &'a Desk, call: &Call) -> Self {
        Self::at(desk, call.deadline)
    }

    fn at(desk: &'a Desk, deadline: Duration) -> Self {
        Self { desk, deadline, place: None }
    }

    /// Ready when the call's time is over.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.deadline == NEVER {
            return Poll::Pending;
        }
        if self.desk.ticked() >= self.deadline {
            return Poll::Ready(());
        }
        match self.place {
            None => self.place = Some(self.desk.deadlines.add(self.deadline, cx.waker().clone())),
            Some(place) => self.desk.deadlines.renew(place, cx.waker()),
        }
        Poll::Pending
    }
}

impl Drop for Due<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.desk.deadlines.remove(place);
        }
    }
}

/// Waits until `deadline`, or a little longer.
pub(super) async fn passed(desk: &Desk, deadline: Duration) {
    let mut due = Due::at(desk, deadline);
    poll_fn(|cx| due.poll(cx)).await;
}

/// Whether the time of `call`, whose client has just left, was as good as over.
pub(super) fn was_over(desk: &Desk, call: &Call) -> bool {
    if call.deadline == NEVER {
        return false;
    }
    let given = call.deadline.saturating_sub(call.caller.began);
    desk.clock.now() + (given / NEAR).min(EXPIRE_EVERY) >= call.deadline
}

/// What ends a unary call whose time is over. As in etcd, what waits for its entry "timed out".
pub(super) fn over(method: Method) -> Error {
    match method {
        Method::Put
        | Method::Txn
        | Method::DeleteRange
        | Method::Compact
        | Method::LeaseGrant
        | Method::LeaseRevoke
        | Method::MemberAdd
        | Method::MemberRemove
        | Method::MemberUpdate
        | Method::MemberPromote
        | Method::Alarm => Error::Timeout,
        Method::MoveLeader => Error::LeaderTransferTimeout,
        _ => Error::DeadlineExceeded,
    }
}

/// The notes of a unary call that was given up. What is proposed has waited for its entry all the while.
pub(super) fn waited(desk: &Desk, call: &Call, notes: Trace) -> Trace {
    if notes.stamps.is_some() || over(call.method) != Error::Timeout {
        return notes;
    }
    let now = desk.clock.now();
    Trace { stamps: Some(Stamps { proposed: call.caller.began, committed: now, applied: now }), ..notes }
}

pin_project! {
    /// See [`within`].
    pub(super) struct Within<'a, F> {
        due: Due<'a>,
        call: &'a Call,
        lost: Option<Lost<'a>>,
        #[pin]
        work: F,
    }
}

/// Does `work` as long as its call has time. A stream that wants a leader ends when there is none for too long.
///
/// **Errors** those of the work; the call's time is over, also if the client left because it was; no leader.
pub(super) fn within<'a, F: Future>(desk: &'a Desk, call: &'a Call, work: F) -> Within<'a, F> {
    let is_bound = call.wants_leader && call.method.flow() != Flow::Unary;
    let lost = is_bound.then(|| Lost::new(&desk.leaderless));
    Within { due: Due::of(desk, call), call, lost, work }
}

impl<T, F: Future<Output = Result<T, Error>>> Future for Within<'_, F> {
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.work.poll(cx) {
            Poll::Ready(Err(Error::Canceled)) if was_over(this.due.desk, this.call) => {
                Poll::Ready(Err(Error::DeadlineExceeded))
            }
            Poll::Pending => {
                if let Some(lost) = this.lost
                    && lost.poll(cx).is_ready()
                {
                    return Poll::Ready(Err(Error::NoLeader));
                }
                this.due.poll(cx).map(|()| Err(Error::DeadlineExceeded))
            }
            ready => ready,
        }
    }
}
