//! Runs on: apply core.
//!
//! Leases: the durable part of them, as keys and values of the meta tree, and the [`Lessor`], which knows when they
//! expire.
//!
//! This file has the first part, `lessor` the second. `checkpoints` knows when the time that leases have left is taken
//! down.
//!
//! | key | value |
//! |---|---|
//! | `l`, lease id (8 bytes, big-endian) | a [`Grant`] |
//! | `a`, lease id (8 bytes, big-endian), user key | empty |
//!
//! | bytes of a grant | meaning |
//! |---|---|
//! | 0 | 1, the form of what follows |
//! | 1..9 | granted time to live in seconds, big-endian, signed |
//! | 9..17 | the seconds that were left at the last checkpoint, big-endian, signed; 0: no checkpoint |
//!
//! Invariants: the attachments of one lease are neighbours, in the order of their keys. A revocation deletes the keys
//! in this order. Grants and attachments change only in the write that applies an entry. Expiry times belong to one
//! leader's term and are never stored.

use engine::{Fault, ReadView};

mod checkpoints;
mod lessor;

pub use lessor::{CHECKPOINT_EVERY, Lessor, Params, Renewal, ttl_min_s};

/// Longest time to live that can be granted. **Units** seconds. **Source** etcd v3.7.1 `lease/lessor.go` `MaxLeaseTTL`.
pub const TTL_MAX_S: i64 = 9_000_000_000;

/// The first bytes of every key of a grant.
pub const GRANTS: &[u8] = b"l";

/// The first byte of every key of an attachment.
pub const ATTACHMENTS: u8 = b'a';

/// Length of a grant's key, and of the common first bytes of the keys of one lease's attachments.
const ID_KEY_LEN: usize = 9;

const GRANT_FORM: u8 = 1;

/// Length of an encoded [`Grant`].
const GRANT_LEN: usize = 17;

/// A lease as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Granted time to live. **Units** seconds.
    pub ttl_s: i64,
    /// The time that was left when the leader last recorded it; 0 if it never did. **Units** seconds.
    pub remaining_s: i64,
}

impl Grant {
    /// The stored form.
    pub fn encode(self) -> [u8; GRANT_LEN] {
        let mut bytes = [GRANT_FORM; GRANT_LEN];
        bytes[1..9].copy_from_slice(&self.ttl_s.to_be_bytes());
        bytes[9..].copy_from_slice(&self.remaining_s.to_be_bytes());
        bytes
    }

    /// The grant in `bytes`; `None` if they hold none.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; GRANT_LEN] = bytes.try_into().ok()?;
        let (form, numbers) = bytes.split_first()?;
        let (ttl, remaining) = numbers.split_first_chunk()?;
        let remaining = remaining.try_into().ok()?;
        let grant = Self { ttl_s: i64::from_be_bytes(*ttl), remaining_s: i64::from_be_bytes(remaining) };
        (*form == GRANT_FORM && grant.ttl_s > 0 && grant.remaining_s >= 0).then_some(grant)
    }
}

/// The stored form of a new lease.
pub fn encode_grant(ttl_s: i64) -> [u8; GRANT_LEN] {
    Grant { ttl_s, remaining_s: 0 }.encode()
}

/// The key under which the grant of a lease is stored.
pub fn grant_key(lease: i64) -> [u8; ID_KEY_LEN] {
    id_key(GRANTS[0], lease)
}

/// The lease that `key` and `value` of the meta tree store; `None` if they store none.
pub fn stored_grant(key: &[u8], value: &[u8]) -> Option<(i64, Grant)> {
    parse_grant_key(key).zip(Grant::decode(value))
}

/// The lease whose grant is stored at `key`; `None` if this is not the key of a grant.
fn parse_grant_key(key: &[u8]) -> Option<i64> {
    let id = key.strip_prefix(GRANTS)?;
    Some(i64::from_be_bytes(id.try_into().ok()?))
}

/// All stored leases, for [`Lessor::restore`]; `None` if one is damaged. `load` loads the page that a fault names. The
/// walk then goes on where it was.
///
/// **Errors** those of `load`.
pub fn restore_grants<E>(
    view: &ReadView,
    mut load: impl FnMut(Fault) -> Result<(), E>,
) -> Result<Option<Vec<(i64, Grant)>>, E> {
    let mut cursor = view.meta_cursor(GRANTS);
    let mut grants = Vec::new();
    loop {
        match cursor.next() {
            Ok(None) => return Ok(Some(grants)),
            Ok(Some((key, value))) => match stored_grant(&key, &value) {
                Some(lease) => grants.push(lease),
                None => return Ok(None),
            },
            Err(fault) => load(fault)?,
        }
    }
}

/// The first bytes of the keys of a lease's attachments. The user key follows.
pub fn attachment_prefix(lease: i64) -> [u8; ID_KEY_LEN] {
    id_key(ATTACHMENTS, lease)
}

/// The key that stores the attachment of `key` to a lease.
pub fn attachment_key(lease: i64, key: &[u8]) -> Vec<u8> {
    [attachment_prefix(lease).as_slice(), key].concat()
}

fn id_key(kind: u8, lease: i64) -> [u8; ID_KEY_LEN] {
    let mut bytes = [kind; ID_KEY_LEN];
    bytes[1..].copy_from_slice(&lease.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_forms_are_read_back_and_nothing_else_is() {
        for id in [1, -1, 0x0102_0304_0506_0708, i64::MIN, i64::MAX] {
            assert_eq!(parse_grant_key(&grant_key(id)), Some(id));
            let key = attachment_key(id, b"user/key");
            assert_eq!(key.strip_prefix(&attachment_prefix(id)), Some(b"user/key".as_slice()));
            assert_eq!(parse_grant_key(&key), None);
        }
        assert_eq!(grant_key(0x0102_0304_0506_0708), *b"l\x01\x02\x03\x04\x05\x06\x07\x08");
        let grant = Grant { ttl_s: 60, remaining_s: 7 };
        assert_eq!(Grant::decode(&grant.encode()), Some(grant));
        assert_eq!(Grant::decode(&encode_grant(5)), Some(Grant { ttl_s: 5, remaining_s: 0 }));
        for len in 0..GRANT_LEN {
            assert_eq!(Grant::decode(&grant.encode()[..len]), None);
        }
        assert_eq!(Grant::decode(&[grant.encode().as_slice(), &[0]].concat()), None);
        for wrong in [Grant { ttl_s: 0, ..grant }, Grant { remaining_s: -1, ..grant }] {
            assert_eq!(Grant::decode(&wrong.encode()), None);
        }
        let mut other_form = grant.encode();
        other_form[0] = 2;
        assert_eq!(Grant::decode(&other_form), None);
    }

    #[test]
    fn attachments_of_a_lease_are_neighbours_in_key_order() {
        let mut keys =
            vec![attachment_key(1, b"b"), attachment_key(2, b"a"), attachment_key(1, b"a"), grant_key(1).to_vec()];
        keys.sort();
        assert_eq!(
            keys,
            [attachment_key(1, b"a"), attachment_key(1, b"b"), attachment_key(2, b"a"), grant_key(1).to_vec()]
        );
    }
}
