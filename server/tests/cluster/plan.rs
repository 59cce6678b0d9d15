//! What decides a run: its seed, what takes part, how long it lasts, and the faults.
//!
//! A plan is drawn from a seed, and can then be made smaller. Each client, link and disk draws from a sequence of its
//! own, so what is left behaves as it did, as far as others let it.

use std::{env, fmt, time::Duration};

use engine::disk::sim::Random;

use super::faults::{self, Blow, Fault};

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: usize,
    pub(crate) clients: usize,
    pub(crate) lease_clients: usize,
    pub(crate) watch_clients: usize,
    /// Clients ask for single keys alone, and an order is searched that explains what they were told.
    pub(crate) is_searched: bool,
    /// Keys of which many are written and deleted together.
    pub(crate) bulk_keys: u64,
    pub(crate) operators: usize,
    /// The longest pause of a client between two requests. **Units** microseconds.
    pub(crate) pause_us_max: u64,
    /// How long faults happen. Then the cluster heals.
    pub(crate) time: Duration,
    pub(crate) blows: Vec<Blow>,
}

/// The sequence of chance of `part` number `number` of the run of `seed`.
pub(crate) fn sequence(seed: u64, part: &str, number: usize) -> Random {
    let mut mixed = Random::new(seed).bits();
    for byte in part.bytes().chain(number.to_le_bytes()) {
        mixed = Random::new(mixed ^ u64::from(byte)).bits();
    }
    Random::new(mixed)
}

/// The number in the variable `name`.
pub(crate) fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().expect("a number"))
}

impl Plan {
    /// The plan of `seed`, for `time`, with faults of these `kinds`.
    pub(crate) fn drawn(seed: u64, time: Duration, kinds: &[Fault]) -> Self {
        let mut random = sequence(seed, "plan", 0);
        Self {
            seed,
            members: if random.chance(1, 4) { 5 } else { 3 },
            clients: 6,
            lease_clients: 4,
            watch_clients: 4,
            is_searched: seed % 8 == 5,
            bulk_keys: if random.chance(1, 20) { 5000 } else { 150 },
            // Members come and go in half of the runs: who is away long is removed then, and does not err for long.
            operators: if sequence(seed, "operators", 0).chance(1, 2) { 2 } else { 0 },
            pause_us_max: [60_000, 600_000, 3_000_000][usize::try_from(random.below(3)).expect("small")],
            time,
            blows: faults::drawn(&mut random, time, kinds),
        }
    }

    /// As the variables say that [`Plan`] shows.
    pub(crate) fn reduced(mut self) -> Self {
        let count = |name, drawn| number(name).map_or(drawn, |count| usize::try_from(count).expect("a number"));
        self.clients = count("ORLOP_CLUSTER_CLIENTS", self.clients);
        self.lease_clients = count("ORLOP_CLUSTER_LEASES", self.lease_clients);
        self.watch_clients = count("ORLOP_CLUSTER_WATCHES", self.watch_clients);
        self.operators = count("ORLOP_CLUSTER_OPERATORS", self.operators);
        if let Some(millis) = number("ORLOP_CLUSTER_MILLIS") {
            self.end_at(Duration::from_millis(millis));
        }
        if let Ok(kept) = env::var("ORLOP_CLUSTER_FAULTS") {
            let kept: Vec<&str> = kept.split(',').collect();
            self.blows.retain(|blow| kept.contains(&blow.number.to_string().as_str()));
        }
        self
    }

    /// Lets nothing happen behind `time`.
    pub(crate) fn end_at(&mut self, time: Duration) {
        self.time = time;
        self.blows.retain(|blow| blow.at <= time);
    }
}

/// The variables that ask for exactly this plan.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.blows.iter().map(|blow| blow.number.to_string()).collect();
        let Self { seed, clients, lease_clients, watch_clients, operators, time, .. } = self;
        write!(
            f,
            "ORLOP_CLUSTER_SEEDS=1 ORLOP_CLUSTER_SEED={seed} ORLOP_CLUSTER_MILLIS={} ORLOP_CLUSTER_CLIENTS={clients} \
             ORLOP_CLUSTER_LEASES={lease_clients} ORLOP_CLUSTER_WATCHES={watch_clients} \
             ORLOP_CLUSTER_OPERATORS={operators} ORLOP_CLUSTER_FAULTS={}",
            time.as_millis(),
            faults.join(",")
        )
    }
}
