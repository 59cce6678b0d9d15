//! Sizes of a log, and what its owner says about it when it is opened.

use super::record::{BODY, GROUP_FRAME};
use crate::disk::BLOCK;

/// The smallest segment: a header, and reasonable room for entries.
pub const SEGMENT_BYTES_MIN: u32 = 4 * BODY;

/// The largest group, whatever the options say. Its length must fit in its head with room to spare.
pub const GROUP_BYTES_MAX: usize = 256 << 20;

/// The largest payload of an entry. One that is larger than a segment gets a larger segment. **Units** bytes.
pub const ENTRY_BYTES_MAX: usize = 1 << 30;

/// What a record takes beside its own bytes if it is a group of its own: a head, and the rest of the block before.
/// **Units** bytes.
pub const GROUP_OVERHEAD_BYTES: usize = BLOCK + GROUP_FRAME;

/// Bounds and sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of a new segment file. **Units** bytes. **Bounds** a multiple of 4 KiB, at least `SEGMENT_BYTES_MIN`.
    pub segment_bytes: u32,
    /// A group takes records until it holds this many bytes. **Units** bytes. **Bounds** at most `GROUP_BYTES_MAX`.
    pub group_bytes_max: usize,
    /// Durable writes in flight at once. **Bounds** at least 1.
    pub writes_in_flight_max: usize,
    /// Trimmed segments kept for reuse.
    pub spare_segments_max: usize,
    /// A number that the caller draws at random. It becomes the identity of a log that is created now, and
    /// distinguishes its records from those of any other log.
    pub fresh_id: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            group_bytes_max: 1 << 20,
            writes_in_flight_max: 2,
            spare_segments_max: 8,
            fresh_id: 0,
        }
    }
}

/// What the state says about the log that is opened; by default nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Entries up to this index come without their payloads, because they are in the state.
    pub applied: u64,
    /// The log was trimmed up to this index, or could have been. If it was, nothing before the index need be read.
    pub trimmable: u64,
}
