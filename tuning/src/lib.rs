//! Every number of Orlop that somebody may want to change: plain data, and checks on it.
//!
//! A knob is declared once, in `knobs`, with its unit, bounds, default and reason; the struct field, the registry row
//! (hence the flag, the line in a knobs file, the line in `--help`) and its documentation all come from that
//! declaration.
//!
//! Invariants:
//! - `Knobs::default()` and every profile on top of it pass `Knobs::check`.
//! - A knob that no code outside this crate reads does not exist (`server/tests/tidy.rs` looks).
//! - A value is what it was set to: nothing here clamps, rounds or guesses. Out of bounds is an error.
//!
//! It reads no file, clock, environment or `/proc`: callers hand in the text.

mod check;
mod file;
mod host;
mod knobs;
mod profile;
mod value;

pub use check::{Problem, cache_bytes};
pub use file::apply_file;
pub use host::Host;
pub use knobs::{Consensus, Io, Knob, Knobs, REGISTRY, Server, Store, Wal, knob};
pub use profile::{Change, PROFILES, Profile, profile};
pub use value::{IoPath, Unit};

/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// Why a setting was refused. Each names what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No knob has this name.
    #[error("unknown knob {name:?}")]
    UnknownKnob {
        /// As written by the user.
        name: String,
    },
    /// No profile has this name.
    #[error("unknown profile {name:?} (there are {known})")]
    UnknownProfile {
        /// As written by the user.
        name: String,
        /// All names, comma separated.
        known: String,
    },
    /// The text is not a value of the knob's unit.
    #[error("invalid value {text:?} for {name}: {expected}")]
    BadValue {
        /// The knob.
        name: String,
        /// As written by the user.
        text: String,
        /// What would have been a value.
        expected: &'static str,
    },
    /// A value, but outside the knob's bounds.
    #[error("value {text:?} for {name} is out of bounds ({min} to {max})")]
    OutOfBounds {
        /// The knob.
        name: String,
        /// As written by the user.
        text: String,
        /// Smallest value allowed.
        min: String,
        /// Largest value allowed.
        max: String,
    },
    /// A line of a knobs file is not `knob = value`, a `[group]` or a comment.
    #[error("line {line}: expected `knob = value`, `[group]` or `# comment`")]
    BadLine {
        /// Counted from 1.
        line: usize,
    },
    /// A knobs file sets the same knob twice.
    #[error("line {line}: {name} is set twice")]
    SetTwice {
        /// Counted from 1.
        line: usize,
        /// The knob.
        name: String,
    },
    /// A line of a knobs file has a knob or value that was refused.
    #[error("line {line}: {source}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Why.
        source: Box<Error>,
    },
}
