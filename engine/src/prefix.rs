//! What keys begin with: the part that two of them share, and the first bytes as a number.
//!
//! Knows no node and no record; both pack keys with it.

/// Length of what `a` and `b` begin with in common.
pub(crate) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// First four bytes as a number that orders as they do; shorter ones are filled with zeros, so equal heads decide
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
