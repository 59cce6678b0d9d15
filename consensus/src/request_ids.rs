//! Request ids in etcd's scheme.
//!
//! Ids must be unique over members, because every member looks up its waiters by them: 16 bits of the member id, then
//! 48 bits of a counter that starts at the wall clock. No clock is read here: the time is passed in.
//!
//! **Source**: etcd v3.7.1 `pkg/idutil/id.go`.

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
}
