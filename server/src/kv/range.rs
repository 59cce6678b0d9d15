//! Runs on: connection core, apply core (inside a txn).
//!
//! Range: what a request asks for, and the job that answers it. The job reads one view in bounded steps.
//!
//! Invariants: `at` and `header_revision` are fixed when the job begins, so every step answers for the same revision,
//! whichever view it reads. After a fault the next step goes on where the last one stopped, never from the start. An
//! answer is held whole, so it has a bound. What its limit leaves out is not held.
//! **Source** etcd v3.7.1 `server/etcdserver/txn/range.go`.

use bytes::Bytes;
use engine::{Count, Cursor, Fault, Met, ReadView, Record, Version, planted::is_planted};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::range_request::{SortOrder, SortTarget},
    mvccpb::KeyValue,
};

use super::{key_only, key_value, keys};
use crate::error::Error;

/// The revision a request reads at.
///
/// **Errors** the revision does not exist yet, or no longer.
pub fn read_at(view: &ReadView, revision: i64) -> Result<i64, Error> {
    match revision {
        ..=0 => Ok(view.revision()),
        _ if revision > view.revision() => Err(Error::FutureRevision),
        _ if revision < view.compact_revision() && !is_planted("a read of what is compacted") => Err(Error::Compacted),
        _ => Ok(revision),
    }
}

/// Whether etcd treats the request's order as the order in which keys are read. It does so for any target without an
/// order, although it then sorts the keys that it has read: the limit applies before the sort.
pub fn has_default_order(request: &pb::RangeRequest) -> bool {
    let by_key = request.sort_target == SortTarget::Key as i32;
    request.sort_order == SortOrder::None as i32 || (by_key && request.sort_order == SortOrder::Ascend as i32)
}

/// Whether the answer's keys come in key order.
pub fn is_in_key_order(request: &pb::RangeRequest) -> bool {
    request.sort_target == SortTarget::Key as i32 && request.sort_order != SortOrder::Descend as i32
}

/// Whether the request filters by revisions, so that its limit cannot bound the scan.
pub fn is_filtered(request: &pb::RangeRequest) -> bool {
    let filters =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    filters.iter().any(|bound| *bound != 0)
}

/// Whether the request asks for one key and its value and nothing else. This is the most frequent read.
pub fn is_point(request: &pb::RangeRequest) -> bool {
    request.range_end.is_empty() && !request.count_only && !request.keys_only && !is_filtered(request)
}

/// Whether the answer needs more of a key than the key tree holds.
pub fn reads_records(request: &pb::RangeRequest) -> bool {
    !request.count_only && (!request.keys_only || request.sort_target == SortTarget::Value as i32)
}

/// Which versions a request shows, by their revisions. 0 means no bound.
#[derive(Clone, Copy, Debug)]
pub struct Filter {
    mod_revision: (i64, i64),
    create_revision: (i64, i64),
}

impl Filter {
    /// The filter of a request.
    pub fn of(request: &pb::RangeRequest) -> Self {
        Self {
            mod_revision: (request.min_mod_revision, request.max_mod_revision),
            create_revision: (request.min_create_revision, request.max_create_revision),
        }
    }

    /// Whether a version with these main revisions is shown.
    pub fn passes(&self, mod_revision: i64, create_revision: i64) -> bool {
        let within = |value: i64, (min, max): (i64, i64)| (min == 0 || value >= min) && (max == 0 || value <= max);
        within(mod_revision, self.mod_revision) && within(create_revision, self.create_revision)
    }
}

#[derive(Debug)]
enum Total {
    /// The scan itself sees every key.
    OfScan,
    Counting(Box<Count>),
    Known(u64),
}

/// Leaves of a range that are read at once.
pub const LEAVES_AHEAD_MAX: usize = 16;

/// A step ends when it has found so much. **Units** bytes.
const STEP_BYTES_MAX: usize = 4 << 20;

/// Fewer keys than this are not trimmed: they cost little.
const TRIM_MIN: usize = 1024;

/// Memory that a key takes in an answer. **Units** bytes.
pub fn memory_of(key: &[u8], value: &[u8]) -> usize {
    size_of::<KeyValue>() + key.len() + value.len()
}

/// The response, or why the client gets none.
type Answer = Result<pb::RangeResponse, Error>;

/// One Range under way.
#[derive(Debug)]
pub struct Job {
    request: pb::RangeRequest,
    /// The revision that is read.
    pub at: i64,
    /// The revision for the response's header: the store's revision when the job began.
    pub header_revision: i64,
    cursor: Cursor,
    total: Total,
    seen: u64,
    found: Vec<KeyValue>,
    /// Memory that `found` takes, and may take. **Units** bytes.
    bytes: usize,
    bytes_max: usize,
    /// Keys in `found` at which it is trimmed.
    trim_at: usize,
    /// A version whose record was not resident at the last step.
    waiting: Option<Version>,
    /// Keys after which the scan stops; `None` scans the whole range. **Units** keys.
    fetch_max: Option<usize>,
}

impl Job {
    /// A job for `request`, which must have passed [`super::check::range`]. What it finds may take `bytes_max`.
    ///
    /// **Errors** as [`read_at`].
    pub fn new(view: &ReadView, request: pb::RangeRequest, bytes_max: usize) -> Result<Self, Error> {
        let at = read_at(view, request.revision)?;
        Ok(Self::at(view, (view.revision(), at), request, bytes_max))
    }

    /// As [`Job::new`], at the moment of `header_revision`, for a `revision` that was checked; 0 for that moment's.
    pub fn at(
        view: &ReadView,
        (header_revision, revision): (i64, i64),
        request: pb::RangeRequest,
        bytes_max: usize,
    ) -> Self {
        let at = if revision > 0 { revision } else { header_revision };
        let range = keys(&request.key, &request.range_end);
        let limit = usize::try_from(request.limit).unwrap_or(0);
        let fetch_max =
            (limit > 0 && has_default_order(&request) && !is_filtered(&request)).then(|| limit.saturating_add(1));
        let single = request.range_end.is_empty();
        let total = if (fetch_max.is_some() && !single) || request.count_only {
            Total::Counting(Box::new(view.counter(&range, at)))
        } else {
            Total::OfScan
        };
        let cursor = view.cursor(&range, at);
        let (seen, found, bytes, waiting) = (0, Vec::new(), 0, None);
        let trim_at = limit.saturating_add(1).saturating_mul(2).max(TRIM_MIN);
        Self { request, at, header_revision, cursor, total, seen, found, bytes, bytes_max, trim_at, waiting, fetch_max }
    }

    /// Keys that were met so far, but for those that were only counted.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Memory that the answer takes, as far as it was made. **Units** bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Reads about `budget` more keys, or a few MiB. Returns the response (its header is still empty) once it is
    /// complete, or the client's error if it would be too large. A step may read a newer view than the one before, if
    /// the sweep was held back for `at` meanwhile.
    ///
    /// **Errors** a page that is not resident; load it and call again.
    pub fn step(&mut self, view: &ReadView, budget: usize) -> Result<Option<Answer>, Fault> {
        self.step_with(view, budget, |view, version| {
            Ok(view.record(&version.key, version.revision)?.expect("a live version has its record"))
        })
    }

    /// As [`Job::step`], with `record` to find the records.
    ///
    /// **Errors** as [`Job::step`].
    pub fn step_with(
        &mut self,
        view: &ReadView,
        budget: usize,
        record: impl FnMut(&ReadView, &Version) -> Result<Record, Fault>,
    ) -> Result<Option<Answer>, Fault> {
        if let Total::Counting(count) = &mut self.total {
            view.lead_count(count);
            let Some(total) = count.step(budget)? else { return Ok(None) };
            self.total = Total::Known(total);
        }
        if !self.request.count_only && !self.scan(view, budget, record)? {
            return Ok(None);
        }
        if self.bytes > self.bytes_max {
            self.found = Vec::new();
            return Ok(Some(Err(Error::AnswerTooLarge { len: self.bytes, max: self.bytes_max })));
        }
        Ok(Some(Ok(self.finish())))
    }

    /// The pages to read together after `fault`, at which a step has stopped.
    pub fn wanted(&mut self, fault: Fault, max: usize) -> Vec<Fault> {
        match &mut self.total {
            Total::Counting(count) => count.wanted(fault, max),
            _ if self.waiting.is_none() => self.cursor.wanted(fault, max),
            _ => vec![fault],
        }
    }

    fn push(&mut self, found: KeyValue) {
        self.bytes += memory_of(&found.key, &found.value);
        self.found.push(found);
        if self.bytes > self.bytes_max || self.found.len() >= self.trim_at {
            self.trim();
        }
    }

    /// Drops what lies beyond the limit of an order in which the keys are not read, but for the first of it: that shows
    /// that there is more. What is found later may still move in front of what is kept.
    fn trim(&mut self) {
        let limit = usize::try_from(self.request.limit).unwrap_or(0);
        let kept = limit.saturating_add(1);
        if limit == 0 || self.found.len() <= kept {
            return;
        }
        sort(&mut self.found, &self.request);
        self.bytes -= self.found.drain(kept..).map(|found| memory_of(&found.key, &found.value)).sum::<usize>();
        self.trim_at = kept.saturating_mul(2).max(TRIM_MIN);
    }

    /// Whether the scan is complete, or its answer too large.
    fn scan(
        &mut self,
        view: &ReadView,
        budget: usize,
        mut record: impl FnMut(&ReadView, &Version) -> Result<Record, Fault>,
    ) -> Result<bool, Fault> {
        let filter = Filter::of(&self.request);
        let (mut left, mut bytes_left) = (budget, STEP_BYTES_MAX);
        view.lead(&mut self.cursor);
        while bytes_left > 0 {
            let version = match self.waiting.take() {
                Some(version) => version,
                None if self.bytes > self.bytes_max => return Ok(true),
                None if self.fetch_max.is_some_and(|max| self.found.len() >= max) => return Ok(true),
                None => match self.cursor.next_version(&mut left)? {
                    Met::Live(version) => {
                        self.seen += 1;
                        version
                    }
                    Met::End => return Ok(true),
                    Met::Paused => return Ok(false),
                },
            };
            if !filter.passes(version.revision.main, version.create_revision) {
                continue;
            }
            // The key after the limit only shows that there are more keys. Its value is never read, unless sorting
            // moves it up.
            let is_beyond = self.request.sort_target == SortTarget::Key as i32
                && self.fetch_max.is_some_and(|max| self.found.len() + 1 == max);
            if is_beyond || !reads_records(&self.request) {
                self.push(key_only(version.key.clone(), &version.outline()));
                continue;
            }
            match record(view, &version) {
                Ok(record) => {
                    bytes_left = bytes_left.saturating_sub(record.value.len());
                    self.push(key_value(record));
                }
                Err(fault) => {
                    self.waiting = Some(version);
                    return Err(fault);
                }
            }
        }
        Ok(false)
    }

    fn finish(&mut self) -> pb::RangeResponse {
        let mut kvs = std::mem::take(&mut self.found);
        sort(&mut kvs, &self.request);
        let limit = usize::try_from(self.request.limit).unwrap_or(0);
        let more = limit > 0 && kvs.len() > limit;
        if more {
            kvs.truncate(limit);
        }
        if self.request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        let total = match self.total {
            Total::Known(total) => total,
            Total::OfScan | Total::Counting(_) => self.seen,
        };
        pb::RangeResponse { header: None, kvs, more, count: i64::try_from(total).expect("counts fit") }
    }
}

/// Sorts in etcd's orders. Equal keys keep key order, which etcd leaves open.
fn sort(kvs: &mut [KeyValue], request: &pb::RangeRequest) {
    let target = SortTarget::try_from(request.sort_target).unwrap_or(SortTarget::Key);
    let order = match SortOrder::try_from(request.sort_order).unwrap_or(SortOrder::None) {
        SortOrder::None if target == SortTarget::Key => return,
        SortOrder::None | SortOrder::Ascend => SortOrder::Ascend,
        SortOrder::Descend => SortOrder::Descend,
    };
    kvs.sort_by(|a, b| {
        let (a, b) = if order == SortOrder::Descend { (b, a) } else { (a, b) };
        match target {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        }
    });
}

#[cfg(test)]
mod tests {
    use engine::Mvcc;

    use super::*;

    /// 3,000 keys, written twice in an order of their own, and the revision between.
    fn store() -> (Mvcc, i64) {
        let mut mvcc = Mvcc::in_memory();
        let mut between = 0;
        for round in 0..2 {
            for number in 0..3000_u32 {
                let number = number * 1009 % 3000;
                let mut write = mvcc.begin();
                let value = format!("{:04}", number * 7919 % 3001 / 2);
                write.put(format!("k{number:04}").into(), value.into(), 0).unwrap();
                write.finish();
            }
            if round == 0 {
                between = mvcc.live().revision();
            }
        }
        (mvcc, between)
    }

    /// The answer, and the steps that it took.
    fn run(view: &ReadView, request: &pb::RangeRequest, bytes_max: usize, budget: usize) -> (Answer, usize) {
        let mut job = Job::new(view, request.clone(), bytes_max).unwrap();
        for steps in 1.. {
            if let Some(answer) = job.step(view, budget).unwrap() {
                return (answer, steps);
            }
        }
        unreachable!()
    }

    fn all() -> pb::RangeRequest {
        pb::RangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() }
    }

    #[test]
    fn what_a_limit_leaves_out_takes_no_memory_in_any_order() {
        let (mvcc, between) = store();
        let view = mvcc.live();
        for (sort_order, sort_target, limit) in (0..3)
            .flat_map(|order| (0..5).flat_map(move |target| [1, 7, 2999, 4000].map(|limit| (order, target, limit))))
        {
            let sorted = pb::RangeRequest { sort_order, sort_target, min_mod_revision: between / 2, ..all() };
            let (whole, _) = run(view, &sorted, usize::MAX, 100);
            let mut expected = whole.unwrap();
            expected.more = expected.kvs.len() > limit;
            expected.kvs.truncate(limit);
            let bytes_max = (limit + 1) * 200;
            let limited = pb::RangeRequest { limit: limit.try_into().unwrap(), ..sorted };
            assert_eq!(run(view, &limited, bytes_max, 100).0, Ok(expected), "{limited:?}");
        }
        let (refused, _) = run(view, &pb::RangeRequest { limit: 1000, sort_target: 3, ..all() }, 50_000, 100);
        assert!(matches!(refused, Err(Error::AnswerTooLarge { .. })));
    }

    #[test]
    fn a_step_meets_no_more_keys_than_its_budget_whether_they_are_shown_or_not() {
        let (mvcc, between) = store();
        let view = mvcc.live();
        for (revision, count_only, shown) in [(0, false, 3000), (between, false, 3000), (2, false, 1), (2, true, 0)] {
            let request = pb::RangeRequest { revision, count_only, sort_target: 3, sort_order: 1, ..all() };
            let (answer, steps) = run(view, &request, usize::MAX, 10);
            assert_eq!(answer.unwrap().kvs.len(), shown);
            assert!(steps >= 300, "{steps} steps at {revision}");
        }
    }
}
