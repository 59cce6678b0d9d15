//! Runs on: connection core.
//!
//! Notes about a request that is under way: when raft and apply handled it, and how long it waited for pages.
//!
//! `Desk::current` holds the notes of the request that is being polled. [`traced`] puts them there before each poll and
//! takes them away after it. So everything that a handler calls may add notes, and no handler knows of them.

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;

/// When a proposal passed each of its stations, since the process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// Raft took it.
    pub proposed: Duration,
    /// It was durable and handed to apply.
    pub committed: Duration,
    /// It was applied; zero if it never was.
    pub applied: Duration,
}

impl Stamps {
    /// Returns the stamps, if the proposal has passed all stations.
    pub fn passed(self) -> Option<Self> {
        (self.applied > Duration::ZERO).then_some(self)
    }
}

/// See the head of this file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The stamps of its proposal, if it was proposed and answered.
    pub stamps: Option<Stamps>,
    /// Time it waited for pages.
    pub loading: Duration,
}

/// Names of the phases, in the order in which a request passes them. `read` is the whole time of a request that only
/// reads.
pub const PHASES: [&str; 5] = ["queue", "wal", "apply", "send", "read"];

/// How long a request spent in each of [`PHASES`].
pub type Phases = [Duration; PHASES.len()];

impl Trace {
    /// The phases of a request that began and ended at these times.
    pub fn phases(&self, began: Duration, ended: Duration) -> Phases {
        let Some(Stamps { proposed, committed, applied }) = self.stamps else {
            return [Duration::ZERO, Duration::ZERO, Duration::ZERO, Duration::ZERO, ended.saturating_sub(began)];
        };
        let between = |from: Duration, to: Duration| to.saturating_sub(from);
        let (queue, wal) = (between(began, proposed), between(proposed, committed));
        [queue, wal, between(committed, applied), between(applied, ended), Duration::ZERO]
    }
}

pin_project! {
    /// A future whose notes are in `current` while it is polled. No other future's notes are there then.
    ///
    /// It is written by hand because every call has such a future. An async block would hold `future` twice: where it
    /// was, and where it is polled.
    pub struct Traced<'a, F> {
        current: &'a Cell<Trace>,
        trace: Trace,
        #[pin]
        future: F,
    }
}

/// Runs `future`. Returns its result, and the notes that were taken meanwhile.
pub fn traced<F: Future>(current: &Cell<Trace>, future: F) -> Traced<'_, F> {
    Traced { current, trace: Trace::default(), future }
}

impl<F> Traced<'_, F> {
    /// The notes so far.
    pub fn notes(&self) -> Trace {
        self.trace
    }
}

impl<F: Future> Future for Traced<'_, F> {
    type Output = (F::Output, Trace);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        this.current.set(*this.trace);
        let polled = this.future.poll(cx);
        *this.trace = this.current.take();
        polled.map(|result| (result, *this.trace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_of_a_request_add_up_to_its_time() {
        let us = Duration::from_micros;
        let stamps = Stamps { proposed: us(15), committed: us(90), applied: us(100) };
        let trace = Trace { stamps: Some(stamps), loading: us(3) };
        assert_eq!(trace.phases(us(10), us(120)), [5, 75, 10, 20, 0].map(us));
        assert_eq!(Trace::default().phases(us(10), us(120)), [0, 0, 0, 0, 110].map(us));
    }

    #[tokio::test]
    async fn notes_of_requests_that_take_turns_are_kept_apart() {
        let current = Cell::default();
        let note = |ms: u64| {
            let current = &current;
            async move {
                for _ in 0..3 {
                    let before: Trace = current.get();
                    current.set(Trace { loading: before.loading + Duration::from_millis(ms), ..before });
                    tokio::task::yield_now().await;
                }
            }
        };
        let (one, two) = tokio::join!(traced(&current, note(1)), traced(&current, note(10)));
        assert_eq!((one.1.loading, two.1.loading), (Duration::from_millis(3), Duration::from_millis(30)));
        assert_eq!(current.get(), Trace::default());
    }
}
