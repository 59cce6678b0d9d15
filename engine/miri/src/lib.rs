//! The engine's modules with unsafe code that Miri can run, with their tests. The others (`disk/uring`) hand memory to
//! the kernel, which Miri does not have.
//!
//! - `block`: what `buffer` needs
//! - `buffer`: memory that O_DIRECT accepts

#[path = "../../src/disk/block.rs"]
mod block;
#[path = "../../src/disk/buffer.rs"]
pub mod buffer;
