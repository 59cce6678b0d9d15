//! Records that no checkpoint has written yet, by revision.

use std::sync::Arc;

use crate::{Record, Revision};

/// The records above the last checkpoint, in revision order; cheap to clone, a clone does not grow.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    chunks: Arc<Vec<Record>>,
}

impl Recent {
    /// The records in revision order.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        self.chunks.iter()
    }

    /// The records from `from` on, in revision order.
    pub fn iter_from(&self, _from: Revision) -> impl Iterator<Item = &Record> {
        self.chunks.iter()
    }

    /// Revision of the first record.
    pub fn first(&self) -> Option<Revision> {
        unimplemented!()
    }

    /// Revision of the last record.
    pub fn last(&self) -> Option<Revision> {
        unimplemented!()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        unimplemented!()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of the lengths of the encoded records. **Units** bytes.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
}
