//! Runs on: connection cores, apply core.
//!
//! The memory of answers that are gathered before they are sent, all of a member together: sorted ranges, the ranges of
//! txns, what deletes show, the keys of leases. An answer that streams is not among them.
//!
//! Invariants: what is gathered is counted from its first MiB on until the client has taken it; the sum of all is at
//! most `max` and a step of each core. An answer that would exceed it fails at once: one that waited would hold what it
//! has, and all could wait for each other. A client that does not read what it asked for keeps its share until its
//! connection ends.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;

use crate::error::Error;

/// An answer is counted in units of this. A smaller one is not counted. **Units** bytes.
const UNIT_BYTES: usize = 1 << 20;

/// See the head of this file.
#[derive(Debug)]
pub struct Gathered {
    bytes: AtomicUsize,
    max: usize,
}

impl Gathered {
    /// Nothing is gathered; `max` bytes may be.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), max })
    }

    /// The most that may be gathered. **Units** bytes.
    pub fn max(&self) -> usize {
        self.max
    }

    /// The share of an answer that begins.
    pub fn share(self: &Arc<Self>) -> Share {
        Share { of: Arc::clone(self), bytes: 0, counted: 0 }
    }
}

/// What one answer takes of it, as long as this lives.
#[derive(Debug)]
pub struct Share {
    of: Arc<Gathered>,
    bytes: usize,
    counted: usize,
}

impl Share {
    /// What the answer takes. **Units** bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The answer takes `bytes` now, or has taken more.
    ///
    /// **Errors** `AnswerTooLarge` if it is too large by itself, `TooManyRequests` if it is so beside the others.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Error> {
        let max = self.of.max;
        if bytes > max {
            return Err(Error::AnswerTooLarge { len: bytes, max });
        }
        let more = (bytes / UNIT_BYTES * UNIT_BYTES).saturating_sub(self.counted);
        let fits = |taken: usize| taken.checked_add(more).filter(|sum| *sum <= max);
        if more > 0 && self.of.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_err() {
            return Err(Error::TooManyRequests);
        }
        self.counted += more;
        self.bytes = self.bytes.max(bytes);
        Ok(())
    }

    /// `answer`, which is counted until its last part is gone.
    pub fn hold(self, answer: Bytes) -> Bytes {
        if self.counted == 0 { answer } else { Bytes::from_owner(Held { answer, _share: self }) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let before = self.of.bytes.fetch_sub(self.counted, Ordering::Relaxed);
        assert!(before >= self.counted, "what is given back was taken");
    }
}

struct Held {
    answer: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_share_the_memory_until_their_clients_have_taken_them() {
        let gathered = Gathered::new(8 << 20);
        let taken = || gathered.bytes.load(Ordering::Relaxed);
        let mut first = gathered.share();
        first.grow_to(UNIT_BYTES - 1).unwrap();
        assert_eq!(taken(), 0, "small answers are not counted");
        first.grow_to((5 << 20) + 3).unwrap();
        first.grow_to(7).unwrap();
        assert_eq!((taken(), first.bytes()), (5 << 20, (5 << 20) + 3));
        let mut second = gathered.share();
        second.grow_to(3 << 20).unwrap();
        assert_eq!(second.grow_to(4 << 20), Err(Error::TooManyRequests));
        assert_eq!(second.grow_to(9 << 20), Err(Error::AnswerTooLarge { len: 9 << 20, max: 8 << 20 }));
        let answer = first.hold(Bytes::from_static(b"an answer"));
        let part = answer.slice(3..);
        drop(answer);
        assert_eq!((&part[..], taken()), (&b"answer"[..], 8 << 20), "a part of it is still to be sent");
        drop(part);
        assert_eq!(taken(), 3 << 20);
        second.grow_to(8 << 20).unwrap();
        drop(second);
        assert_eq!(taken(), 0);
    }
}
