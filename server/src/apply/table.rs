//! Runs on: apply core.
//!
//! The keys of the meta tree that are not leases: members, configuration, versions. Only this file knows them.
//!
//! | key | value |
//! |---|---|
//! | `m` member id (8 bytes, big-endian) | etcd's member JSON |
//! | `x` id of a former member (8 bytes, big-endian) | empty |
//! | `c` | voters and learners, see [`encode_conf_state`] |
//! | `v` | cluster version, text |
//! | `d` | the last decision about a downgrade: 1 or 0 (a byte), and the target version, text |
//! | `i` | cluster id, member id (8 bytes each, big-endian) |
//! | `r` alarm type, member id (4 and 8 bytes, big-endian) | empty, or `q` if the member's quota raised it |
//! | `u` | the entry that is under way in several steps, see [`encode_under_way`] |
//!
//! Leases use `l` and `a`: see `lease`; users `e`, `n` and `o`: see `auth`.

use consensus::{ConfState, Identity};
use engine::{VITAL_MAX, Vital};

use crate::shared::{Downgrade, RaisedBy};

/// Members.
pub const MEMBER_PREFIX: &[u8] = b"m";
/// Former members.
pub const REMOVED_PREFIX: &[u8] = b"x";
/// Raft's configuration at the applied index.
pub const CONF_STATE: &[u8] = b"c";
/// Decided cluster version.
pub const CLUSTER_VERSION: &[u8] = b"v";
/// The last decision about a downgrade.
pub const DOWNGRADE: &[u8] = b"d";
/// The cluster and the member that own this store.
pub const IDENTITY: &[u8] = b"i";

/// Active alarms.
pub const ALARM_PREFIX: &[u8] = b"r";

/// The entry that is under way in several steps (see `long`). A row that names another entry means nothing.
pub const UNDER_WAY: &[u8] = b"u";

/// Index of the entry (8 bytes, big-endian), the number of its operation that is under way (4 bytes, big-endian), and
/// the branches that its txns take (0 or 1, a byte each).
pub fn encode_under_way(index: u64, number: usize, path: &[bool]) -> Vec<u8> {
    let number = u32::try_from(number).expect("a request has few operations");
    let mut out = index.to_be_bytes().to_vec();
    out.extend_from_slice(&number.to_be_bytes());
    out.extend(path.iter().map(|taken| u8::from(*taken)));
    out
}

/// The inverse of [`encode_under_way`]; `None` if the bytes are not such a row.
pub fn decode_under_way(bytes: &[u8]) -> Option<(u64, usize, Vec<bool>)> {
    let (index, rest) = bytes.split_first_chunk::<8>()?;
    let (number, path) = rest.split_first_chunk::<4>()?;
    let path = path.iter().map(|taken| (*taken < 2).then_some(*taken == 1)).collect::<Option<_>>()?;
    Some((u64::from_be_bytes(*index), usize::try_from(u32::from_be_bytes(*number)).ok()?, path))
}

/// Key of one alarm.
pub fn alarm_key(member_id: u64, alarm: i32) -> Vec<u8> {
    [ALARM_PREFIX, &alarm.to_be_bytes(), &member_id.to_be_bytes()].concat()
}

/// Value of an alarm.
pub fn encode_raised_by(raised_by: RaisedBy) -> &'static [u8] {
    match raised_by {
        RaisedBy::Hand => b"",
        RaisedBy::Quota => b"q",
    }
}

/// The member, type and cause of an alarm; `None` if key and value are not an alarm.
pub fn decode_alarm(key: &[u8], value: &[u8]) -> Option<((u64, i32), RaisedBy)> {
    let (alarm, member) = key.strip_prefix(ALARM_PREFIX)?.split_first_chunk::<4>()?;
    let member: [u8; 8] = member.try_into().ok()?;
    let raised_by =
        [RaisedBy::Hand, RaisedBy::Quota].into_iter().find(|raised_by| encode_raised_by(*raised_by) == value)?;
    Some(((u64::from_be_bytes(member), i32::from_be_bytes(*alarm)), raised_by))
}

/// Key of one member.
pub fn member_key(id: u64) -> Vec<u8> {
    [MEMBER_PREFIX, &id.to_be_bytes()].concat()
}

/// Key of one former member.
pub fn removed_key(id: u64) -> Vec<u8> {
    [REMOVED_PREFIX, &id.to_be_bytes()].concat()
}

/// The inverse of [`removed_key`]; `None` if the bytes are not such a key.
pub fn decode_removed(key: &[u8]) -> Option<u64> {
    let id = key.strip_prefix(REMOVED_PREFIX)?;
    Some(u64::from_be_bytes(id.try_into().ok()?))
}

/// Value of the decision about a downgrade.
pub fn encode_downgrade(downgrade: &Downgrade) -> Vec<u8> {
    [&[u8::from(downgrade.is_enabled)], downgrade.target.as_bytes()].concat()
}

/// The inverse of [`encode_downgrade`]; `None` if the bytes are not such a value.
pub fn decode_downgrade(bytes: &[u8]) -> Option<Downgrade> {
    let (is_enabled, target) = bytes.split_first()?;
    let target = String::from_utf8(target.to_vec()).ok()?;
    (*is_enabled < 2).then_some(Downgrade { is_enabled: *is_enabled == 1, target })
}

/// Cluster id, then member id.
pub fn encode_identity(identity: &Identity) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&identity.cluster_id.to_be_bytes());
    out[8..].copy_from_slice(&identity.member_id.to_be_bytes());
    out
}

/// The inverse of [`encode_identity`]; `None` if the bytes are not an identity.
pub fn decode_identity(bytes: &[u8]) -> Option<Identity> {
    let (cluster_id, member_id) = bytes.split_first_chunk::<8>()?;
    let member_id: [u8; 8] = member_id.try_into().ok()?;
    Some(Identity { cluster_id: u64::from_be_bytes(*cluster_id), member_id: u64::from_be_bytes(member_id) })
}

/// Count of voters (4 bytes, big-endian), then the ids of voters and of learners (8 bytes each).
pub fn encode_conf_state(state: &ConfState) -> Vec<u8> {
    let voters = u32::try_from(state.voters.len()).expect("a cluster has few members");
    let mut out = voters.to_be_bytes().to_vec();
    for id in state.voters.iter().chain(&state.learners) {
        out.extend_from_slice(&id.to_be_bytes());
    }
    out
}

/// The inverse of [`encode_conf_state`]; `None` if the bytes are not a configuration.
pub fn decode_conf_state(bytes: &[u8]) -> Option<ConfState> {
    let (count, ids) = bytes.split_first_chunk::<4>()?;
    let (ids, rest) = ids.as_chunks::<8>();
    let voters = usize::try_from(u32::from_be_bytes(*count)).ok()?;
    if !rest.is_empty() || voters > ids.len() {
        return None;
    }
    let ids: Vec<u64> = ids.iter().map(|id| u64::from_be_bytes(*id)).collect();
    Some(ConfState { voters: ids[..voters].to_vec(), learners: ids[voters..].to_vec() })
}

/// What no member can start without, as the store keeps it beside its trees: identity, then the configuration. A
/// configuration of more members than there is room for is left out.
pub fn encode_vital(identity: &Identity, state: &ConfState) -> Vital {
    let mut out = encode_identity(identity).to_vec();
    let state = encode_conf_state(state);
    if out.len() + state.len() <= VITAL_MAX {
        out.extend(state);
    }
    Vital::new(&out).expect("there is room for an identity")
}

/// The inverse of [`encode_vital`]. `None` if there is no identity, or no configuration.
pub fn decode_vital(bytes: &[u8]) -> (Option<Identity>, Option<ConfState>) {
    let Some((identity, state)) = bytes.split_first_chunk::<16>() else { return (None, None) };
    (decode_identity(identity), decode_conf_state(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_vital_survives_its_encoding_and_many_members_are_left_out() {
        let identity = Identity { cluster_id: 1 << 60, member_id: 7 };
        for (members, is_kept) in [(1, true), (7, true), (29, true), (30, false)] {
            let state = ConfState { voters: (1..members).collect(), learners: vec![members] };
            let vital = encode_vital(&identity, &state);
            assert_eq!(decode_vital(vital.as_slice()), (Some(identity), is_kept.then_some(state)));
        }
        assert_eq!(decode_vital(&[]), (None, None));
    }

    #[test]
    fn alarms_survive_their_encoding_and_nonsense_is_refused() {
        for (member, alarm, raised_by) in [(7, 1, RaisedBy::Quota), (u64::MAX, -9, RaisedBy::Hand)] {
            let (key, value) = (alarm_key(member, alarm), encode_raised_by(raised_by));
            assert_eq!(decode_alarm(&key, value), Some(((member, alarm), raised_by)));
            assert_eq!(decode_alarm(&key[..12], value), None);
            assert_eq!(decode_alarm(&key, b"x"), None);
        }
    }

    #[test]
    fn former_members_and_downgrades_survive_their_encoding_and_nonsense_is_refused() {
        for id in [1, 1 << 60] {
            let key = removed_key(id);
            assert_eq!(decode_removed(&key), Some(id));
            assert_eq!((decode_removed(&key[..8]), decode_removed(&member_key(id))), (None, None));
        }
        for (is_enabled, target) in [(true, "3.6.0"), (false, "")] {
            let downgrade = Downgrade { is_enabled, target: target.to_owned() };
            assert_eq!(decode_downgrade(&encode_downgrade(&downgrade)), Some(downgrade));
        }
        assert_eq!(
            (decode_downgrade(b""), decode_downgrade(b"\x02"), decode_downgrade(b"\x01\xff")),
            (None, None, None)
        );
    }

    #[test]
    fn an_identity_survives_its_encoding_and_nonsense_is_refused() {
        let identity = Identity { cluster_id: 1 << 40, member_id: 7 };
        let bytes = encode_identity(&identity);
        assert_eq!(decode_identity(&bytes), Some(identity));
        assert_eq!(decode_identity(&bytes[..15]), None);
        assert_eq!(decode_identity(&[bytes.as_slice(), &[0]].concat()), None);
    }

    #[test]
    fn the_row_of_an_entry_under_way_survives_its_encoding_and_nonsense_is_refused() {
        for path in [vec![], vec![true, false, true]] {
            let bytes = encode_under_way(1 << 40, 7, &path);
            assert_eq!(decode_under_way(&bytes), Some((1 << 40, 7, path)));
            assert_eq!(decode_under_way(&bytes[..11]), None);
            assert_eq!(decode_under_way(&[&bytes[..], &[2]].concat()), None);
        }
    }

    #[test]
    fn conf_state_survives_its_encoding_and_nonsense_is_refused() {
        let state = ConfState { voters: vec![3, 1], learners: vec![9] };
        let bytes = encode_conf_state(&state);
        assert_eq!(decode_conf_state(&bytes), Some(state));
        assert_eq!(decode_conf_state(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode_conf_state(&[0, 0, 0, 9]), None);
    }
}
