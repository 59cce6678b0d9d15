//! Request ids in etcd's scheme, and the bound on what may wait between proposal and apply.
//!
//! Owns the rule, not the counts: those are the log's. Ids must be unique over members, because every member looks up
//! its waiters by them: 16 bits of the member id, then 48 bits of a counter that starts at the wall clock. No clock is
//! read here: the time is passed in.
//!
//! **Source**: etcd v3.7.1 `pkg/idutil/id.go`, `server/etcdserver/util.go exceedsRequestLimit`.

use crate::Error;

const COUNTER_BITS: u32 = 48;
const CLOCK_BITS: u32 = 40;
const COUNTER_MASK: u64 = (1 << COUNTER_BITS) - 1;
const CLOCK_MASK: u64 = (1 << CLOCK_BITS) - 1;

// 40 bits of milliseconds (34 years) and 8 bits for ids made within one: a restart within 34 years that made fewer than
// 256 ids per millisecond since its last start never gives an id twice.
const _: () = assert!(COUNTER_BITS - CLOCK_BITS == 8);

/// Generator of request ids; also of ids for leases that the server chooses.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    counter: u64,
}

impl RequestIds {
    /// Starts at `now_unix_ms`, the wall clock at the member's start. **Units**: milliseconds since 1970.
    pub fn new(member_id: u64, now_unix_ms: u64) -> RequestIds {
        RequestIds { prefix: (member_id & 0xffff) << COUNTER_BITS, counter: (now_unix_ms & CLOCK_MASK) << 8 }
    }

    /// The next id.
    pub fn next_id(&mut self) -> u64 {
        self.counter = self.counter.wrapping_add(1) & COUNTER_MASK;
        self.prefix | self.counter
    }

    /// The next id for a lease: positive as an `i64`.
    pub fn next_lease_id(&mut self) -> i64 {
        (self.next_id() & (u64::MAX >> 1)).cast_signed()
    }
}

/// What waits between proposal and apply, and how much of it may.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    /// Committed entries that are not applied.
    pub(crate) entries: u64,
    /// Bytes of all entries, committed or not, that are not applied.
    pub(crate) bytes: u64,
}

impl Backlog {
    /// May an entry of `entry_bytes` be proposed? A single entry always may when nothing waits, however big it is.
    pub(crate) fn admit(&self, entry_bytes: u64, entries_max: u64, bytes_max: u64) -> Result<(), Error> {
        if self.entries > entries_max || (self.bytes > 0 && self.bytes.saturating_add(entry_bytes) > bytes_max) {
            return Err(Error::TooManyRequests { waiting_entries: self.entries, waiting_bytes: self.bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_etcd_scheme() {
        // etcd's own test: member 0x12, clock 0x3456 ms -> 0x0012000000345601.
        let mut ids = RequestIds::new(0x12, 0x3456);
        assert_eq!(ids.next_id(), 0x0012_0000_0034_5601);
        assert_eq!(ids.next_id(), 0x0012_0000_0034_5602);
        // Only the low 16 bits of the member id and 40 bits of the clock count.
        let mut ids = RequestIds::new(0xffff_0012, (1 << 40) | 0x3456);
        assert_eq!(ids.next_id(), 0x0012_0000_0034_5601);
    }

    #[test]
    fn lease_ids_are_positive() {
        let mut ids = RequestIds::new(0xffff, u64::MAX);
        for _ in 0..1000 {
            assert!(ids.next_lease_id() > 0);
        }
    }

    #[test]
    fn backlog_is_bounded_by_entries_and_by_bytes() {
        let backlog = |entries, bytes| Backlog { entries, bytes };
        assert!(backlog(5000, 0).admit(1, 5000, 100).is_ok());
        assert!(backlog(5001, 0).admit(1, 5000, 100).is_err());
        assert!(backlog(0, 60).admit(40, 5000, 100).is_ok());
        assert!(backlog(0, 60).admit(41, 5000, 100).is_err());
        assert!(backlog(0, 0).admit(1000, 5000, 100).is_ok());
    }
}
