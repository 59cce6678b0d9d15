//! Runs on: connection core.
//!
//! Messages compressed with gzip, both ways. As in grpc-go, a client that compresses its requests is answered in kind.
//!
//! Bounds: a message is decompressed to at most the bytes that a plain one may have. One above [`PACKED_BYTES_MAX`] is
//! sent as it is, which gRPC leaves to each message: its compressed form would have to be held whole, since its length
//! comes first. Packing goes in steps of [`STEP_BYTES`].

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::{Compression, bufread::MultiGzDecoder, write::GzEncoder};

use crate::{error::Error, protobuf::PREFIX_BYTES};

/// Longest message that is compressed. **Units** bytes.
const PACKED_BYTES_MAX: usize = 4 << 20;

/// Bytes compressed in one turn: about half a millisecond. **Units** bytes.
pub(super) const STEP_BYTES: usize = 64 << 10;

/// The head of a gzip member, without what may be in it besides. **Units** bytes. **Source** RFC 1952, 2.3.
const HEAD_BYTES: usize = 10;
const MAGIC: [u8; 3] = [0x1f, 0x8b, 8];

/// Decompresses a message.
///
/// **Errors** bytes that are not gzip, in Go's words, but for the offset of damaged data; more than `len_max` bytes.
pub(super) fn unpack(message: &[u8], len_max: usize) -> Result<Bytes, Error> {
    if message.len() < HEAD_BYTES {
        let why = if message.is_empty() { "EOF" } else { "unexpected EOF" };
        return Err(Error::NotGzip(why));
    }
    if !message.starts_with(&MAGIC) {
        return Err(Error::NotGzip("gzip: invalid header"));
    }
    let mut plain = Vec::new();
    // One byte more than is allowed shows that there is more.
    let mut reader = MultiGzDecoder::new(message).take(len_max as u64 + 1);
    reader.read_to_end(&mut plain).map_err(|error| Error::DamagedGzip(why(&error)))?;
    if plain.len() > len_max {
        return Err(Error::UnpackedTooLarge(len_max));
    }
    Ok(plain.into())
}

fn why(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "unexpected EOF",
        _ if error.to_string().contains("checksum") => "gzip: invalid checksum",
        _ if error.to_string().contains("header") => "gzip: invalid header",
        _ => "flate: corrupt input",
    }
}

/// Compresses framed messages, however the bytes are cut.
#[derive(Default)]
pub(super) struct Packer {
    prefix: [u8; PREFIX_BYTES],
    prefix_len: usize,
    /// Bytes of the present message that have not come.
    left: usize,
    /// The present message, unless it goes as it is.
    packing: Option<GzEncoder<Vec<u8>>>,
}

impl Packer {
    /// Takes some of `messages`, at most [`STEP_BYTES`]. Returns what can be sent.
    pub(super) fn step(&mut self, messages: &mut Bytes) -> Option<Bytes> {
        if self.left == 0 {
            return self.begin(messages);
        }
        let piece = messages.split_to(messages.len().min(self.left).min(STEP_BYTES));
        self.left -= piece.len();
        let Some(packing) = &mut self.packing else { return Some(piece) };
        packing.write_all(&piece).expect("a Vec takes everything");
        if self.left > 0 {
            return None;
        }
        let mut packed = self.packing.take()?.finish().expect("a Vec takes everything");
        let len = u32::try_from(packed.len() - PREFIX_BYTES).expect("hardly longer than what was packed");
        packed[0] = 1;
        packed[1..PREFIX_BYTES].copy_from_slice(&len.to_be_bytes());
        Some(packed.into())
    }

    fn begin(&mut self, messages: &mut Bytes) -> Option<Bytes> {
        let piece = messages.split_to(messages.len().min(PREFIX_BYTES - self.prefix_len));
        self.prefix[self.prefix_len..self.prefix_len + piece.len()].copy_from_slice(&piece);
        self.prefix_len += piece.len();
        if self.prefix_len < PREFIX_BYTES {
            return None;
        }
        let [_, len @ ..] = self.prefix;
        (self.prefix_len, self.left) = (0, u32::from_be_bytes(len) as usize);
        // An empty message stays empty, as in grpc-go.
        if self.left == 0 || self.left > PACKED_BYTES_MAX {
            return Some(Bytes::copy_from_slice(&self.prefix));
        }
        self.packing = Some(GzEncoder::new(vec![0; PREFIX_BYTES], Compression::fast()));
        None
    }
}

/// Compresses framed messages at once.
///
/// **Bounds** for messages of no more than [`STEP_BYTES`].
pub(super) fn pack(mut messages: Bytes) -> Bytes {
    debug_assert!(messages.len() <= STEP_BYTES, "longer ones are packed in steps");
    let (mut packer, mut out) = (Packer::default(), Vec::new());
    while !messages.is_empty() {
        out.extend_from_slice(&packer.step(&mut messages).unwrap_or_default());
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let mut out = vec![0];
        out.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
        out.extend_from_slice(message);
        out
    }

    fn zipped(plain: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    /// Splits framed messages. Compressed ones are decompressed.
    fn split(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let mut messages = Vec::new();
        while let [flag, l0, l1, l2, l3, rest @ ..] = bytes {
            let (message, behind) = rest.split_at(u32::from_be_bytes([*l0, *l1, *l2, *l3]) as usize);
            let plain = if *flag == 1 { unpack(message, PACKED_BYTES_MAX).unwrap().into() } else { message.to_vec() };
            messages.push((*flag, plain));
            bytes = behind;
        }
        assert!(bytes.is_empty());
        messages
    }

    #[test]
    fn messages_are_packed_one_by_one_wherever_the_bytes_are_cut() {
        let messages = [vec![], vec![7; 100_000], b"x".to_vec(), vec![1; PACKED_BYTES_MAX + 1]];
        let whole = Bytes::from(messages.iter().flat_map(|message| framed(message)).collect::<Vec<_>>());
        for cut in [1, 4, 70_000, whole.len()] {
            let (mut packer, mut out) = (Packer::default(), Vec::new());
            for mut piece in [whole.slice(..cut), whole.slice(cut..)] {
                while !piece.is_empty() {
                    out.extend_from_slice(&packer.step(&mut piece).unwrap_or_default());
                }
            }
            let expected: Vec<_> = [0, 1, 1, 0].into_iter().zip(messages.clone()).collect();
            assert!(split(&out) == expected, "cut at {cut}");
        }
        assert_eq!(split(&pack(framed(b"ab").into())), [(1, b"ab".to_vec())]);
    }

    #[test]
    fn what_is_not_gzip_is_refused_in_gos_words() {
        let good = zipped(&[b'v'; 300]);
        let mut bad_sum = good.clone();
        let at = bad_sum.len() - 6;
        bad_sum[at] ^= 0xff;
        let damaged = [&good[..HEAD_BYTES], &[0xff; 5]].concat();
        let trailing = [&good[..], b"x"].concat();
        for (bytes, expected) in [
            (vec![], Error::NotGzip("EOF")),
            (good[..5].to_vec(), Error::NotGzip("unexpected EOF")),
            (b"not gzip at all".to_vec(), Error::NotGzip("gzip: invalid header")),
            (good[..14].to_vec(), Error::DamagedGzip("unexpected EOF")),
            (bad_sum, Error::DamagedGzip("gzip: invalid checksum")),
            (damaged, Error::DamagedGzip("flate: corrupt input")),
            (trailing, Error::DamagedGzip("unexpected EOF")),
        ] {
            assert_eq!(unpack(&bytes, 1000), Err(expected));
        }
        assert_eq!(unpack(&good, 300).unwrap().len(), 300);
        assert_eq!(unpack(&good, 299), Err(Error::UnpackedTooLarge(299)));
        assert_eq!(unpack(&[good.clone(), good].concat(), 600).unwrap().len(), 600, "several members are one message");
    }

    #[test]
    fn a_bomb_is_refused_without_being_unpacked() {
        assert_eq!(unpack(&zipped(&vec![0; 64 << 20]), 1 << 20), Err(Error::UnpackedTooLarge(1 << 20)));
    }
}
