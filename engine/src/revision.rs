//! The store-wide MVCC number.

/// A point in the store's one revision order. `main` counts writing requests, `sub` the changes inside one request.
///
/// **Units** both are etcd's signed 64-bit counters. A fresh store is at main 1; the first write makes main 2.
/// **Source** etcd `server/storage/mvcc/revision.go`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision {
    /// Main revision.
    pub main: i64,
    /// Position of the change inside its main revision, from 0.
    pub sub: i64,
}

impl Revision {
    /// Sorts before every revision of a store.
    pub const MIN: Self = Self { main: 0, sub: 0 };
    /// Sorts after every revision of a store.
    pub const MAX: Self = Self { main: i64::MAX, sub: i64::MAX };

    /// The revision `main/sub`.
    pub const fn new(main: i64, sub: i64) -> Self {
        Self { main, sub }
    }
}
