//! What the tests and benches of this crate see of its inside: they stand outside of it as every test does.
//!
//! No other crate uses it.

pub use crate::{
    extent::{BlockCache, Directory},
    page::{HEADER_LEN, Kind, seal, segment_path},
    tree::{Node, Slot},
};
