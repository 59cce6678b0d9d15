//! Runs on: connection core (sending), a thread of its own (receiving, which blocks on the disk).
//!
//! The native form in which a member sends its state to another one, instead of log entries: rows of the meta tree and
//! records in revision order, in compressed frames with checksums, and at the end the HashKV of it all.
//!
//! - `asked`: the request for a state. `frame`: the bytes. `send`: from views to frames. `receive`: from frames to a
//!   state beside the live one.
//!
//! Invariants:
//! - Index, term, revisions, rows and records are of one view. Records are read from newer and newer views, while a
//!   floor keeps what that one shows; so a slow receiver pins no memory.
//! - A receiver takes nothing for granted: lengths are bounded before memory is taken, records ascend, and the state
//!   counts only if its HashKV is the sender's.
//! - A stream that broke goes on behind the last whole frame, as long as the sender holds the state.

pub mod asked;
pub mod frame;
pub mod receive;
pub mod send;
