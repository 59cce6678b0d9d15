//! Runs on: connection core.
//!
//! The streams of one core whose clients want them to end when no leader is known (`hasleader`): such a client goes to
//! another member. A stream costs more to make anew than a call, so it ends only when there has been no leader for
//! some time.
//!
//! Invariants:
//! - `looks` counts the last looks in which no leader was known, one in each election timeout.
//! - `endings` counts how often all streams were ended. One that began before an ending is over.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/interceptor.go` `monitorLeader`.

use std::{
    cell::{Cell, RefCell},
    task::{Context, Poll, Waker},
    time::Duration,
};

use slab::Slab;

/// Looks without a leader after which streams end. **Source** etcd v3.7.1 `maxNoLeaderCnt`.
const LOOKS_MAX: u32 = 3;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Leaderless {
    looked_at: Cell<Duration>,
    looks: Cell<u32>,
    endings: Cell<u64>,
    streams: RefCell<Slab<Waker>>,
}

impl Leaderless {
    /// Looks whether there is a leader, if an election timeout has passed since the last look. Ends the streams if
    /// there has been none for long enough.
    pub fn look(&self, now: Duration, election_timeout: Duration, has_leader: bool) {
        if now.saturating_sub(self.looked_at.get()) < election_timeout {
            return;
        }
        self.looked_at.set(now);
        self.looks.set(if has_leader { 0 } else { self.looks.get().saturating_add(1) });
        if self.looks.get() >= LOOKS_MAX {
            self.endings.set(self.endings.get() + 1);
            self.streams.borrow().iter().for_each(|(_, waker)| waker.wake_by_ref());
        }
    }
}

/// A stream that ends when there is no leader for too long.
pub(super) struct Lost<'a> {
    of: &'a Leaderless,
    endings: u64,
    /// Its place among the streams.
    place: Option<usize>,
}

impl<'a> Lost<'a> {
    /// A stream that begins now.
    pub(super) fn new(of: &'a Leaderless) -> Self {
        Self { of, endings: of.endings.get(), place: None }
    }

    /// Ready when the stream is over.
    ///
    /// **Bounds** a stream is here once, so the streams of all connections bound the places.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.of.endings.get() != self.endings {
            return Poll::Ready(());
        }
        let streams = &mut *self.of.streams.borrow_mut();
        match self.place {
            None => self.place = Some(streams.insert(cx.waker().clone())),
            Some(place) => streams[place].clone_from(cx.waker()),
        }
        Poll::Pending
    }
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            drop(self.of.streams.borrow_mut().remove(place));
        }
    }
}
