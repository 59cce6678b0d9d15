//! Runs on: connection core.
//!
//! Finds the most frequent of many items in a bounded table, with the space-saving algorithm.
//!
//! Invariants: there are at most `items_max` items. An item's `count` is at least its true count, and exceeds it by at
//! most `error`. An item with more than a share of `1 / items_max` of everything is in the table.
//! **Source** Metwally, Agrawal, El Abbadi, "Efficient Computation of Frequent and Top-k Elements in Data Streams",
//! 2005.

use std::collections::HashMap;

/// An item of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// How often the item came, at most.
    pub count: u64,
    /// The part of that count which may belong to another item.
    pub error: u64,
    /// How often the item was written since it came into the table.
    pub writes: u64,
}

/// See the head of this file.
#[derive(Clone, Debug, Default)]
pub struct Sketch {
    items: Vec<(Box<[u8]>, Count)>,
    positions: HashMap<Box<[u8]>, usize>,
}

impl Sketch {
    /// Adds `weight` to `item`. If the item is new and there are `items_max` already, it takes the place of another.
    pub fn add(&mut self, item: &[u8], weight: u64, is_write: bool, items_max: usize) {
        let position = match self.positions.get(item) {
            Some(position) => *position,
            None if self.items.len() < items_max => {
                self.positions.insert(item.into(), self.items.len());
                self.items.push((item.into(), Count::default()));
                self.items.len() - 1
            }
            None => self.replace_rarest(item),
        };
        let count = &mut self.items[position].1;
        count.count += weight;
        count.writes += if is_write { weight } else { 0 };
    }

    fn replace_rarest(&mut self, item: &[u8]) -> usize {
        let rarest = self.items.iter().enumerate().min_by_key(|(_, (_, count))| count.count);
        let position = rarest.expect("a table holds something").0;
        let (before, count) = &mut self.items[position];
        *count = Count { count: count.count, error: count.count, writes: 0 };
        self.positions.remove(before);
        *before = item.into();
        self.positions.insert(item.into(), position);
        position
    }

    /// Forgets all items.
    pub fn clear(&mut self) {
        self.items.clear();
        self.positions.clear();
    }

    /// The items, in no order.
    pub fn items(&self) -> &[(Box<[u8]>, Count)] {
        &self.items
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn frequent_items_are_found_among_many_and_never_undercounted() {
        let mut random = SmallRng::seed_from_u64(3);
        let mut sketch = Sketch::default();
        let mut truth: HashMap<Vec<u8>, u64> = HashMap::new();
        for _ in 0..50_000 {
            // Ten items have half of the traffic. The rest is spread over many items.
            let number =
                if random.random_bool(0.5) { random.random_range(0..10) } else { random.random_range(10..100_000) };
            let item = format!("item{number}").into_bytes();
            sketch.add(&item, 2, number == 3, 64);
            *truth.entry(item).or_default() += 2;
        }
        assert_eq!((sketch.items().len(), sketch.positions.len()), (64, 64));
        for (item, count) in sketch.items() {
            let true_count = truth[&item[..]];
            assert!((count.count - count.error..=count.count).contains(&true_count), "{count:?} for {true_count}");
            assert_eq!(sketch.items[sketch.positions[item]].0, *item);
            assert_eq!(count.writes > 0, &item[..] == b"item3");
        }
        let mut top: Vec<_> = sketch.items().to_vec();
        top.sort_by_key(|(_, count)| std::cmp::Reverse(count.count));
        let hottest: Vec<_> = top[..10].iter().map(|(item, _)| item.clone()).collect();
        assert!((0..10).all(|number| hottest.contains(&format!("item{number}").into_bytes().into())), "{top:?}");
    }
}
