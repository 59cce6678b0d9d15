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
//!
//! Files, each importing only files below it:
//!
//! - `profile`: named sets of knobs for a kind of work.
//! - `file`: reads a knobs file.
//! - `check`: what knobs must be to one another, and to the host.
//! - `knobs`: every knob, and the registry of all.
//! - `host`: what the machine offers.
//! - `value`: how a value is written and read as text; sizes, units, choices.
//! - `error`: why a setting was refused.

mod check;
mod error;
mod file;
mod host;
mod knobs;
mod profile;
mod value;

pub use check::{Problem, cache_bytes};
pub use error::Error;
pub use file::apply_file;
pub use host::Host;
pub use knobs::{Consensus, Io, Knob, Knobs, REGISTRY, Server, Store, Wal, knob};
pub use profile::{Change, PROFILES, Profile, profile};
pub use value::{GIB, IoPathChoice, KIB, MIB, RaftApply, Unit};
