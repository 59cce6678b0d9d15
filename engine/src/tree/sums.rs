//! What a parent knows about everything below a child.

/// What a parent knows about everything below a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Keys with a live newest version; in the meta tree, entries.
    pub live: u64,
    /// Bytes of the records of those versions in the answer to a Range, each after its tag and length; in the meta
    /// tree, bytes of keys and values. **Units** bytes.
    pub live_bytes: u64,
    /// All versions.
    pub versions: u64,
    /// The smallest compact revision at which something below can be dropped; `i64::MAX` for never.
    pub droppable_at: i64,
}

impl Sums {
    pub(crate) const ZERO: Self = Self { live: 0, live_bytes: 0, versions: 0, droppable_at: i64::MAX };

    pub(crate) fn add(&mut self, other: &Self) {
        self.live += other.live;
        self.live_bytes += other.live_bytes;
        self.versions += other.versions;
        self.droppable_at = self.droppable_at.min(other.droppable_at);
    }
}
