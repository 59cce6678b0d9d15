//! Unsigned LEB128 numbers, as protobuf writes them. This is the one reader and the one writer of the crate.
//!
//! Reading is bounded. Bytes that end early or do not fit in 64 bits are refused, so a damaged page cannot mislead it.

/// Longest encoding of 64 bits.
pub(crate) const LEN_MAX: usize = 10;

/// Appends `number`.
pub(crate) fn write(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    out.push(number.to_le_bytes()[0]);
}

/// Reads the number at `*at`, and moves `*at` to the byte after it.
#[inline]
pub(crate) fn read(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    if first < 0x80 {
        *at += 1;
        return Some(u64::from(first));
    }
    read_long(bytes, at)
}

fn read_long(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0u64;
    for (position, byte) in bytes.get(*at..)?.iter().take(LEN_MAX).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if position == LEN_MAX - 1 && *byte > 1 {
            return None;
        }
        number |= bits << (7 * position);
        if byte & 0x80 == 0 {
            *at += position + 1;
            return Some(number);
        }
    }
    None
}

/// Takes a number off the front of `bytes`; `None` too if it is not in its shortest form.
#[inline]
pub(crate) fn take(bytes: &mut &[u8]) -> Option<u64> {
    let mut at = 0;
    let number = read(bytes, &mut at)?;
    if at > 1 && bytes[at - 1] == 0 {
        return None;
    }
    *bytes = &bytes[at..];
    Some(number)
}

/// Length of the encoding of `number`. **Units** bytes.
pub(crate) fn len(number: u64) -> usize {
    let bits = 64 - (number | 1).leading_zeros();
    bits.div_ceil(7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_reads_back_and_every_cut_is_refused() {
        for number in (0..64).flat_map(|bit| [1u64 << bit, (1u64 << bit) - 1]).chain([u64::MAX]) {
            let mut bytes = Vec::new();
            write(&mut bytes, number);
            assert_eq!(bytes.len(), len(number));
            let mut at = 0;
            assert_eq!(read(&bytes, &mut at), Some(number));
            assert_eq!(at, bytes.len());
            for cut in 0..bytes.len() {
                assert_eq!(read(&bytes[..cut], &mut 0), None);
            }
        }
        assert_eq!(read(&[0xff; 11], &mut 0), None);
    }

    #[test]
    fn a_number_that_is_taken_has_one_form() {
        for number in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            write(&mut bytes, number);
            bytes.push(7);
            let mut left = bytes.as_slice();
            assert_eq!(take(&mut left), Some(number));
            assert_eq!(left, [7]);
        }
        for refused in [&[0x80, 0][..], &[0xff; 10], &[0x80], &[]] {
            assert_eq!(take(&mut &*refused), None);
        }
    }
}
