//! The segment that is being written: where its frames end, and what has to stand before the next group.
//!
//! Invariants: `durable_end <= end`; `tail` is the part of the last block that ends at `end`; `header` is there until
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
    /// Behind the last frame.
    pub(super) end: u32,
    /// Behind the last frame that is durable.
    pub(super) durable_end: u32,
    /// CRC of the last frame.
    pub(super) chain: u32,
    /// The block that `end` lies in, up to `end`.
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

    /// Puts before a group that starts at `start` what shares its first block; returns the offset of the write.
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

    /// Completes a group's bytes, which end at `end`, to whole blocks, and keeps the last one.
    pub(super) fn end_write(&mut self, end: u32, buf: &mut Buffer) {
        self.end = end;
        let tail_len = end as usize % BLOCK;
        self.tail.clear();
        self.tail.extend_from_slice(&buf[buf.len() - tail_len..]);
        buf.pad();
    }
}
