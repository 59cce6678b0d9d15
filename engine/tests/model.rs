//! The writer and its views against a plain model: random requests, compactions, sweeps, checkpoints into memory,
//! reopened trees.
//!
//! The model keeps every version for ever and computes each answer in the most obvious way. Pages lie in a map; what
//! was not read again after a reopening is faulted in one page at a time, so that every operation is also tried again
//! after faults.

#[cfg(test)]
mod model_store;

use std::sync::Arc;

use bytes::Bytes;
use engine::{
    KeyRange, RangeEnd, Revision,
    test_support::{HEADER_LEN, Node},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use model_store::{Store, range_strategy, some_key};

/// One run: batches of requests with every kind of disturbance between them.
fn run(seed: u64, batches: usize) {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut store = Store::new(seed);
    let mut held = Vec::new();
    for batch in 0..batches {
        for _ in 0..rng.random_range(1..6) {
            store.random_request(&mut rng);
        }
        if rng.random_bool(0.1) {
            store.compact(&mut rng);
        }
        if rng.random_bool(0.5) {
            store.sweep(rng.random_range(1..400));
        }
        if rng.random_bool(0.5) {
            store.evict(rng.random_range(1..50));
        }
        store.publish();
        if rng.random_bool(0.1) {
            store.seal();
        }
        if rng.random_bool(0.2) {
            store.checkpoint_done();
        }
        if rng.random_bool(0.02) {
            store.reopen();
            held.clear();
        }
        if rng.random_bool(0.05) {
            store.begin_walk(&mut rng);
        }
        store.lead_walks(&mut rng);
        if rng.random_bool(0.05) {
            held.push(store.mvcc.view());
        }
        if held.len() > 3 {
            let view = held.remove(0);
            store.check_range(&view, &KeyRange::all(), view.revision());
        }
        store.check(&mut rng);
        if batch % 8 == 0 || batch < 50 {
            store.verify();
        }
    }
    for view in held {
        store.check_range(&view, &KeyRange::all(), view.revision());
    }
    store.verify();
    assert!(batches < 1000 || store.evicted > 100, "the clock finds something");
}

#[test]
fn every_answer_equals_the_models() {
    for seed in 0..12 {
        run(seed, 250);
    }
}

#[test]
fn every_answer_equals_the_models_over_a_long_run() {
    run(1000, 3000);
}

#[test]
fn a_key_with_100000_versions_costs_no_walk() {
    let mut store = Store::new(1);
    for key in ["a", "hot", "z"] {
        store.put(key.as_bytes(), b"v");
    }
    for _ in 0..100_000 {
        store.mvcc.begin().put(Bytes::from_static(b"hot"), Bytes::new(), 0).unwrap();
    }
    let view = store.mvcc.publish(1, 1);
    let profile = view.verify().unwrap();
    assert_eq!(profile.entries, 100_003);
    // A leaf is full under the prefix it had; cut off, its keys share a longer one and take less.
    assert!(profile.fill_percent >= 75, "old versions fill their leaves: {profile:?}");
    assert_eq!(view.count(&KeyRange::all(), i64::MAX).unwrap(), 3);
    for at in [2, 3, 4, 5, 6, 50_000, 100_000, 100_004] {
        let found = view.version_of(b"hot", at).unwrap().map(|version| version.revision.main);
        assert_eq!(found, (at >= 3).then_some(if at == 4 { 3 } else { at }), "at {at}");
        let mut cursor = view.cursor(&KeyRange::all(), at);
        let mut keys = Vec::new();
        while let Some(version) = cursor.next().unwrap() {
            keys.push(version.key);
        }
        assert_eq!(
            keys.len(),
            if at == 2 {
                1
            } else if at == 3 {
                2
            } else {
                3
            }
        );
    }
    store.mvcc.compact(100_004);
    let mut steps = 0;
    while !store.mvcc.sweep(10_000).unwrap().is_done {
        steps += 1;
    }
    assert!(steps >= 9, "a sweep goes in bounded steps");
    let profile = store.mvcc.publish(1, 1).verify().unwrap();
    assert_eq!((profile.entries, profile.depth), (3, 1));
}

#[test]
fn keys_and_values_of_any_size_are_stored() {
    let mut store = Store::new(2);
    let long = |last: u8| [vec![b'x'; 1 << 20], vec![last]].concat();
    for round in 0..3u8 {
        for last in [3, 1, 2, 0, 255] {
            store.put(&long(last), &vec![round; 1 << 16]);
            store.put(&[last], b"");
            store.put(&[b"x", &[last][..]].concat(), b"");
            store.put(&vec![b'y'; 5000 + usize::from(last)], b"");
        }
        store.publish();
        store.verify();
        store.check_range(&store.mvcc.view(), &KeyRange::all(), i64::MAX);
    }
    store.seal();
    store.checkpoint_done();
    store.reopen();
    store.check_range(&store.mvcc.view(), &KeyRange::all(), i64::MAX);
    store.verify();
}

#[test]
fn leaves_fill_well_whatever_the_order() {
    let count = 40_000u32;
    let shuffled = |number: u32| SmallRng::seed_from_u64(u64::from(number)).random_range(0..1 << 40);
    type Order<'a> = &'a dyn Fn(u32) -> u64;
    let orders: [(&str, usize, Order); 4] = [
        ("ascending", 95, &|number| u64::from(number)),
        ("descending", 45, &|number| u64::from(count - number)),
        ("random", 65, &shuffled),
        // Eight rising sequences side by side, as namespaces are.
        ("interleaved", 70, &|number| u64::from(number % 8) * 1_000_000 + u64::from(number / 8)),
    ];
    for (name, fill_percent_min, order) in orders {
        let mut store = Store::new(3);
        for number in 0..count {
            let key = format!("/registry/pods/default/pod-{:012}", order(number));
            store.mvcc.begin().put(key.into(), Bytes::new(), 0).unwrap();
        }
        let profile = store.mvcc.publish(1, 1).verify().unwrap();
        assert!(profile.fill_percent >= fill_percent_min, "{name}: {profile:?}");
    }
}

#[test]
fn deleting_everything_leaves_an_empty_tree() {
    let mut store = Store::new(4);
    let mut rng = SmallRng::seed_from_u64(4);
    for _ in 0..3000 {
        let key = some_key(&mut rng);
        store.put(&key, b"value");
    }
    store.publish();
    store.delete_range(&KeyRange::all());
    let view = store.publish();
    assert_eq!(view.sums(&KeyRange::all(), u64::MAX).unwrap(), (0, 0));
    let revision = view.revision();
    store.compact_at(revision);
    store.sweep(usize::MAX);
    store.publish();
    store.verify();
    assert!(store.mvcc.view().verify().unwrap().entries > 0, "a tombstone at the compact revision stays");
    store.put(b"k", b"");
    store.publish();
    store.compact_at(revision + 1);
    store.sweep(usize::MAX);
    store.publish();
    let profile = store.mvcc.view().verify().unwrap();
    assert_eq!((profile.entries, profile.depth), (1, 1), "older tombstones go");
}

#[test]
fn a_hash_where_no_key_is_live_keeps_what_compaction_keeps() {
    let mut store = Store::new(8);
    for key in ["a", "b", "a", "c"] {
        store.put(key.as_bytes(), b"value");
    }
    store.delete_range(&KeyRange::single(Bytes::from_static(b"c")));
    store.put(b"d", b"value");
    store.compact_at(6);
    store.publish();
    store.delete_range(&KeyRange::all());
    store.publish();
    for swept in [0, 1, usize::MAX] {
        store.sweep(swept);
        store.publish();
        for at in 6..=8 {
            for budget in [1, 2, 1000] {
                store.check_hash(at, budget);
            }
        }
    }
}

#[test]
fn ranges_mean_what_they_say() {
    let mut rng = SmallRng::seed_from_u64(5);
    for _ in 0..2000 {
        let range = range_strategy(&mut rng);
        let key = some_key(&mut rng);
        let expected = match &range.end {
            RangeEnd::Single => key == range.start,
            RangeEnd::Open => key >= range.start,
            RangeEnd::Before(end) => key >= range.start && key < *end,
        };
        assert_eq!(range.contains(&key), expected);
        assert!(!(range.is_empty() && range.contains(&key)));
    }
    assert_eq!(KeyRange::prefix(b"a\xff").end, RangeEnd::Before(Bytes::from_static(b"b")));
    assert_eq!(KeyRange::prefix(b"\xff\xff").end, RangeEnd::Open);
}

#[test]
fn damaged_pages_are_refused_or_decoded_but_never_panic() {
    let mut store = Store::new(6);
    let mut rng = SmallRng::seed_from_u64(6);
    for _ in 0..300 {
        store.random_request(&mut rng);
    }
    store.publish();
    store.seal();
    store.checkpoint_done();
    let pages: Vec<Vec<u8>> = store.pages.values().map(|page| page[HEADER_LEN..].to_vec()).collect();
    assert!(pages.len() > 20, "inner nodes and leaves");
    let mut refused = 0;
    for round in 0..20_000 {
        let mut page = pages[round % pages.len()].clone();
        for _ in 0..rng.random_range(1..4) {
            match rng.random_range(0..4) {
                0 => page.truncate(rng.random_range(0..=page.len())),
                1 => page.extend(std::iter::repeat_with(|| rng.random::<u8>()).take(5)),
                _ if page.is_empty() => {}
                2 => {
                    let at = rng.random_range(0..page.len().min(40));
                    page[at] = rng.random();
                }
                _ => {
                    let at = rng.random_range(0..page.len());
                    page[at] ^= 1 << rng.random_range(0..8);
                }
            }
        }
        match Node::decode(&page, &Arc::default()) {
            Err(_) => refused += 1,
            Ok(node) => {
                // What is accepted can be used.
                node.sums();
                if node.children().count() == 0 {
                    let mut again = Vec::new();
                    node.encode(&mut again);
                    assert!(Node::decode(&again, &Arc::default()).is_ok());
                }
            }
        }
    }
    assert!(refused > 5_000, "damage is mostly seen: {refused}");
}

#[test]
fn records_come_in_revision_order_from_anywhere() {
    let mut store = Store::new(7);
    let mut rng = SmallRng::seed_from_u64(7);
    for _ in 0..400 {
        store.random_request(&mut rng);
    }
    let view = store.publish();
    for _ in 0..200 {
        let from = Revision::new(rng.random_range(0..view.revision() + 2), rng.random_range(0..3));
        store.check_records_from(&view, from);
    }
}
