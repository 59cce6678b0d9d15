//! Runs on: connection core.
//!
//! The same work for many items, some of it under way at once, with the results in the order of the items.
//!
//! Invariants: at most `max` works are under way or wait with a result for an earlier one; `under_way` is in the order
//! of the items.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

/// See the head of this file.
pub(super) struct Abreast<I, W, F: Future> {
    items: I,
    work: W,
    max: usize,
    under_way: VecDeque<Work<F>>,
}

enum Work<F: Future> {
    Runs(Pin<Box<F>>),
    Done(F::Output),
}

impl<I: Iterator, W: Fn(I::Item) -> F, F: Future> Abreast<I, W, F> {
    /// Does `work` for each of `items`, for at most `max` of them at once.
    pub(super) fn new(items: I, max: usize, work: W) -> Self {
        assert!(max > 0, "nothing would ever be done");
        Self { items, work, max, under_way: VecDeque::new() }
    }

    /// The next result; `None` when there are no more.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<F::Output>> {
        while self.under_way.len() < self.max
            && let Some(item) = self.items.next()
        {
            self.under_way.push_back(Work::Runs(Box::pin((self.work)(item))));
        }
        for work in &mut self.under_way {
            if let Work::Runs(running) = work
                && let Poll::Ready(result) = running.as_mut().poll(cx)
            {
                *work = Work::Done(result);
            }
        }
        match self.under_way.pop_front() {
            None => Poll::Ready(None),
            Some(Work::Done(result)) => Poll::Ready(Some(result)),
            Some(running) => {
                self.under_way.push_front(running);
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, task::Waker};

    use tokio::sync::oneshot;

    use super::*;

    #[test]
    fn works_run_side_by_side_within_their_bound_and_end_in_order() {
        let ends = RefCell::new(Vec::new());
        let work = |item: u32| {
            let (end, ended) = oneshot::channel::<()>();
            ends.borrow_mut().push(Some(end));
            async move { ended.await.map(|()| item).unwrap_or_default() }
        };
        let mut abreast = Abreast::new(1..=5, 3, work);
        let mut next = || abreast.poll_next(&mut Context::from_waker(Waker::noop()));
        let end = |at: usize| ends.borrow_mut()[at].take().unwrap().send(()).unwrap();
        assert_eq!((next(), ends.borrow().len()), (Poll::Pending, 3));
        end(1);
        end(2);
        assert_eq!((next(), ends.borrow().len()), (Poll::Pending, 3), "the first one still runs");
        end(0);
        assert_eq!([next(), next(), next()], [1, 2, 3].map(|item| Poll::Ready(Some(item))));
        assert_eq!((next(), ends.borrow().len()), (Poll::Pending, 5));
        end(3);
        end(4);
        assert_eq!([next(), next(), next()], [Poll::Ready(Some(4)), Poll::Ready(Some(5)), Poll::Ready(None)]);
    }
}
