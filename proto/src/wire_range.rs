//! What a pair (key, range_end) means, once: Range, DeleteRange, Compare, Watch and permissions all use it.
//!
//! | key | range_end | meaning |
//! |---|---|---|
//! | k | empty | exactly k |
//! | k | one zero byte | every key >= k; with k itself one zero byte: every key |
//! | k | e | k <= key < e, bytewise; empty when e <= k |
//!
//! Invariants: `Bounded` may be empty (`end <= start`), the others never are. An empty key is a key like any other
//! here; that requests refuse it, and that a watch takes it for one zero byte, is behaviour and stands with those who
//! do so.
//!
//! Source: etcd-3.7.1 `server/storage/mvcc/index.go`, `pkg/adt`; prefix ends: `client/v3/op.go` `getPrefix`.

use bytes::Bytes;

/// The `range_end` that means "no end".
pub const NO_END: &[u8] = b"\0";

/// What a pair (key, range_end) on the wire means: a set of keys, contiguous in byte order.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub enum WireRange {
    /// Exactly this key.
    Single(Bytes),
    /// This key and every key after it.
    From(Bytes),
    /// `start <= key < end`; nothing when `end <= start`.
    Bounded {
        /// First key.
        start: Bytes,
        /// First key behind the range.
        end: Bytes,
    },
}

impl WireRange {
    /// What `key` and `range_end` of a request mean.
    #[must_use]
    pub fn new(key: Bytes, range_end: Bytes) -> Self {
        if range_end.is_empty() {
            Self::Single(key)
        } else if range_end == NO_END {
            Self::From(key)
        } else {
            Self::Bounded { start: key, end: range_end }
        }
    }

    /// All keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: Bytes) -> Self {
        if prefix.is_empty() {
            return Self::From(prefix);
        }
        let end = prefix_end(&prefix);
        Self::new(prefix, end)
    }

    /// Whether no key can be in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Single(_) | Self::From(_) => false,
            Self::Bounded { start, end } => end <= start,
        }
    }

    /// The smallest key that may be in it.
    #[must_use]
    pub fn start(&self) -> &Bytes {
        match self {
            Self::Single(key) => key,
            Self::From(start) | Self::Bounded { start, .. } => start,
        }
    }

    /// Whether `key` is in it.
    #[must_use]
    pub fn contains(&self, key: &[u8]) -> bool {
        match self {
            Self::Single(only) => key == only,
            Self::From(start) => key >= start,
            Self::Bounded { start, end } => key >= start && key < end,
        }
    }

    /// Whether `key` is behind every key of it: a scan in key order may stop there.
    #[must_use]
    pub fn is_past(&self, key: &[u8]) -> bool {
        match self {
            Self::Single(only) => key > only,
            Self::From(_) => false,
            Self::Bounded { end, .. } => key >= end,
        }
    }

    /// Whether every key of `other` is in it. An empty range is in every range.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        if other.is_empty() {
            return true;
        }
        if !self.contains(other.start()) {
            return false;
        }
        match (self, other) {
            (Self::From(_), _) | (_, Self::Single(_)) => true,
            // The smallest key behind `k` is `k` with a zero byte added: only a range that ends there holds no more
            // than `k`.
            (Self::Single(only), Self::Bounded { end, .. }) => is_successor(only, end),
            (Self::Single(_) | Self::Bounded { .. }, Self::From(_)) => false,
            (Self::Bounded { end, .. }, Self::Bounded { end: other_end, .. }) => other_end <= end,
        }
    }

    /// Whether some key can be in both.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        if self.is_empty() || other.is_empty() {
            return false;
        }
        let start = self.start().max(other.start());
        self.contains(start) && other.contains(start)
    }
}

/// Whether `end` is the very next key after `key`.
fn is_successor(key: &[u8], end: &[u8]) -> bool {
    end.split_last() == Some((&0, key))
}

/// The `range_end` that makes a range of all keys beginning with `prefix`, as etcd's clients compute it: the last byte
/// below 0xff is raised and what follows it dropped; one zero byte (no end) if there is no such byte.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Bytes {
    let Some(last) = prefix.iter().rposition(|&byte| byte < 0xff) else {
        return Bytes::from_static(NO_END);
    };
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Bytes::from(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(key: &'static [u8], range_end: &'static [u8]) -> WireRange {
        WireRange::new(Bytes::from_static(key), Bytes::from_static(range_end))
    }

    /// Every key of up to three bytes of a small alphabet with the corners in it.
    fn keys() -> Vec<Vec<u8>> {
        let alphabet = [0x00, 0x01, b'a', 0xfe, 0xff];
        let mut keys = vec![vec![]];
        for longer_than in 0..3 {
            let shorter: Vec<_> = keys.iter().filter(|key| key.len() == longer_than).cloned().collect();
            for key in shorter {
                keys.extend(alphabet.iter().map(|&byte| [key.as_slice(), &[byte]].concat()));
            }
        }
        keys
    }

    fn ranges() -> Vec<WireRange> {
        let keys: Vec<_> = keys().into_iter().filter(|key| key.len() <= 2).map(Bytes::from).collect();
        keys.iter().flat_map(|key| keys.iter().map(|end| WireRange::new(key.clone(), end.clone()))).collect()
    }

    #[test]
    fn range_end_has_three_meanings() {
        assert_eq!(range(b"k", b""), WireRange::Single(Bytes::from_static(b"k")));
        assert_eq!(range(b"k", b"\0"), WireRange::From(Bytes::from_static(b"k")));
        assert!(range(b"k", b"").contains(b"k") && !range(b"k", b"").contains(b"k\0"));
        assert!(range(b"k", b"\0").contains(b"\xff\xff") && !range(b"k", b"\0").contains(b"j\xff"));
        assert!(
            range(b"a", b"c").contains(b"a")
                && range(b"a", b"c").contains(b"b\xff")
                && !range(b"a", b"c").contains(b"c")
        );
        assert!(range(b"\0", b"\0").contains(b"\0") && range(b"\0", b"\0").contains(b"\xff"));
        assert!(range(b"b", b"b").is_empty() && range(b"b", b"a").is_empty() && !range(b"b", b"b\0").is_empty());
        assert!(!range(b"b", b"a").contains(b"a") && !range(b"b", b"a").contains(b"b"));
    }

    #[test]
    fn prefix_range_holds_exactly_the_keys_with_the_prefix() {
        assert_eq!(prefix_end(b"aa"), "ab");
        assert_eq!(prefix_end(b"a\xff"), "b");
        assert_eq!(prefix_end(b"\xff\xff"), NO_END);
        assert_eq!(prefix_end(b""), NO_END);
        let keys = keys();
        for prefix in keys.iter().filter(|prefix| prefix.len() <= 2) {
            let range = WireRange::prefix(Bytes::from(prefix.clone()));
            for key in &keys {
                assert_eq!(range.contains(key), key.starts_with(prefix), "{prefix:x?} {key:x?}");
            }
        }
    }

    #[test]
    fn relations_agree_with_membership_of_each_key() {
        let keys = keys();
        let members = |range: &WireRange| -> Vec<bool> { keys.iter().map(|key| range.contains(key)).collect() };
        let ranges: Vec<_> = ranges().into_iter().step_by(7).map(|range| (members(&range), range)).collect();
        for (in_a, a) in &ranges {
            assert!(!a.is_empty() || !in_a.contains(&true), "{a:?}");
            for (key, is_in) in keys.iter().zip(in_a) {
                assert!(!(*is_in && (a.is_past(key) || key.as_slice() < a.start())), "{a:?} {key:x?}");
            }
            for (in_b, b) in &ranges {
                let both = in_a.iter().zip(in_b).any(|(a, b)| *a && *b);
                let all = in_a.iter().zip(in_b).all(|(a, b)| *a || !*b);
                assert!(a.intersects(b) || !both, "{a:?} {b:?}");
                assert!(!a.covers(b) || all, "{a:?} {b:?}");
                assert_eq!(a.intersects(b), b.intersects(a), "{a:?} {b:?}");
                assert!(!a.covers(b) || b.is_empty() || a.intersects(b), "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn covers_knows_that_a_range_of_one_key_equals_the_key() {
        assert!(range(b"k", b"").covers(&range(b"k", b"k\0")));
        assert!(!range(b"k", b"").covers(&range(b"k", b"k\0\0")));
        assert!(range(b"k", b"k\0").covers(&range(b"k", b"")));
        assert!(range(b"k", b"\0").covers(&range(b"z", b"\0")) && !range(b"k", b"zz").covers(&range(b"k", b"\0")));
        assert!(range(b"a", b"d").covers(&range(b"b", b"d")) && !range(b"a", b"d").covers(&range(b"b", b"d\0")));
    }
}
