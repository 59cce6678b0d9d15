//! The segment that is being written: the end of its frames, and the bytes that must come before the next group.
//!
//! Invariants: `durable_end <= end`. `tail` is the part of the last block that ends at `end`. `header` is there until
//! the first group takes it along.

use super::{
    record::{BODY, Header},
    segment::Segment,
};
use crate::disk::{BLOCK, Buffer};

/// The segment that is being written.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Segment,
    /// The end of the last frame.
    pub(super) end: u32,
    /// The end of the last durable frame.
    pub(super) durable_end: u32,
    /// CRC of the last frame.
    pub(super) chain: u32,
    /// The block in which `end` lies, up to `end`.
    pub(super) tail: Vec<u8>,
    /// The header block, until the first group takes it along.
    pub(super) header: Option<Buffer>,
}

impl Active {
    pub(super) fn beginning(segment: Segment, header: &Header) -> Self {
        let mut block = Buffer::with_capacity(BLOCK);
        let chain = header.encode(&mut block);
        Self { segment, end: BODY, durable_end: BODY, chain, tail: Vec::new(), header: Some(block) }
    }

    /// Puts the bytes that share the first block of a group before it. The group starts at `start`. Returns the offset
    /// of the write.
    pub(super) fn begin_write(&mut self, start: u32, buf: &mut Buffer) -> u32 {
        if let Some(header) = self.header.take() {
            assert_eq!(start, BODY);
            buf.extend_from_slice(&header);
            return 0;
        }
        if start == self.end {
            buf.extend_from_slice(&self.tail);
        }
        let offset = start - start % BODY;
        assert_eq!(offset as usize + buf.len(), start as usize);
        offset
    }

    /// Completes a group's bytes to whole blocks, and keeps the last block. The bytes end at `end`.
    pub(super) fn end_write(&mut self, end: u32, buf: &mut Buffer) {
        self.end = end;
        let tail_len = end as usize % BLOCK;
        self.tail.clear();
        self.tail.extend_from_slice(&buf[buf.len() - tail_len..]);
        buf.pad();
    }
}
