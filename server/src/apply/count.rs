//! Runs on: apply core.
//!
//! Counts the operations of applied entries, wherever they are in a txn.

use proto::{etcdserverpb as pb, etcdserverpb::response_op::Response};

use super::outcome::Outcome;
use crate::{error::Error, metrics::counters::CommitCounters, watch::batch::Event};

/// The operations of one entry.
#[derive(Default)]
struct Operations {
    puts: u64,
    deletes: u64,
    ranges: u64,
}

impl Operations {
    fn add_txn(&mut self, txn: &pb::TxnResponse) {
        for response in txn.responses.iter().filter_map(|op| op.response.as_ref()) {
            match response {
                Response::ResponsePut(_) => self.puts += 1,
                Response::ResponseDeleteRange(_) => self.deletes += 1,
                Response::ResponseRange(_) => self.ranges += 1,
                Response::ResponseTxn(nested) => self.add_txn(nested),
            }
        }
    }
}

/// What an entry wrote.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Keys that it deleted.
    pub deleted: u64,
    /// Bytes of the keys and values that it put. **Units** bytes.
    pub put_bytes: u64,
}

impl Written {
    /// What `events` tell.
    pub(super) fn of(events: &[Event]) -> Self {
        let mut written = Self::default();
        for record in events.iter().map(Event::record) {
            if record.is_tombstone {
                written.deleted += 1;
            } else {
                written.put_bytes += (record.key.len() + record.value.len()) as u64;
            }
        }
        written
    }
}

/// Counts an entry that was applied with this result and wrote this. `is_own` if this member proposed it for itself.
pub(super) fn applied(counters: &CommitCounters, result: &Result<Outcome, Error>, written: Written, is_own: bool) {
    let Ok(outcome) = result else { return };
    let mut operations = Operations::default();
    match outcome {
        Outcome::Put { .. } => operations.puts = 1,
        Outcome::DeleteRange(_) => operations.deletes = 1,
        Outcome::Txn(response) => operations.add_txn(response),
        Outcome::LeaseGrant { ttl, .. } => {
            counters.leases_granted.add(1);
            counters.lease_ttl.observe(u64::try_from(*ttl).unwrap_or(0));
        }
        Outcome::LeaseRevoke { .. } => {
            operations.deletes = written.deleted;
            counters.leases_revoked.add(1);
            counters.leases_expired.add(u64::from(is_own));
        }
        Outcome::Compaction { .. }
        | Outcome::Alarm { .. }
        | Outcome::Members(_)
        | Outcome::Users { .. }
        | Outcome::Internal => {}
    }
    counters.put_bytes.add(written.put_bytes);
    let Operations { puts, deletes, ranges } = operations;
    counters.puts.add(puts);
    counters.deletes.add(deletes);
    counters.ranges.add(ranges);
    counters.txns.add(u64::from(puts + deletes + ranges > 1));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::histogram::Count;

    #[test]
    fn operations_are_counted_wherever_in_a_txn_they_stand() {
        let op = |response| pb::ResponseOp { response: Some(response) };
        let put = || op(Response::ResponsePut(pb::PutResponse::default()));
        let range = || op(Response::ResponseRange(pb::RangeResponse::default()));
        let inner = pb::TxnResponse { responses: vec![put(), range()], ..Default::default() };
        let delete = op(Response::ResponseDeleteRange(pb::DeleteRangeResponse::default()));
        let responses = vec![put(), delete, op(Response::ResponseTxn(inner))];
        let counters = CommitCounters::default();
        let txn = pb::TxnResponse { responses, ..Default::default() };
        applied(&counters, &Ok(Outcome::Txn(Box::new(txn))), Written::default(), false);
        applied(&counters, &Ok(Outcome::Put { revision: 2, previous: None }), Written::default(), false);
        applied(&counters, &Err(Error::LeaseNotFound), Written::default(), false);
        let counts = [&counters.puts, &counters.deletes, &counters.ranges, &counters.txns].map(Count::get);
        assert_eq!(counts, [3, 1, 1, 1]);
    }
}
