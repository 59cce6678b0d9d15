//! A fault says that a page is not in memory. It names the page's place, and holds the code that takes the page in once
//! it was read.
//!
//! Invariants:
//! - Resolving is idempotent: two readers may fault on the same page and both resolve it.
//! - A fault is made only for a missing page. Looking at a resident page makes none.
//!
//! It knows no payload: the code that makes a fault brings a [`Resolve`], which decodes it. It reads no file
//! (`pages::reader` does).

use std::{iter, sync::Arc};

use crate::{Error, page::Place};

/// Takes in a missing page, into a slot of a tree or into a cache of records.
pub(crate) trait Resolve: Send + Sync {
    /// Checks and decodes the bytes that were read from `place`, and puts the page where the operation will find it.
    ///
    /// **Errors** `Corrupt`, with the segment file (relative to the data directory) and the offset.
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error>;

    /// The same for a scan that began at `_began`; `None` if that makes no difference.
    fn scanning(&self, _began: u32) -> Option<Arc<dyn Resolve>> {
        None
    }

    /// The next pages that a long scan will need after this one, and a resolver that takes in each of them, this page
    /// too, on its own; `None` if no such pages are known.
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
    /// The page at `place` is missing, and `resolver` takes it in.
    pub(crate) fn new(place: Place, resolver: Arc<dyn Resolve>) -> Self {
        Self { place, resolver }
    }

    /// This fault and, for a block, those of the next blocks that a long scan will need. They are neighbours.
    pub fn with_ahead(mut self) -> impl Iterator<Item = Self> {
        let mut ahead = Vec::new();
        let apart = self.resolver.apart().map(|(alone, places)| {
            ahead.extend(places.iter().map(|place| Self::new(*place, Arc::clone(&alone))));
            alone
        });
        self.resolver = apart.unwrap_or(self.resolver);
        iter::once(self).chain(ahead)
    }

    /// The same, for a scan that began at `began` (see [`crate::ReadView::block_reads`]). A block is then kept only if
    /// it was read before, lately or since the scan began.
    pub fn scanning(mut self, began: u32) -> Self {
        if let Some(resolver) = self.resolver.scanning(began) {
            self.resolver = resolver;
        }
        self
    }

    /// The place to read.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Checks and decodes the bytes that were read from [`Fault::place`], and puts the page where the operation will
    /// find it.
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
