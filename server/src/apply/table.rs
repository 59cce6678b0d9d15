//! Runs on: commit core.
//!
//! Keys of the meta tree that are not leases: members, configuration, versions. The only place that knows them.
//!
//! | key | value |
//! |---|---|
//! | `m` member id (8 bytes, big-endian) | etcd's member JSON |
//! | `c` | voters and learners, see [`encode_conf_state`] |
//! | `v` | cluster version, text |
//! | `i` | cluster id, member id (8 bytes each, big-endian) |
//!
//! Leases have `l` and `a`: see `lease`.

use consensus::ConfState;

use crate::core::Identity;

/// Members.
pub const MEMBER_PREFIX: &[u8] = b"m";
/// Raft's configuration at the applied index.
pub const CONF_STATE: &[u8] = b"c";
/// Decided cluster version.
pub const CLUSTER_VERSION: &[u8] = b"v";
/// Who this store belongs to.
pub const IDENTITY: &[u8] = b"i";

/// Key of one member.
pub fn member_key(id: u64) -> Vec<u8> {
    [MEMBER_PREFIX, &id.to_be_bytes()].concat()
}

/// Cluster id, then member id.
pub fn encode_identity(identity: &Identity) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&identity.cluster_id.to_be_bytes());
    out[8..].copy_from_slice(&identity.member_id.to_be_bytes());
    out
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

/// The inverse of [`encode_conf_state`]; `None` if the bytes are no such thing.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conf_state_survives_its_encoding_and_nonsense_is_refused() {
        let state = ConfState { voters: vec![3, 1], learners: vec![9] };
        let bytes = encode_conf_state(&state);
        assert_eq!(decode_conf_state(&bytes), Some(state));
        assert_eq!(decode_conf_state(&bytes[..bytes.len() - 1]), None);
        assert_eq!(decode_conf_state(&[0, 0, 0, 9]), None);
    }
}
