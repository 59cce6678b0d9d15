//! The first bytes of keys: the part that two keys share, and the first bytes as a number.
//!
//! It knows no node and no record; both pack keys with it.

/// Length of the common first bytes of `a` and `b`.
pub(crate) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The first four bytes as a number in the same order. Shorter keys are filled with zeros, so equal heads decide
/// nothing.
#[inline]
pub(crate) fn head_of(bytes: &[u8]) -> u32 {
    if let Some(head) = bytes.first_chunk::<4>() {
        return u32::from_be_bytes(*head);
    }
    let mut head = [0; 4];
    head[..bytes.len()].copy_from_slice(bytes);
    u32::from_be_bytes(head)
}
