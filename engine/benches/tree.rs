//! Cost of puts, gets and counts on a tree that is in memory: `cargo bench -p engine --bench tree [keys]`.
//!
//! Plain loops over one thread, CPU time, the best of three rounds: for comparing changes to the tree on one machine,
//! which may be busy with other things, not for promises.

use std::{hint::black_box, time::Duration};

use bytes::Bytes;
use engine::{
    KeyRange, Mvcc, RangeEnd, Roots,
    test_support::{BlockCache, Directory},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rustix::time::{ClockId, clock_gettime};

// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: u64 = 100;
const OPERATIONS: u64 = 200_000;

fn key_of(number: u64) -> Bytes {
    format!("/registry/pods/namespace-{:02}/pod-{:010}", number % 50, number).into()
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ThreadCPUTime).try_into().expect("CPU time is positive")
}

struct Bench {
    mvcc: Mvcc,
    rng: SmallRng,
    keys: u64,
    index: u64,
    /// Part of the names of the loops to run.
    wanted: Option<String>,
}

impl Bench {
    fn best_ns(&mut self, name: &str, operations: u64, mut round: impl FnMut(&mut Self)) {
        if !self.wanted.as_ref().is_none_or(|wanted| name.contains(wanted.as_str())) {
            return;
        }
        let best = (0..3)
            .map(|_| {
                let start = cpu_time();
                round(self);
                (cpu_time() - start).as_nanos() / u128::from(operations)
            })
            .min();
        println!("{name:<40} {:>7} ns", best.unwrap_or_default());
    }

    fn puts(&mut self, count: u64, mut number: impl FnMut(&mut SmallRng, u64) -> u64) {
        let value = Bytes::from_static(&[7; 256]);
        for done in 0..count {
            let key = key_of(number(&mut self.rng, done));
            let mut write = self.mvcc.begin();
            write.put(key, value.clone(), 0).expect("all is in memory");
            write.finish();
            if done % BATCH == BATCH - 1 {
                self.index += 1;
                self.mvcc.publish(self.index, 1);
            }
        }
        self.index += 1;
        self.mvcc.publish(self.index, 1);
    }
}

fn main() {
    let (numbers, names): (Vec<String>, Vec<String>) = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with("--"))
        .partition(|argument| argument.parse::<u64>().is_ok());
    let keys = numbers.first().and_then(|number| number.parse().ok()).unwrap_or(1_000_000);
    let wanted = names.into_iter().next();
    let mvcc = Mvcc::new(Roots::fresh(Directory::empty(BlockCache::new(1 << 20))));
    let mut bench = Bench { mvcc, rng: SmallRng::seed_from_u64(1), keys, index: 0, wanted };

    let start = cpu_time();
    bench.puts(keys, |rng, _| rng.random_range(0..keys * 4));
    println!("{:<40} {:>7} ns", "fill, random keys", (cpu_time() - start).as_nanos() / u128::from(keys));
    println!("{:?}", bench.mvcc.view().verify());

    bench.best_ns("key made only", OPERATIONS, |bench| {
        for _ in 0..OPERATIONS {
            black_box(key_of(bench.rng.random_range(0..bench.keys * 4)));
        }
    });
    bench.best_ns("put, random key, batches of 100", OPERATIONS, |bench| {
        let keys = bench.keys;
        bench.puts(OPERATIONS, |rng, _| rng.random_range(0..keys * 4));
    });
    bench.best_ns("put, ascending keys, batches of 100", OPERATIONS, |bench| {
        let base = bench.keys * 4 + bench.index * BATCH;
        bench.puts(OPERATIONS, |_, done| base + done);
    });
    bench.best_ns("put, one key, batches of 100", OPERATIONS, |bench| bench.puts(OPERATIONS, |_, _| 17));
    let view = bench.mvcc.view();
    bench.best_ns("get, random key", OPERATIONS, |bench| {
        for _ in 0..OPERATIONS {
            let key = key_of(bench.rng.random_range(0..bench.keys * 4));
            black_box(view.get(&key, view.revision()).expect("all is in memory"));
        }
    });
    bench.best_ns("version_of, random key", OPERATIONS, |bench| {
        for _ in 0..OPERATIONS {
            let key = key_of(bench.rng.random_range(0..bench.keys * 4));
            black_box(view.version_of(&key, view.revision()).expect("all is in memory"));
        }
    });
    bench.best_ns("count, random range", OPERATIONS, |bench| {
        for _ in 0..OPERATIONS {
            let start = key_of(bench.rng.random_range(0..bench.keys * 4));
            let end = key_of(bench.rng.random_range(0..bench.keys * 4));
            let range = KeyRange { start, end: RangeEnd::Before(end) };
            black_box(view.count(&range, view.revision()).expect("all is in memory"));
        }
    });
    bench.best_ns("cursor, per key of 500", OPERATIONS, |bench| {
        for _ in 0..OPERATIONS / 500 {
            let range = KeyRange { start: key_of(bench.rng.random_range(0..bench.keys * 4)), end: RangeEnd::Open };
            let mut cursor = view.cursor(&range, view.revision());
            for _ in 0..500 {
                black_box(cursor.next().expect("all is in memory"));
            }
        }
    });
    sweep(&mut bench);
}

fn sweep(bench: &mut Bench) {
    let revision = bench.mvcc.view().revision();
    bench.mvcc.compact(revision);
    let start = cpu_time();
    let mut dropped = 0;
    loop {
        let progress = bench.mvcc.sweep(1000).expect("all is in memory");
        dropped += progress.dropped;
        if progress.is_done {
            break;
        }
    }
    println!(
        "{:<40} {:>7} ns",
        "sweep, per version dropped",
        (cpu_time() - start).as_nanos() / u128::from(dropped.max(1))
    );
    println!("{:?}", bench.mvcc.publish(bench.index, 1).verify());
}
