//! What is asked of the server: keys, values and request messages, encoded ahead.
//!
//! A request differs from the one before it by its key only, so each kind is encoded once, by prost, and afterwards the
//! key's digits are written over the old ones. `Template` finds where they are by encoding two messages that differ
//! there alone.
//!
//! Keys are decimal numbers padded with zeros to the key size: readable in etcdctl, and `0` is a prefix of every loaded
//! key space that leaves a digit free. Values are letters drawn once from the seed; all writes of a run carry the same.

use prost::Message;
use proto::etcdserverpb as pb;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{error::Error, hpack::Path};

/// The sub-command with its own settings.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Put,
    Txn { puts: usize },
    Range(Reading),
    Mixed { reading: Reading, reads_per_write: f64 },
    List { prefix: Vec<u8>, page_keys: i64, is_serializable: bool },
    Lease { ttl_s: i64, is_once: bool },
    Watch { streams: usize, watchers_per_stream: usize, keys: u64, wants_prev_kv: bool },
}

/// How ranges are asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reading {
    /// Without it, single keys are drawn from the key space.
    pub(crate) target: Option<Target>,
    pub(crate) limit: i64,
    pub(crate) is_count_only: bool,
    pub(crate) is_keys_only: bool,
    pub(crate) is_serializable: bool,
}

/// The same range each time.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) key: Vec<u8>,
    pub(crate) range_end: Vec<u8>,
}

/// Everything that determines the requests of a run.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    pub(crate) kind: Kind,
    pub(crate) keys: Keys,
    pub(crate) value_bytes: usize,
    pub(crate) seed: u64,
}

/// The key space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Keys {
    bytes: usize,
    space: u64,
    is_sequential: bool,
}

/// Bytes at the head of a watched put's value that say when it was due.
pub(crate) const STAMP_BYTES: usize = 8;

impl Workload {
    /// The names under which latencies are kept apart; a request's class is its place here.
    pub(crate) fn classes(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Put => &["put"],
            Kind::Txn { .. } => &["txn"],
            Kind::Range(_) => &["range"],
            Kind::Mixed { .. } => &["read", "write"],
            Kind::List { .. } => &["page", "list"],
            Kind::Lease { .. } => &["keepalive"],
            Kind::Watch { .. } => &["put", "event"],
        }
    }

    /// What `items` in the report counts, where there is more to count than requests.
    pub(crate) fn item_name(&self) -> Option<&'static str> {
        match self.kind {
            Kind::List { .. } => Some("keys"),
            Kind::Watch { .. } => Some("events"),
            Kind::Put | Kind::Txn { .. } | Kind::Range(_) | Kind::Mixed { .. } | Kind::Lease { .. } => None,
        }
    }
}

impl Keys {
    /// **Errors**: the key space does not fit into keys of that size.
    pub(crate) fn new(bytes: usize, space: u64, is_sequential: bool) -> Result<Keys, Error> {
        if bytes == 0 {
            return Err(Error::Flag { flag: "key-size", reason: "etcd refuses empty keys".to_owned() });
        }
        if space == 0 {
            return Err(Error::Flag { flag: "key-space-size", reason: "at least one key is needed".to_owned() });
        }
        let digits = (space - 1).checked_ilog10().map_or(1, |log| log + 1);
        if usize::try_from(digits).expect("at most 20") > bytes {
            let reason = format!("{space} keys need {digits} digits, but --key-size is {bytes}");
            return Err(Error::Flag { flag: "key-space-size", reason });
        }
        Ok(Keys { bytes, space, is_sequential })
    }

    pub(crate) fn space(&self) -> u64 {
        self.space
    }

    /// The number of the key that a request touches first before which `sequence` keys were touched in order.
    fn number(&self, sequence: u64, random: &mut SmallRng) -> u64 {
        if self.is_sequential {
            sequence % self.space
        } else if self.space == 1 {
            0
        } else {
            random.random_range(0..self.space)
        }
    }

    /// Writes key `number` over `out`.
    fn write(&self, number: u64, out: &mut [u8]) {
        assert!(number < self.space);
        assert_eq!(out.len(), self.bytes);
        let mut rest = number;
        for digit in out.iter_mut().rev() {
            *digit = b'0' + u8::try_from(rest % 10).expect("a digit");
            rest /= 10;
        }
        assert_eq!(rest, 0, "the key space fits the key size");
    }

    fn key(&self, number: u64) -> Vec<u8> {
        let mut key = vec![0; self.bytes];
        self.write(number, &mut key);
        key
    }
}

/// An encoded request with places that change.
struct Template {
    message: Vec<u8>,
    key_positions: Vec<usize>,
    stamp_position: Option<usize>,
}

impl Template {
    /// `make` builds the message from a key and a value stamp, both of which it must place unchanged.
    fn new(keys: Keys, key_count: usize, has_stamp: bool, make: impl Fn(&[u8], &[u8]) -> Vec<u8>) -> Template {
        let encode = |key_byte: u8, stamp_byte: u8| make(&vec![key_byte; keys.bytes], &[stamp_byte; STAMP_BYTES]);
        let message = encode(0, 0);
        let key_positions = differing_runs(&message, &encode(0xff, 0), keys.bytes);
        assert_eq!(key_positions.len(), key_count);
        let stamp_position = if has_stamp {
            let runs = differing_runs(&message, &encode(0, 0xff), STAMP_BYTES);
            assert_eq!(runs.len(), 1);
            runs.first().copied()
        } else {
            None
        };
        Template { message, key_positions, stamp_position }
    }
}

/// Where two messages of one shape differ, as beginnings of runs of `run_bytes`.
fn differing_runs(a: &[u8], b: &[u8], run_bytes: usize) -> Vec<usize> {
    assert_eq!(a.len(), b.len());
    let mut runs = Vec::new();
    let mut at = 0;
    while at < a.len() {
        if a[at] == b[at] {
            at += 1;
        } else {
            runs.push(at);
            assert!((at..at + run_bytes).all(|i| a[i] != b[i]));
            at += run_bytes;
        }
    }
    runs
}

/// A request, ready to be sent.
pub(crate) struct Request<'a> {
    pub(crate) class: u8,
    pub(crate) path: Path,
    pub(crate) message: &'a [u8],
    /// The number of the key it touches (first).
    pub(crate) key: u64,
}

/// Makes the requests of one thread.
pub(crate) struct Requests {
    keys: Keys,
    random: SmallRng,
    /// By class, where the class is asked for by single requests.
    templates: Vec<(Path, Template)>,
    read_share: f64,
}

impl Requests {
    pub(crate) fn new(workload: &Workload, thread: u64) -> Requests {
        let keys = workload.keys;
        let value = value(workload);
        let put = |has_stamp| (Path::Put, put_template(keys, &value, has_stamp));
        let templates = match &workload.kind {
            Kind::Put => vec![put(false)],
            Kind::Watch { .. } => vec![put(true)],
            Kind::Txn { puts } => vec![(Path::Txn, txn_template(keys, &value, *puts))],
            Kind::Range(reading) => vec![(Path::Range, range_template(keys, reading))],
            Kind::Mixed { reading, .. } => vec![(Path::Range, range_template(keys, reading)), put(false)],
            Kind::List { .. } | Kind::Lease { .. } => Vec::new(),
        };
        let read_share = match workload.kind {
            Kind::Mixed { reads_per_write, .. } => reads_per_write / (1.0 + reads_per_write),
            _ => 1.0,
        };
        let random = SmallRng::seed_from_u64(workload.seed.wrapping_mul(1_000_003).wrapping_add(thread));
        Requests { keys, random, templates, read_share }
    }

    /// The next request; `sequence` is unique among those of all threads.
    pub(crate) fn next(&mut self, sequence: u64, intended_ns: u64) -> Request<'_> {
        let class = if self.templates.len() == 1 || self.random.random_bool(self.read_share) { 0 } else { 1 };
        let (path, template) = &mut self.templates[usize::from(class)];
        // Requests in order touch keys in order, each once a round.
        let keys_each = template.key_positions.len().max(1) as u64;
        let key = self.keys.number(sequence.wrapping_mul(keys_each), &mut self.random);
        let mut number = key;
        for &at in &template.key_positions {
            self.keys.write(number, &mut template.message[at..at + self.keys.bytes]);
            number = (number + 1) % self.keys.space;
        }
        if let Some(at) = template.stamp_position {
            template.message[at..at + STAMP_BYTES].copy_from_slice(&intended_ns.to_be_bytes());
        }
        Request { class, path: *path, message: &template.message, key }
    }
}

/// One page of a listing, of the revision the first page was of (0: the newest).
pub(crate) fn page_message(
    prefix: &[u8],
    from: &[u8],
    revision: i64,
    page_keys: i64,
    is_serializable: bool,
) -> Vec<u8> {
    let request = pb::RangeRequest {
        key: from.to_vec().into(),
        range_end: prefix_end(prefix).into(),
        limit: page_keys,
        revision,
        serializable: is_serializable,
        ..pb::RangeRequest::default()
    };
    request.encode_to_vec()
}

/// The range end that makes a range of all keys with `prefix`; no prefix means all keys.
pub(crate) fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    proto::wire_range::prefix_end(prefix).to_vec()
}

pub(crate) fn grant_message(ttl_s: i64) -> Vec<u8> {
    pb::LeaseGrantRequest { ttl: ttl_s, id: 0 }.encode_to_vec()
}

pub(crate) fn keep_alive_message(lease: i64) -> Vec<u8> {
    pb::LeaseKeepAliveRequest { id: lease }.encode_to_vec()
}

/// Creates a watcher of key `number` of the key space.
pub(crate) fn watch_message(keys: Keys, number: u64, wants_prev_kv: bool) -> Vec<u8> {
    let create = pb::WatchCreateRequest {
        key: keys.key(number).into(),
        prev_kv: wants_prev_kv,
        ..pb::WatchCreateRequest::default()
    };
    pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) }.encode_to_vec()
}

fn value(workload: &Workload) -> Vec<u8> {
    let mut random = SmallRng::seed_from_u64(workload.seed);
    (0..workload.value_bytes).map(|_| random.random_range(b'a'..=b'z')).collect()
}

fn put_template(keys: Keys, value: &[u8], has_stamp: bool) -> Template {
    Template::new(keys, 1, has_stamp, |key, stamp| {
        let mut value = value.to_vec();
        if has_stamp {
            value[..STAMP_BYTES].copy_from_slice(stamp);
        }
        pb::PutRequest { key: key.to_vec().into(), value: value.into(), ..pb::PutRequest::default() }.encode_to_vec()
    })
}

fn txn_template(keys: Keys, value: &[u8], puts: usize) -> Template {
    Template::new(keys, puts, false, |key, _| {
        let put =
            pb::PutRequest { key: key.to_vec().into(), value: value.to_vec().into(), ..pb::PutRequest::default() };
        let operation = pb::RequestOp { request: Some(pb::request_op::Request::RequestPut(put)) };
        pb::TxnRequest { success: vec![operation; puts], ..pb::TxnRequest::default() }.encode_to_vec()
    })
}

fn range_template(keys: Keys, reading: &Reading) -> Template {
    let request = pb::RangeRequest {
        limit: reading.limit,
        count_only: reading.is_count_only,
        keys_only: reading.is_keys_only,
        serializable: reading.is_serializable,
        ..pb::RangeRequest::default()
    };
    match &reading.target {
        Some(target) => {
            let (key, range_end) = (target.key.clone().into(), target.range_end.clone().into());
            let message = pb::RangeRequest { key, range_end, ..request }.encode_to_vec();
            Template { message, key_positions: Vec::new(), stamp_position: None }
        }
        None => Template::new(keys, 1, false, |key, _| {
            pb::RangeRequest { key: key.to_vec().into(), ..request.clone() }.encode_to_vec()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(kind: Kind, keys: Keys) -> Workload {
        Workload { kind, keys, value_bytes: 16, seed: 1 }
    }

    #[test]
    fn keys_are_padded_numbers_of_the_space() {
        let keys = Keys::new(4, 10_000, true).unwrap();
        assert_eq!(keys.key(42), b"0042");
        let mut random = SmallRng::seed_from_u64(0);
        assert_eq!(keys.number(10_001, &mut random), 1);
        assert!(Keys::new(3, 1_001, false).is_err());
        assert!(Keys::new(3, 1_000, false).is_ok());
        assert!(Keys::new(0, 1, false).is_err());
    }

    #[test]
    fn random_keys_reach_the_whole_space_and_repeat_with_the_seed() {
        let keys = Keys::new(8, 50, false).unwrap();
        let drawn = |seed| {
            let mut random = SmallRng::seed_from_u64(seed);
            (0..2_000).map(|i| keys.number(i, &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(drawn(3), drawn(3));
        assert_ne!(drawn(3), drawn(4));
        assert_eq!(drawn(3).into_iter().collect::<std::collections::BTreeSet<_>>().len(), 50);
    }

    #[test]
    fn patched_puts_equal_encoded_puts() {
        let keys = Keys::new(8, 1_000, true).unwrap();
        let load = workload(Kind::Watch { streams: 1, watchers_per_stream: 1, keys: 1, wants_prev_kv: false }, keys);
        let mut requests = Requests::new(&load, 0);
        for sequence in [0, 7, 999, 1_000] {
            let request = requests.next(sequence, 0x0102_0304_0506_0708);
            let put = pb::PutRequest::decode(request.message).unwrap();
            assert_eq!(put.key, keys.key(sequence % 1_000));
            assert_eq!(put.value[..STAMP_BYTES], [1, 2, 3, 4, 5, 6, 7, 8]);
            assert_eq!(put.value[STAMP_BYTES..], value(&load)[STAMP_BYTES..]);
        }
    }

    #[test]
    fn puts_of_a_txn_have_different_keys() {
        let keys = Keys::new(6, 7, true).unwrap();
        let mut requests = Requests::new(&workload(Kind::Txn { puts: 5 }, keys), 0);
        let txn = pb::TxnRequest::decode(requests.next(1, 0).message).unwrap();
        let key = |operation: &pb::RequestOp| match &operation.request {
            Some(pb::request_op::Request::RequestPut(put)) => put.key.clone(),
            other => panic!("{other:?}"),
        };
        let found: Vec<_> = txn.success.iter().map(key).collect();
        assert_eq!(found, [5, 6, 0, 1, 2].map(|number| keys.key(number)));
    }

    #[test]
    fn mixed_keeps_its_ratio() {
        let keys = Keys::new(8, 100, false).unwrap();
        let kind = Kind::Mixed { reading: Reading::default(), reads_per_write: 4.0 };
        let mut requests = Requests::new(&workload(kind, keys), 0);
        let reads = (0..10_000).filter(|&i| requests.next(i, 0).class == 0).count();
        assert!((7_700..8_300).contains(&reads), "{reads}");
    }
}
