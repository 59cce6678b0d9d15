//! What is said when a page is not in memory: where it lies, and what takes it in once it was read.
//!
//! Invariants:
//! - Resolving is idempotent: two readers may fault on the same page and both resolve it.
//! - A fault is made only where a page is missing. Looking at a resident page makes none.
//!
//! It knows no payload: the code that makes a fault brings a [`Resolve`] that decodes it. It reads no file
//! (`pages::reader` does).

use std::{iter, sync::Arc};

use crate::{Error, page::Place};

/// Takes in a page that was missing: a slot of a tree, or a cache of records.
pub(crate) trait Resolve: Send + Sync {
    /// Checks and decodes the bytes read from `place`, and puts the page where the operation will find it.
    ///
    /// **Errors** `Corrupt`, with the segment file (relative to the data directory) and the offset.
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error>;

    /// The same for a scan that began at `_began`; `None` where that makes no difference.
    fn scanning(&self, _began: u32) -> Option<Arc<dyn Resolve>> {
        None
    }

    /// The pages behind this one that a long scan will need next, and what takes each of them in, this one too, on its
    /// own; `None` where none is known.
    fn apart(&self) -> Option<(Arc<dyn Resolve>, &[Place])> {
        None
    }
}

/// What must be read before an operation on a tree or on records can go on.
///
/// The caller reads [`Fault::place`], hands the bytes to [`Fault::resolve`] and tries the operation again.
#[derive(Clone)]
pub struct Fault {
    place: Place,
    resolver: Arc<dyn Resolve>,
}

impl Fault {
    /// What lies at `place` is missing, and `resolver` takes it in.
    pub(crate) fn new(place: Place, resolver: Arc<dyn Resolve>) -> Self {
        Self { place, resolver }
    }

    /// It and, for a block, those behind it that a long scan will need next: they lie side by side.
    pub fn with_ahead(mut self) -> impl Iterator<Item = Self> {
        let mut ahead = Vec::new();
        let apart = self.resolver.apart().map(|(alone, places)| {
            ahead.extend(places.iter().map(|place| Self::new(*place, Arc::clone(&alone))));
            alone
        });
        self.resolver = apart.unwrap_or(self.resolver);
        iter::once(self).chain(ahead)
    }

    /// The same, for a scan that began at `began` (see [`crate::ReadView::block_reads`]): a block is kept on its
    /// account only if it was read before lately, or since the scan began.
    pub fn scanning(mut self, began: u32) -> Self {
        if let Some(resolver) = self.resolver.scanning(began) {
            self.resolver = resolver;
        }
        self
    }

    /// What to read.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Checks and decodes the bytes read from [`Fault::place`] and puts the page where the operation will find it.
    ///
    /// **Errors** `Corrupt`, with the segment file (relative to the data directory) and the offset.
    pub fn resolve(self, envelope: &[u8]) -> Result<(), Error> {
        self.resolver.resolve(self.place, envelope)
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Fault").field(&self.place).finish()
    }
}
