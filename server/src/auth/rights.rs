//! Runs on: apply core, connection core.
//!
//! Rights: the keys that a user may read, and those that it may write, as its roles together grant them.
//!
//! Invariants:
//! - The ranges of `merged` are sorted; between two of them lies a key that is in none. So a range of keys is granted
//!   if one of them holds all of it, and a check is one binary search without an allocation.
//! - An end that is empty lies behind all keys.
//!
//! **Source** etcd v3.7.1 `server/auth/range_perm_cache.go`, `pkg/adt/interval_tree.go`.

use std::cmp::Ordering;

use bytes::Bytes;
use proto::authpb::{Permission, permission::Type};

/// What a check asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Right {
    /// To read.
    Read,
    /// To write, or delete.
    Write,
}

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    read: Ranges,
    write: Ranges,
}

impl Rights {
    /// What these permissions grant together.
    pub fn of<'a>(permissions: impl Iterator<Item = &'a Permission> + Clone) -> Self {
        let granting = |other: Type| {
            let granted = permissions.clone().filter(|permission| {
                let kind = permission.perm_type();
                kind == Type::Readwrite || kind == other
            });
            Ranges::of(granted.map(|permission| range(&permission.key, &permission.range_end)).collect())
        };
        Self { read: granting(Type::Read), write: granting(Type::Write) }
    }

    /// The end of the range that grants `key`, which is empty if that has none; `None` if it is not granted.
    pub fn end_at(&self, right: Right, key: &[u8]) -> Option<&[u8]> {
        self.ranges(right).end_at(key)
    }

    /// Whether all of a range is granted, as requests name one: an empty `end` is that key alone, one zero byte all
    /// keys from it on.
    pub fn grants(&self, right: Right, key: &[u8], end: &[u8]) -> bool {
        let ranges = self.ranges(right);
        match end {
            [] => ranges.has(key),
            [0] => ranges.has_all(key, &[]),
            end => ranges.has_all(key, end),
        }
    }

    fn ranges(&self, right: Right) -> &Ranges {
        match right {
            Right::Read => &self.read,
            Right::Write => &self.write,
        }
    }
}

/// A permission's range: its first key, and the first key behind it.
fn range(key: &Bytes, end: &Bytes) -> (Bytes, Bytes) {
    let end = match &end[..] {
        [] => [&key[..], &[0]].concat().into(),
        [0] => Bytes::new(),
        _ => end.clone(),
    };
    (key.clone(), end)
}

/// The order of two ends.
fn compare_ends(one: &[u8], other: &[u8]) -> Ordering {
    (one.is_empty(), one).cmp(&(other.is_empty(), other))
}

/// A set of keys: its ranges, see the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<(Bytes, Bytes)>);

impl Ranges {
    fn of(mut granted: Vec<(Bytes, Bytes)>) -> Self {
        granted.sort();
        let mut merged: Vec<(Bytes, Bytes)> = Vec::new();
        for (start, end) in granted {
            match merged.last_mut() {
                Some(last) if last.1.is_empty() || start <= last.1 => {
                    if compare_ends(&last.1, &end).is_lt() {
                        last.1 = end;
                    }
                }
                _ => merged.push((start, end)),
            }
        }
        Self(merged)
    }

    /// The end of the range in which `key` is.
    fn end_at(&self, key: &[u8]) -> Option<&[u8]> {
        let behind = self.0.partition_point(|(start, _)| &start[..] <= key);
        let (_, end) = self.0[..behind].last()?;
        (end.is_empty() || key < &end[..]).then_some(end)
    }

    fn has(&self, key: &[u8]) -> bool {
        self.end_at(key).is_some()
    }

    /// Of a range without keys, the one at which it begins. Where it is not granted as one range, etcd's answer depends
    /// on the shape of its tree.
    fn has_all(&self, key: &[u8], end: &[u8]) -> bool {
        let is_without_keys = !end.is_empty() && end <= key;
        self.end_at(key).is_some_and(|last| is_without_keys || compare_ends(end, last).is_le())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(perm_type: Type, key: &'static str, range_end: &'static str) -> Permission {
        Permission { perm_type: perm_type.into(), key: key.into(), range_end: range_end.into() }
    }

    fn rights(granted: &[(Type, &'static str, &'static str)]) -> Rights {
        let granted: Vec<_> = granted.iter().map(|(kind, key, end)| permission(*kind, key, end)).collect();
        Rights::of(granted.iter())
    }

    #[test]
    fn a_range_is_granted_by_all_that_grant_a_part_of_it() {
        let rights = rights(&[
            (Type::Read, "d", "f"),
            (Type::Read, "a", "c"),
            (Type::Read, "c", "d"),
            (Type::Readwrite, "x", ""),
            (Type::Write, "y", "\0"),
        ]);
        for (key, end, reads, writes) in [
            ("a", "", true, false),
            ("a", "f", true, false),
            ("b", "e", true, false),
            ("a", "g", false, false),
            ("", "b", false, false),
            ("f", "", false, false),
            ("x", "", true, true),
            ("x\0", "", false, false),
            ("x", "x\0", true, true),
            ("x", "y", false, false),
            ("y", "", false, true),
            ("z", "\0", false, true),
            ("x", "\0", false, false),
            ("y", "zz", false, true),
            ("b", "a", true, false),
            ("f", "a", false, false),
        ] {
            let asked = |right| rights.grants(right, key.as_bytes(), end.as_bytes());
            assert_eq!((asked(Right::Read), asked(Right::Write)), (reads, writes), "{key:?} to {end:?}");
        }
    }

    #[test]
    fn all_keys_are_granted_by_one_range_without_an_end() {
        let rights = rights(&[(Type::Readwrite, "\0", "\0"), (Type::Read, "a", "b")]);
        for (key, end) in [("\0", "\0"), ("a", ""), ("zzz", "\0"), ("a", "zzz")] {
            assert!(rights.grants(Right::Write, key.as_bytes(), end.as_bytes()));
        }
    }

    #[test]
    fn a_check_agrees_with_looking_at_every_key() {
        let ends = ["", "a", "b", "c", "d", "e", "\0"];
        let keys = ["a", "b", "c", "d", "e"];
        let mut state = 7_u32;
        let mut random = |below: usize| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) as usize % below
        };
        for _ in 0..500 {
            let granted: Vec<_> = (0..random(4))
                .map(|_| (Type::Read, keys[random(5)], ends[random(7)]))
                .filter(|(_, key, end)| end.is_empty() || *end == "\0" || key < end)
                .collect();
            let rights = rights(&granted);
            // Between two of the keys lies one more, so that a range is more than its first keys.
            let all: Vec<String> = keys.iter().flat_map(|key| [(*key).to_owned(), format!("{key}m")]).collect();
            let has = |key: &str, from: &str, end: &str| match end {
                "" => key == from,
                "\0" => key >= from,
                end => key >= from && key < end,
            };
            for (key, end) in keys.iter().flat_map(|key| ends.map(|end| (*key, end))) {
                if !end.is_empty() && end != "\0" && end <= key {
                    continue;
                }
                let asked = all.iter().filter(|one| has(one, key, end));
                let expected = asked.clone().all(|one| granted.iter().any(|(_, from, to)| has(one, from, to)))
                    && (end != "\0" || granted.iter().any(|(_, _, to)| *to == "\0"));
                let found = rights.grants(Right::Read, key.as_bytes(), end.as_bytes());
                assert_eq!(found, expected, "{granted:?} {key} {end:?}");
            }
        }
    }
}
