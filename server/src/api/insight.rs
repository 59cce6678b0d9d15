//! Runs on: connection core.
//!
//! The service `orlop.v1.Insight`: what this member stores and does, for `orlop top` and for scripts.
//!
//! Reads published state and this core's view; asks no other core and changes nothing. Answers are bounded by the limits here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proto::orlop::{
    HotItem, MethodCount, PhaseTime, PrefixUsage, SlowRequest, TopRequest, TopResponse, UsageRequest, UsageResponse,
};

use super::{
    hot::{self, Hot},
    slow::Slow,
    trace::PHASES,
    usage::{self, Row},
};
use crate::{
    core::Core,
    error::{Code, Error},
    metrics::{counters::Count, process},
    wire::{grpc::framed, method::Method},
};

/// Prefixes of one request.
const PREFIXES_MAX: usize = 1000;
/// Rows of each table, where none are asked for.
const ROWS: usize = 10;
/// Rows of each table.
const ROWS_MAX: usize = 100;

fn prefix_usage(row: Row) -> PrefixUsage {
    let Row { prefix, usage, is_rest } = row;
    PrefixUsage { prefix, keys: usage.keys, live_bytes: usage.live_bytes, versions: usage.versions, is_rest }
}

/// Answers Usage.
///
/// **Errors** too many prefixes; damaged data.
pub async fn usage(core: &Core, request: UsageRequest) -> Result<Bytes, Error> {
    if request.prefixes.len() > PREFIXES_MAX {
        return Err(Error::TooManyPrefixes);
    }
    core.read_index()?;
    let view = core.view();
    let mut usages = Vec::new();
    for prefix in request.prefixes {
        if request.children {
            usages.extend(usage::children(core, &view, prefix).await?);
        } else {
            usages.push(usage::of(core, &view, prefix).await?);
        }
    }
    let usages = usages.into_iter().map(prefix_usage).collect();
    Ok(framed(&UsageResponse { revision: view.revision(), usages }))
}

fn hot_item(hot: Hot) -> HotItem {
    HotItem { item: hot.item.into_vec().into(), rate: hot.rate, write_rate: hot.write_rate }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn slow_request(slow: &Slow) -> SlowRequest {
    SlowRequest {
        at_unix_us: slow.at_unix_us,
        method: full_name(slow.method),
        phase_us: slow.phases.iter().map(|phase| microseconds(*phase)).collect(),
        loading_us: microseconds(slow.loading),
        request: slow.request.clone(),
    }
}

fn full_name(method: Method) -> String {
    format!("{}/{}", method.service(), method.name())
}

fn sum(core: &Core, pick: impl Fn(&crate::metrics::counters::Counters) -> &Count) -> u64 {
    core.shared.counters.iter().fold(0, |sum, counters| sum.wrapping_add(pick(counters).get()))
}

fn methods(core: &Core) -> Vec<MethodCount> {
    let count = |method: &Method| {
        let by_code = |code: usize| sum(core, |counters| &counters.methods[*method as usize].handled[code]);
        let handled = (0..crate::metrics::counters::CODE_NAMES.len()).map(by_code).sum();
        let failed = handled - by_code(Code::Ok as usize);
        MethodCount { method: full_name(*method), handled, failed }
    };
    Method::ALL.iter().map(count).filter(|method| method.handled > 0).collect()
}

fn phases(core: &Core) -> Vec<PhaseTime> {
    let of = |(position, phase): (usize, &&str)| PhaseTime {
        phase: (*phase).to_owned(),
        seconds: Duration::from_nanos(sum(core, |counters| &counters.phases[position])).as_secs_f64(),
        slow_requests: sum(core, |counters| &counters.slow[position]),
    };
    PHASES.iter().enumerate().map(of).collect()
}

/// The slow requests of all cores, newest first.
fn slow(core: &Core, limit: usize) -> Vec<SlowRequest> {
    let lists: Vec<_> = core.shared.slow.iter().map(|ring| ring.list()).collect();
    let mut all: Vec<&Arc<Slow>> = lists.iter().flat_map(|list| list.iter()).collect();
    all.sort_by_key(|slow| std::cmp::Reverse(slow.at_unix_us));
    all.into_iter().take(limit).map(|slow| slow_request(slow)).collect()
}

/// Answers Top.
///
/// **Errors** damaged data.
pub async fn top(core: &Core, request: TopRequest) -> Result<Bytes, Error> {
    let limit = match usize::try_from(request.limit).unwrap_or(usize::MAX) {
        0 => ROWS,
        limit => limit.min(ROWS_MAX),
    };
    let view = core.view();
    let mut usage = usage::children(core, &view, Bytes::new()).await?;
    usage.sort_by_key(|row| std::cmp::Reverse(row.usage.live_bytes));
    usage.truncate(limit);
    let now = core.clock.now();
    let (hot_keys, hot_prefixes) = hot::hottest(&core.shared.heat_now(), now, limit);
    let shared = &core.shared;
    let load = |value: &std::sync::atomic::AtomicU64| value.load(std::sync::atomic::Ordering::Acquire);
    let open = shared.connections.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed) as u64);
    let cluster = shared.cluster.load();
    let own = cluster.members.iter().find(|member| member.id == shared.identity.member_id);
    Ok(framed(&TopResponse {
        name: own.map_or_else(String::new, |member| member.name.clone()),
        release: crate::RELEASE.to_owned(),
        uptime_us: microseconds(now),
        revision: view.revision(),
        compact_revision: view.compact_revision(),
        allocated_bytes: load(&shared.sizes.allocated),
        in_use_bytes: load(&shared.sizes.in_use),
        resident_bytes: process::resident_bytes().unwrap_or(0),
        connections: open.sum(),
        watchers: sum(core, |counters| &counters.watchers),
        is_leader: load(&shared.raft.leader) == shared.identity.member_id,
        methods: methods(core),
        phases: phases(core),
        hot_keys: hot_keys.into_iter().map(hot_item).collect(),
        hot_prefixes: hot_prefixes.into_iter().map(hot_item).collect(),
        slow: slow(core, limit),
        usage: usage.into_iter().map(prefix_usage).collect(),
    }))
}
