//! Walks the records of a directory in revision order.
//!
//! Invariants: `next` is the lowest revision not given out yet, so that a call after a fault goes on exactly at the
//! same place. `whole` is the extent that was read last.

use std::sync::Arc;

use super::{directory::Directory, whole::Whole};
use crate::{Fault, Record, Revision};

/// Walks the records of a [`Directory`] in revision order.
#[derive(Debug)]
pub(crate) struct ExtentCursor {
    directory: Arc<Directory>,
    next: Revision,
    whole: Option<(Arc<Whole>, usize)>,
}

impl ExtentCursor {
    /// The stored records of `directory` from `from` on.
    pub(crate) fn new(directory: Arc<Directory>, from: Revision) -> Self {
        Self { directory, next: from, whole: None }
    }

    /// The next record. After a [`Fault`] is resolved, the same call goes on at the same place.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Fault> {
        if self.whole.as_ref().is_none_or(|(whole, position)| *position == whole.len()) {
            let Some(extent) = self.directory.at_or_above(self.next)? else { return Ok(None) };
            let whole = self.directory.whole(extent)?;
            let position = whole.position(self.next);
            assert!(position < whole.len(), "an extent reaches up to its last revision");
            self.whole = Some((whole, position));
        }
        let (whole, position) = self.whole.as_mut().expect("read above");
        let record = whole.record(*position);
        *position += 1;
        assert!(record.revision >= self.next, "records come in revision order");
        self.next = Revision { main: record.revision.main, sub: record.revision.sub + 1 };
        Ok(Some(record))
    }
}
