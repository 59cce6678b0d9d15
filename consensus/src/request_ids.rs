//! Request ids in etcd's scheme, but for where they begin.
//!
//! Ids must be unique over members, because every member looks up its waiters by them: 16 bits of the member id, then
//! 48 bits of a counter. etcd's starts at the wall clock, so a clock that was set back gives ids twice: a machine
//! without a battery begins in 1970 each time, and an entry of its former life would answer the same request of this
//! one. Here the counter starts anywhere.
//!
//! **Source**: etcd v3.7.1 `pkg/idutil/id.go`.

const COUNTER_BITS: u32 = 48;
const COUNTER_MASK: u64 = (1 << COUNTER_BITS) - 1;

/// Generator of request ids; also of ids for leases that the server chooses.
#[derive(Debug)]
pub struct RequestIds {
    prefix: u64,
    counter: u64,
}

impl RequestIds {
    /// Starts behind the low 48 bits of `drawn`, a number that is drawn anew at each start.
    pub fn new(member_id: u64, drawn: u64) -> RequestIds {
        RequestIds { prefix: (member_id & 0xffff) << COUNTER_BITS, counter: drawn & COUNTER_MASK }
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
        let mut ids = RequestIds::new(0x12, 0x0034_5600);
        assert_eq!(ids.next_id(), 0x0012_0000_0034_5601);
        assert_eq!(ids.next_id(), 0x0012_0000_0034_5602);
        // Only the low 16 bits of the member id and 48 bits of the other number count.
        let mut ids = RequestIds::new(0xffff_0012, (1 << 48) | 0x0034_5600);
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
