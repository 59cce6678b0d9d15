//! Bytes on their way to a socket, in pieces that are written one after the other.
//!
//! Invariant: a piece that is shared was long enough for that to be cheaper than a copy.

use bytes::{BufMut, Bytes, BytesMut};

/// Bytes that are shared rather than copied, at least so many. **Units**: bytes.
const SHARED_MIN: usize = 1024;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Pieces {
    done: Vec<Bytes>,
    open: BytesMut,
    len: usize,
}

impl Pieces {
    /// Bytes in all pieces. **Units**: bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes the pieces out, in their order.
    pub fn take(&mut self) -> Vec<Bytes> {
        self.close();
        self.len = 0;
        std::mem::take(&mut self.done)
    }

    /// Appends `bytes`; long ones are shared.
    pub(crate) fn share(&mut self, bytes: &Bytes) {
        self.len += bytes.len();
        if bytes.len() < SHARED_MIN {
            self.open.put_slice(bytes);
        } else {
            self.close();
            self.done.push(bytes.clone());
        }
    }

    pub(crate) fn put_u8(&mut self, byte: u8) {
        self.len += 1;
        self.open.put_u8(byte);
    }

    /// Big-endian, as all integers of etcd's frames.
    pub(crate) fn put_u64(&mut self, number: u64) {
        self.len += 8;
        self.open.put_u64(number);
    }

    pub(crate) fn put_varint(&mut self, number: u64) {
        let before = self.open.len();
        prost::encoding::encode_varint(number, &mut self.open);
        self.len += self.open.len() - before;
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.done.push(self.open.split().freeze());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_bytes_are_shared_and_all_come_in_order() {
        let mut pieces = Pieces::default();
        let (short, long) = (Bytes::from(vec![1; SHARED_MIN - 1]), Bytes::from(vec![2; SHARED_MIN]));
        pieces.put_u8(9);
        pieces.share(&short);
        pieces.share(&long);
        pieces.put_u64(1);
        pieces.put_varint(300);
        assert_eq!(pieces.len(), 1 + short.len() + long.len() + 8 + 2);
        let taken = pieces.take();
        assert_eq!(taken[1].as_ptr(), long.as_ptr());
        let expected = [&[9][..], &short, &long, &[0, 0, 0, 0, 0, 0, 0, 1, 0xac, 2]].concat();
        assert_eq!(taken.concat(), expected);
        assert!(pieces.is_empty() && pieces.take().is_empty());
    }
}
