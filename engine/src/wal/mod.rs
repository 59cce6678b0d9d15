//! The write-ahead log, which is the Raft log.
//!
//! Files, from the ground up:
//! - `entry`: entries and the hard state, as Raft knows them.
//! - `record`: the parts of a segment. `options`: sizes, and what the owner says when a log is opened.
//! - `positions`: the positions and the terms of the entries.
//! - `segment`: the segment files, and the one that is prepared ahead. `active`: the one that is being written.
//! - `window`: the part of a segment that was last read, and the frames in it.
//! - `fetch`: entries that are read back while the log goes on.
//! - `recover`: finds the valid part of a log, and whether its end is a torn tail or damage.
//! - `inspect`: inspects a log that no process uses. `scrub`: reads one again while it is in use, to find damage.
//! - `aside`: puts a damaged log aside. `instead`: puts another log in the place of one.
//! - `log`: the log itself: appends, durable writes, trimming.

mod active;
mod aside;
mod entry;
mod fetch;
mod inspect;
mod instead;
mod log;
mod options;
mod positions;
mod record;
mod recover;
mod scrub;
mod segment;
mod window;

pub use aside::set_aside;
pub use entry::{Entry, HardState};
pub use fetch::Fetched;
pub use inspect::{SegmentSummary, Summary, inspect};
pub use instead::{begin_instead, take_place};
pub use log::{Recovered, Wal};
pub use options::{ENTRY_BYTES_MAX, GROUP_BYTES_MAX, GROUP_OVERHEAD_BYTES, Known, Options, SEGMENT_BYTES_MIN};
pub use positions::Terms;
#[doc(hidden)]
pub use record::decode_hostile;
pub use scrub::{Scrub, Scrubbed};
