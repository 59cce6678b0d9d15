//! Memory that O_DIRECT accepts: owned, aligned to `BLOCK`, recycled by its users.
//!
//! Invariants:
//! - `ptr` is aligned to `BLOCK` and, unless `capacity` is 0, owns exactly `capacity` bytes of that layout.
//! - `capacity` is a multiple of `BLOCK`; `len <= capacity`; bytes below `len` are initialised.
//!
//! A buffer never shrinks by itself. An owner that keeps buffers bounds their number, and drops oversized ones.

#![expect(unsafe_code, reason = "O_DIRECT needs memory aligned to the block size, which Vec cannot promise")]

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use super::block::BLOCK;

/// Growable bytes in block-aligned memory.
pub struct Buffer {
    ptr: NonNull<u8>,
    len: usize,
    capacity: usize,
}

// SAFETY: the buffer owns its memory exclusively, like a Vec.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads bytes, like a Vec.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// An empty buffer; allocates nothing.
    pub const fn new() -> Self {
        Self { ptr: NonNull::dangling(), len: 0, capacity: 0 }
    }

    /// An empty buffer with room for `bytes`.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut buffer = Self::new();
        buffer.reserve(bytes);
        buffer
    }

    /// A buffer of `len` zeros.
    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::new();
        buffer.resize(len);
        buffer
    }

    /// Bytes that fit without another allocation.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the content, keeps the memory.
    pub const fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes room for `additional` more bytes.
    pub fn reserve(&mut self, additional: usize) {
        let needed = self.len.checked_add(additional).expect("buffer sizes fit in memory");
        if needed <= self.capacity {
            return;
        }
        let capacity = needed.max(self.capacity.saturating_mul(2)).next_multiple_of(BLOCK);
        let layout = layout(capacity);
        // SAFETY: the layout's size is at least one block, so not zero.
        let fresh = unsafe { alloc(layout) };
        let Some(fresh) = NonNull::new(fresh) else { handle_alloc_error(layout) };
        // SAFETY: both regions are owned, distinct, and hold at least `len` bytes.
        unsafe { fresh.as_ptr().copy_from_nonoverlapping(self.ptr.as_ptr(), self.len) };
        self.release();
        self.ptr = fresh;
        self.capacity = capacity;
        assert!(self.ptr.as_ptr().addr().is_multiple_of(BLOCK));
        assert!(self.len <= self.capacity);
    }

    /// Appends `bytes`.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        // SAFETY: `reserve` made room for `bytes.len()` bytes behind `len`; a `&[u8]` cannot overlap memory we own
        // mutably.
        unsafe { self.ptr.as_ptr().add(self.len).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        self.len += bytes.len();
    }

    /// Sets the length to `len`: cuts, or appends zeros.
    pub fn resize(&mut self, len: usize) {
        if let Some(additional) = len.checked_sub(self.len) {
            self.reserve(additional);
            // SAFETY: `reserve` made room for `additional` bytes behind `self.len`.
            unsafe { self.ptr.as_ptr().add(self.len).write_bytes(0, additional) };
        }
        self.len = len;
    }

    /// Replaces the content. `read` puts up to `len` bytes at the front of the memory that it gets, and returns their
    /// number.
    ///
    /// **Errors** those of `read`; the buffer is then empty.
    pub(super) fn fill_with<E>(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let filled = read(self.room(len))?;
        assert!(filled <= len, "no more is read than there is room for");
        self.len = filled;
        Ok(())
    }

    /// Forgets the content. Returns the first `len` bytes of the memory, to be read into. Their address and content
    /// stay valid until the buffer is used for something other than asking for as many bytes again.
    pub(super) fn room(&mut self, len: usize) -> &mut [MaybeUninit<u8>] {
        self.clear();
        self.reserve(len);
        // SAFETY: `reserve` made room for `len` bytes, which nobody else reaches while `self` is borrowed; they need
        // not be initialised.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast::<MaybeUninit<u8>>(), len) }
    }

    /// Sets the length after something was put into [`Buffer::room`].
    ///
    /// # Safety
    ///
    /// The first `len` bytes of the memory were initialised since.
    pub(super) unsafe fn filled(&mut self, len: usize) {
        assert!(len <= self.capacity, "no more is read than there is room for");
        self.len = len;
    }

    /// Appends zeros up to the next block boundary.
    pub fn pad(&mut self) {
        self.resize(self.len.next_multiple_of(BLOCK));
    }

    fn release(&mut self) {
        if self.capacity > 0 {
            // SAFETY: `ptr` was allocated with this layout and is not used after this.
            unsafe { dealloc(self.ptr.as_ptr(), layout(self.capacity)) };
        }
    }
}

fn layout(capacity: usize) -> Layout {
    assert!(capacity > 0 && capacity.is_multiple_of(BLOCK));
    Layout::from_size_align(capacity, BLOCK).expect("a block-aligned size below isize::MAX is a layout")
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.release();
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: bytes below `len` are owned and initialised; a dangling pointer goes with `len` 0.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Buffer").field("len", &self.len).field("capacity", &self.capacity).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_keeps_bytes_and_alignment() {
        let mut buffer = Buffer::new();
        let mut expected = Vec::new();
        for step in 1..200_usize {
            let piece = vec![u8::try_from(step % 251).unwrap(); step * 7];
            buffer.extend_from_slice(&piece);
            expected.extend_from_slice(&piece);
            assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK));
            assert_eq!(&buffer[..], &expected[..]);
        }
        buffer.pad();
        assert!(buffer.len().is_multiple_of(BLOCK));
        assert!(buffer[expected.len()..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_others_put_into_the_room_is_there_wherever_the_buffer_goes() {
        let mut buffer = Buffer::zeroed(3 * BLOCK);
        let room = buffer.room(2 * BLOCK).as_mut_ptr();
        // As the kernel does, while the buffer lies in a slot.
        let mut moved = Box::new(buffer);
        // SAFETY: the room has two blocks, and nobody else uses it now.
        unsafe { room.cast::<u8>().write_bytes(7, BLOCK + 1) };
        // SAFETY: so many bytes were just written.
        unsafe { moved.filled(BLOCK + 1) };
        assert!(moved.len() == BLOCK + 1 && moved.iter().all(|byte| *byte == 7));
        let read = |room: &mut [MaybeUninit<u8>]| {
            room[..9].fill(MaybeUninit::new(8));
            Ok::<_, ()>(9)
        };
        moved.fill_with(BLOCK, read).unwrap();
        assert_eq!(&moved[..], &[8; 9]);
        assert_eq!(moved.fill_with(BLOCK, |_| Err("failed")), Err("failed"));
        assert!(moved.is_empty() && moved.capacity() >= 3 * BLOCK);
    }
}
