//! Runs on: connection core.
//!
//! Counts which keys and prefixes are asked for most. The counts cover at least the last [`WINDOW`] and at most twice
//! that.
//!
//! Each core counts the requests that it serves in two tables of bounded size: one for keys, one for prefixes that end
//! with a slash. A busy core looks only at every [`SAMPLE_EVERY`]th request, which then counts for all of them. The
//! core publishes its tables once a second. A reader merges the tables of all cores.
//!
//! Invariants: [`ITEMS_MAX`] and [`ITEM_BYTES_MAX`] bound the memory, whatever clients ask. `previous` is the window
//! directly before `current`, or empty.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, TxnRequest, request_op::Request as Op},
    txn,
};

use super::sketch::{Count, Sketch};
use crate::method::Method;

/// Length of a window.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Requests per second and core that are all looked at.
const ALL_PER_S: u32 = 1000;
/// Beyond that number, one request in this many is looked at.
const SAMPLE_EVERY: u32 = 64;
/// Items in a table.
const ITEMS_MAX: usize = 256;
/// Bytes of a key that count; longer keys are cut. **Units** bytes.
const ITEM_BYTES_MAX: usize = 256;
/// Prefixes of one key that are counted.
const PREFIXES_MAX: usize = 4;

/// The counts of one window.
#[derive(Clone, Debug, Default)]
struct Window {
    began: Duration,
    keys: Sketch,
    prefixes: Sketch,
}

/// The counts of one core.
#[derive(Clone, Debug, Default)]
pub struct Heat {
    current: Window,
    previous: Window,
    second: u64,
    in_second: u32,
    has_news: bool,
}

/// The subject of a request: a key, whose prefixes count too, or a range.
#[derive(Debug, PartialEq, Eq)]
struct Subject {
    key: Bytes,
    is_range: bool,
    is_write: bool,
}

/// The subject of a request. For a txn it is the subject of its first compare, or of its first operation if there is no
/// compare.
fn subject(method: Method, body: &Bytes) -> Option<Subject> {
    let (key, range_end, is_write) = match method {
        Method::Put => (PutRequest::decode(body.clone()).ok()?.key, Bytes::new(), true),
        Method::Range => {
            let range = RangeRequest::decode(body.clone()).ok()?;
            (range.key, range.range_end, false)
        }
        Method::DeleteRange => {
            let delete = DeleteRangeRequest::decode(body.clone()).ok()?;
            (delete.key, delete.range_end, true)
        }
        Method::Txn => return of_txn(&txn::decode(body.clone()).ok()?),
        _ => return None,
    };
    Some(Subject { key, is_range: !range_end.is_empty(), is_write })
}

fn of_txn(txn: &TxnRequest) -> Option<Subject> {
    let op = |op: &Op| match op {
        Op::RequestPut(put) => Some((put.key.clone(), false, true)),
        Op::RequestDeleteRange(delete) => Some((delete.key.clone(), !delete.range_end.is_empty(), true)),
        Op::RequestRange(range) => Some((range.key.clone(), !range.range_end.is_empty(), false)),
        Op::RequestTxn(_) => None,
    };
    let ops = || txn.success.iter().chain(&txn.failure).filter_map(|op| op.request.as_ref());
    let is_write = ops().any(|op| !matches!(op, Op::RequestRange(_)));
    let compared = txn.compare.first().map(|compare| (compare.key.clone(), !compare.range_end.is_empty(), is_write));
    let (key, is_range, is_write) = compared.or_else(|| ops().find_map(op))?;
    Some(Subject { key, is_range, is_write })
}

/// The prefixes of `key` that end with a slash, the shortest first; a slash at the beginning is part of the first.
fn prefixes(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = key.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/').map(|(at, _)| at + 1);
    ends.take(PREFIXES_MAX).map(|end| &key[..end])
}

impl Heat {
    /// Counts a request that has ended.
    pub fn note(&mut self, now: Duration, method: Method, body: &Bytes) {
        if now.as_secs() != self.second {
            (self.second, self.in_second) = (now.as_secs(), 0);
        }
        self.in_second += 1;
        let weight = if self.in_second <= ALL_PER_S { 1 } else { SAMPLE_EVERY };
        if !self.in_second.is_multiple_of(weight) {
            return;
        }
        if let Some(subject) = subject(method, body) {
            self.count(now, &subject, u64::from(weight));
        }
    }

    fn count(&mut self, now: Duration, subject: &Subject, weight: u64) {
        self.turn(now);
        self.has_news = true;
        let key = &subject.key[..subject.key.len().min(ITEM_BYTES_MAX)];
        if !subject.is_range {
            self.current.keys.add(key, weight, subject.is_write, ITEMS_MAX);
        }
        for prefix in prefixes(key) {
            self.current.prefixes.add(prefix, weight, subject.is_write, ITEMS_MAX);
        }
    }

    /// Begins the next window if it is due.
    fn turn(&mut self, now: Duration) {
        let age = now.saturating_sub(self.current.began);
        if age < WINDOW {
            return;
        }
        std::mem::swap(&mut self.current, &mut self.previous);
        if age >= 2 * WINDOW {
            self.previous.keys.clear();
            self.previous.prefixes.clear();
        }
        self.current.keys.clear();
        self.current.prefixes.clear();
        self.current.began = now;
        self.has_news = true;
    }

    /// A copy for others, if there is anything new since the last one.
    pub fn publish(&mut self, now: Duration) -> Option<Arc<Self>> {
        self.turn(now);
        std::mem::take(&mut self.has_news).then(|| Arc::new(self.clone()))
    }
}

/// An item and how often it was asked for. **Units** requests a second.
#[derive(Clone, Debug, PartialEq)]
pub struct Hot {
    /// Key or prefix, possibly cut.
    pub item: Box<[u8]>,
    /// All requests, at most.
    pub rate: f64,
    /// Requests that write.
    pub write_rate: f64,
}

/// The hottest keys and prefixes of all cores, at most `limit` each, the hottest first.
pub fn hottest(cores: &[Arc<Heat>], now: Duration, limit: usize) -> (Vec<Hot>, Vec<Hot>) {
    (ranked(cores, now, limit, |window| &window.keys), ranked(cores, now, limit, |window| &window.prefixes))
}

fn ranked(cores: &[Arc<Heat>], now: Duration, limit: usize, pick: fn(&Window) -> &Sketch) -> Vec<Hot> {
    let mut merged: HashMap<&[u8], (f64, f64)> = HashMap::new();
    for heat in cores {
        // Both windows together span from the beginning of the first to now.
        let has_previous = !pick(&heat.previous).items().is_empty();
        let since = if has_previous { heat.previous.began } else { heat.current.began };
        let seconds = now.saturating_sub(since).as_secs_f64().max(1.0);
        for (item, count) in pick(&heat.current).items().iter().chain(pick(&heat.previous).items()) {
            let Count { count, writes, .. } = *count;
            let sum = merged.entry(item).or_default();
            sum.0 += count as f64 / seconds;
            sum.1 += writes as f64 / seconds;
        }
    }
    let mut ranked: Vec<Hot> = merged
        .into_iter()
        .map(|(item, (rate, write_rate))| Hot { item: item.into(), rate, write_rate: write_rate.min(rate) })
        .collect();
    ranked.sort_by(|a, b| b.rate.total_cmp(&a.rate).then_with(|| a.item.cmp(&b.item)));
    ranked.truncate(limit);
    ranked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Bytes {
        PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() }.encode_to_vec().into()
    }

    fn list(key: &str) -> Bytes {
        let key = Bytes::copy_from_slice(key.as_bytes());
        RangeRequest { key, range_end: "\0".into(), ..Default::default() }.encode_to_vec().into()
    }

    fn names(hot: &[Hot]) -> Vec<&str> {
        hot.iter().map(|hot| std::str::from_utf8(&hot.item).unwrap()).collect()
    }

    #[test]
    fn prefixes_end_with_a_slash() {
        let found = |key: &'static str| prefixes(key.as_bytes()).map(<[u8]>::len).collect::<Vec<_>>();
        assert_eq!(found("/registry/pods/default/web"), [10, 15, 23]);
        assert_eq!(found("a/b"), [2]);
        assert_eq!(found("/plain"), [0_usize; 0]);
        assert_eq!(found("/a/b/c/d/e/f"), [3, 5, 7, 9]);
    }

    #[test]
    fn what_is_asked_for_most_is_found_across_cores_and_forgotten_in_time() {
        let mut cores = [Heat::default(), Heat::default()];
        let at = Duration::from_secs;
        for second in 0..5 {
            for _ in 0..30 {
                cores[0].note(at(second), Method::Put, &put("/r/pods/a"));
                cores[1].note(at(second), Method::Put, &put("/r/pods/b"));
            }
            cores[1].note(at(second), Method::Put, &put("/r/pods/a"));
            cores[0].note(at(second), Method::Range, &list("/r/nodes/"));
        }
        let published: Vec<_> = cores.iter_mut().map(|core| core.publish(at(5)).unwrap()).collect();
        assert!(cores[0].publish(at(5)).is_none(), "nothing new");
        let (keys, prefixes) = hottest(&published, at(5), 10);
        assert_eq!(names(&keys), ["/r/pods/a", "/r/pods/b"]);
        assert_eq!(names(&prefixes), ["/r/", "/r/pods/", "/r/nodes/"]);
        assert_eq!((keys[0].rate, keys[0].write_rate), (31.0, 31.0));
        assert_eq!((prefixes[2].rate, prefixes[2].write_rate), (1.0, 0.0));
        let later: Vec<_> = cores.iter_mut().map(|core| core.publish(at(12)).unwrap()).collect();
        assert_eq!(names(&hottest(&later, at(12), 1).0), ["/r/pods/a"]);
        let much_later: Vec<_> = cores.iter_mut().map(|core| core.publish(at(50)).unwrap()).collect();
        assert_eq!(hottest(&much_later, at(50), 10), (vec![], vec![]));
    }

    #[test]
    fn sampled_requests_count_for_those_that_were_not_looked_at() {
        let mut heat = Heat::default();
        for _ in 0..17_000 {
            heat.note(Duration::from_secs(1), Method::Put, &put("k"));
        }
        let counted = heat.current.keys.items()[0].1.count;
        assert!((16_900..=17_100).contains(&counted), "{counted}");
    }

    #[test]
    fn a_txn_is_about_what_it_compares_or_does_first() {
        use proto::etcdserverpb::{Compare, RequestOp};
        let op = |request| RequestOp { request: Some(request) };
        let read = op(Op::RequestRange(RangeRequest { key: "r".into(), ..Default::default() }));
        let write = op(Op::RequestPut(PutRequest { key: "w".into(), ..Default::default() }));
        let compare = Compare { key: "c".into(), ..Default::default() };
        let of = |txn: TxnRequest| {
            subject(Method::Txn, &txn.encode_to_vec().into()).map(|subject| (subject.key, subject.is_write))
        };
        let both = TxnRequest { compare: vec![compare], success: vec![read.clone(), write], failure: vec![] };
        assert_eq!(of(both), Some(("c".into(), true)));
        assert_eq!(of(TxnRequest { failure: vec![read], ..Default::default() }), Some(("r".into(), false)));
        assert_eq!(of(TxnRequest::default()), None);
    }
}
