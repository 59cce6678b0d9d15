//! The parts of this crate's inside that its tests and benches use. They are outside of the crate, as every test is.
//!
//! No other crate uses it.

pub use crate::{
    extent::{BlockCache, Directory},
    page::{HEADER_LEN, Kind, seal, segment_path},
    tree::{Node, Slot},
};
