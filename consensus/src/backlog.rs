//! The bound on what waits between proposal and apply.
//!
//! Owns the rule, not the counts: those are the log's and raft-rs's, and are read anew for each step of proposals.
//!
//! **Source**: etcd v3.7.1 `server/etcdserver/util.go exceedsRequestLimit`.

use crate::error::Error;

/// What waits between proposal and apply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backlog {
    /// Committed entries that are not applied.
    pub(crate) entries: u64,
    /// Bytes of all entries, committed or not, that are not applied.
    pub(crate) bytes: u64,
}

impl Backlog {
    /// May an entry of `entry_bytes` be proposed? A single entry always may when nothing waits, however big it is.
    pub(crate) fn check(&self, entry_bytes: u64, entries_max: u64, bytes_max: u64) -> Result<(), Error> {
        if self.entries > entries_max || (self.bytes > 0 && self.bytes.saturating_add(entry_bytes) > bytes_max) {
            return Err(self.refusal());
        }
        Ok(())
    }

    /// The error of a proposal for which there is no room.
    pub(crate) fn refusal(&self) -> Error {
        Error::TooManyRequests { waiting_entries: self.entries, waiting_bytes: self.bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlog_is_bounded_by_entries_and_by_bytes() {
        let backlog = |entries, bytes| Backlog { entries, bytes };
        assert!(backlog(5000, 0).check(1, 5000, 100).is_ok());
        assert!(backlog(5001, 0).check(1, 5000, 100).is_err());
        assert!(backlog(0, 60).check(40, 5000, 100).is_ok());
        assert!(backlog(0, 60).check(41, 5000, 100).is_err());
        assert!(backlog(0, 0).check(1000, 5000, 100).is_ok());
    }
}
