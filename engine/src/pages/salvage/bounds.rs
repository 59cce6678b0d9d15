//! Ranges in the order of tree entries: by key, and of one key the newest first.

use crate::{Revision, tree::Separator};

/// The entries from `low` on and before `high`. `None` is no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) low: Option<Separator>,
    pub(super) high: Option<Separator>,
}

/// Whether `entry` comes before `bound`.
fn is_before(entry: (&[u8], Revision), bound: &Separator) -> bool {
    entry.0.cmp(&bound.key).then_with(|| bound.revision.cmp(&entry.1)).is_lt()
}

impl Span {
    /// Whether the version of `key` at `revision` is in it.
    pub(super) fn holds(&self, key: &[u8], revision: Revision) -> bool {
        let entry = (key, revision);
        !self.low.as_ref().is_some_and(|low| is_before(entry, low))
            && self.high.as_ref().is_none_or(|high| is_before(entry, high))
    }

    /// Whether a version of `key` can be in it.
    pub(super) fn can_hold(&self, key: &[u8]) -> bool {
        self.low.as_ref().is_none_or(|low| key >= &low.key[..])
            && self.high.as_ref().is_none_or(|high| key <= &high.key[..])
    }

    /// What is in both; `None` if nothing can be.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        let low = match (&self.low, &other.low) {
            (Some(a), Some(b)) => Some(if is_before((&a.key, a.revision), b) { b } else { a }),
            (one, None) | (None, one) => one.as_ref(),
        };
        let high = match (&self.high, &other.high) {
            (Some(a), Some(b)) => Some(if is_before((&a.key, a.revision), b) { a } else { b }),
            (one, None) | (None, one) => one.as_ref(),
        };
        let is_some = match (low, high) {
            (Some(low), Some(high)) => is_before((&low.key, low.revision), high),
            _ => true,
        };
        is_some.then(|| Self { low: low.cloned(), high: high.cloned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(key: &str, main: i64) -> Option<Separator> {
        let revision = if main == 0 { Revision::MAX } else { Revision::new(main, 0) };
        Some(Separator { key: key.as_bytes().to_vec(), revision })
    }

    #[test]
    fn a_span_holds_what_lies_between_its_bounds_in_the_order_of_entries() {
        let span = Span { low: at("b", 5), high: at("c", 0) };
        let holds = |key: &str, main| span.holds(key.as_bytes(), Revision::new(main, 0));
        assert!(!holds("b", 6) && holds("b", 5) && holds("b", 1) && holds("bz", 9) && !holds("c", 9));
        assert!(Span::default().holds(b"", Revision::new(1, 0)));
        assert!(span.can_hold(b"b") && span.can_hold(b"c") && !span.can_hold(b"a") && !span.can_hold(b"d"));
        let other = Span { low: at("a", 0), high: at("b", 3) };
        assert_eq!(span.and(&other), Some(Span { low: at("b", 5), high: at("b", 3) }));
        assert_eq!(span.and(&Span { low: at("c", 0), high: None }), None);
        assert_eq!(span.and(&Span::default()), Some(span.clone()));
    }
}
