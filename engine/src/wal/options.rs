//! Sizes of a log, and what its owner says of it when it is opened.

use super::record::{BODY, GROUP_FRAME};
use crate::disk::BLOCK;

/// Smallest segment: a header, and room for entries worth the name.
pub const SEGMENT_BYTES_MIN: u32 = 4 * BODY;

/// Largest group, whatever the options say: a group's length has to fit in its head with room to spare.
pub const GROUP_BYTES_MAX: usize = 256 << 20;

/// What a record takes besides its own bytes where it is a group of its own: a head, and the rest of the block before.
/// **Units** bytes.
pub const GROUP_OVERHEAD_BYTES: usize = BLOCK + GROUP_FRAME;

/// Bounds and sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of a new segment file. **Units** bytes. **Bounds** a multiple of 4 KiB, at least `SEGMENT_BYTES_MIN`.
    pub segment_bytes: u32,
    /// A group takes records until it holds this much. **Units** bytes. **Bounds** at most `GROUP_BYTES_MAX`.
    pub group_bytes_max: usize,
    /// Durable writes in flight at once. **Bounds** at least 1.
    pub writes_in_flight_max: usize,
    /// Trimmed segments kept for reuse.
    pub spare_segments_max: usize,
    /// Drawn at random by the caller; becomes the identity of a log that is created now, and tells its records from
    /// those of any other.
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

/// What the state says of the log that is opened; nothing, by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Entries up to this index come without their payloads: they are in the state.
    pub applied: u64,
    /// The log was, or could have been, trimmed up to this index: nothing before it need be read if it was.
    pub trimmable: u64,
}
