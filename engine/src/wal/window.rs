//! A window on a segment file: the part that was last read, and the frames in it.
//!
//! Invariants: `bytes` starts at `start` of segment `sequence`. Payloads share its memory. It is reused for reading
//! only if no payload shares it.

use std::sync::Arc;

use bytes::Bytes;

use super::{
    positions::Position,
    record::{BODY, FRAME, Record, frame_crc, frame_head},
    segment::Segment,
};
use crate::{
    Error,
    disk::{Buffer, Disk, FileOp},
};

/// A valid frame.
pub(super) struct Frame {
    pub(super) record: Record,
    pub(super) len: u32,
    pub(super) crc: u32,
}

/// The part of a segment that was last read.
#[derive(Default)]
pub(super) struct Window {
    sequence: u32,
    start: u32,
    bytes: Bytes,
    /// The memory of `bytes`. It is reused for reading if no payload shares it.
    memory: Arc<Buffer>,
}

/// Memory that payloads share.
struct Shared(Arc<Buffer>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Whether the disk could not read.
pub(super) fn is_read_error(result: &Result<(), Error>) -> bool {
    matches!(result, Err(Error::Io { op: FileOp::Read, .. }))
}

impl Window {
    /// Reads `len` bytes of `segment` at `offset`; `None` beyond its end.
    fn bytes(
        &mut self,
        disk: &mut dyn Disk,
        segment: &Segment,
        offset: u32,
        len: usize,
        read_bytes: usize,
    ) -> Result<Option<Bytes>, Error> {
        let Some(end) = u32::try_from(len).ok().and_then(|len| offset.checked_add(len)) else { return Ok(None) };
        if end > segment.len {
            return Ok(None);
        }
        let held = usize::try_from(offset.wrapping_sub(self.start)).expect("an offset fits in memory");
        let is_held = self.sequence == segment.sequence && offset >= self.start && held + len <= self.bytes.len();
        if !is_held {
            let start = offset - offset % BODY;
            let wanted = usize::try_from(end.next_multiple_of(BODY) - start).expect("a segment fits in memory");
            let rest = usize::try_from(segment.len - start).expect("a segment fits in memory");
            let before = std::mem::take(self);
            drop(before.bytes);
            let mut buf = Arc::into_inner(before.memory).unwrap_or_default();
            let mut read = |len| disk.read_blocking(segment.file, start.into(), len, &mut buf);
            let mut result = read(wanted.max(read_bytes).min(rest));
            if is_read_error(&result) {
                // What lies behind may be what cannot be read, and not be needed.
                result = read(wanted);
            }
            if is_read_error(&result) {
                return Err(Error::corrupt(disk.path(segment.file), start.into(), "the disk cannot read it"));
            }
            result?;
            let memory = Arc::new(buf);
            let bytes = Bytes::from_owner(Shared(Arc::clone(&memory)));
            *self = Self { sequence: segment.sequence, start, bytes, memory };
        }
        let held = usize::try_from(offset - self.start).expect("an offset fits in memory");
        Ok((held + len <= self.bytes.len()).then(|| self.bytes.slice(held..held + len)))
    }

    /// The frame at `at`, if there is one that continues the chain.
    pub(super) fn frame(
        &mut self,
        disk: &mut dyn Disk,
        segment: &Segment,
        at: Position,
        read_bytes: usize,
    ) -> Result<Option<Frame>, Error> {
        let Some(head) = self.bytes(disk, segment, at.offset, FRAME, read_bytes)? else { return Ok(None) };
        let (len, crc) = frame_head(&head).expect("a frame's head was read");
        let Some(len) = usize::try_from(len).ok().filter(|len| *len > 0) else { return Ok(None) };
        let Some(frame) = self.bytes(disk, segment, at.offset, FRAME.saturating_add(len), read_bytes)? else {
            return Ok(None);
        };
        if crc != frame_crc(at.chain, &frame[..4], &frame[FRAME..]) {
            return Ok(None);
        }
        let len = u32::try_from(frame.len()).expect("inside a segment");
        Ok(Record::decode(&frame.slice(FRAME..)).map(|record| Frame { record, len, crc }))
    }

    /// The frame of log `id` that follows `position`. If no valid frame is there, it is the one at the next block
    /// boundary, if a group starts there. Its chain proves that nothing was between them.
    pub(super) fn next_frame(
        &mut self,
        disk: &mut dyn Disk,
        segment: &Segment,
        (id, position): (u64, Position),
        read_bytes: usize,
    ) -> Result<Option<(Position, Frame)>, Error> {
        let mut at = position;
        let mut found = self.frame(disk, segment, at, read_bytes)?;
        if found.is_none() && !at.offset.is_multiple_of(BODY) {
            at.offset = at.offset.next_multiple_of(BODY);
            found = self.frame(disk, segment, at, read_bytes)?;
            found = found.filter(|frame| matches!(frame.record, Record::Group(_)));
        }
        let expected = (id, segment.sequence, at.offset);
        let found = found.filter(|frame| match &frame.record {
            Record::Group(group) => (group.id, group.sequence, group.offset) == expected,
            _ => true,
        });
        Ok(found.map(|frame| (at, frame)))
    }
}

/// Bytes that share the memory of `buf`.
pub(super) fn shared(buf: Buffer) -> Bytes {
    Bytes::from_owner(buf)
}
