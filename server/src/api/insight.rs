//! Runs on: connection core.
//!
//! The service `orlop.v1.Insight` shows what this member stores and does, for `orlop top` and for scripts.
//!
//! It reads published state and views, and asks raft how far other members are. It changes nothing. The limits here
//! bound its answers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use engine::{KeyRange, RangeEnd, ReadView, Usage};
use proto::orlop::{
    HotItem, MemberState, MethodCount, PhaseTime, PrefixUsage, SlowRequest, TopRequest, TopResponse, UsageRequest,
    UsageResponse,
};

use super::{
    desk::{Consistency, Desk},
    worries::worries,
};
use crate::{
    error::{Code, Error},
    insight::{
        hot::{self, Hot},
        slow::Slow,
        trace::PHASES,
        usage::{CHILDREN_MAX, DESCENT_MAX, Row, STEPS_MAX, below, child_of, first_key, less},
    },
    method::Method,
    metrics::{
        counters::{CODE_NAMES, Counters},
        histogram::Count,
        process,
    },
    protobuf::framed,
};

/// Prefixes of one request at most.
const PREFIXES_MAX: usize = 1000;
/// Rows of each table if the request gives no number.
const ROWS: usize = 10;
/// Rows of each table at most.
const ROWS_MAX: usize = 100;

fn prefix_usage(row: Row) -> PrefixUsage {
    let Row { prefix, usage, is_rest } = row;
    PrefixUsage { prefix, keys: usage.keys, live_bytes: usage.live_bytes, versions: usage.versions, is_rest }
}

/// Answers Usage.
///
/// **Errors** too many prefixes; damaged data.
pub(super) async fn usage(desk: &Desk, request: UsageRequest) -> Result<Bytes, Error> {
    if request.prefixes.len() > PREFIXES_MAX {
        return Err(Error::TooManyPrefixes);
    }
    let view = desk.view(Consistency::Linearizable).await?;
    let mut usages = Vec::new();
    for prefix in request.prefixes {
        if request.children {
            usages.extend(children(desk, &view, prefix).await?);
        } else {
            usages.push(of(desk, &view, prefix).await?);
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

fn sum(desk: &Desk, pick: impl Fn(&Counters) -> &Count) -> u64 {
    desk.registry.connections.iter().fold(0, |sum, counters| sum.wrapping_add(pick(counters).get()))
}

fn methods(desk: &Desk) -> Vec<MethodCount> {
    let count = |method: &Method| {
        let by_code = |code: usize| sum(desk, |counters| &counters.methods[*method as usize].handled[code]);
        let handled = (0..CODE_NAMES.len()).map(by_code).sum();
        let failed = handled - by_code(Code::Ok as usize);
        MethodCount { method: full_name(*method), handled, failed }
    };
    Method::ALL.iter().map(count).filter(|method| method.handled > 0).collect()
}

fn phases(desk: &Desk) -> Vec<PhaseTime> {
    let of = |(position, phase): (usize, &&str)| PhaseTime {
        phase: (*phase).to_owned(),
        seconds: Duration::from_nanos(sum(desk, |counters| &counters.phases[position])).as_secs_f64(),
        slow_requests: sum(desk, |counters| &counters.slow[position]),
    };
    PHASES.iter().enumerate().map(of).collect()
}

/// The slow requests of all cores, newest first.
fn slow(desk: &Desk, limit: usize) -> Vec<SlowRequest> {
    let lists: Vec<_> = desk.board.slow.iter().map(|ring| ring.list()).collect();
    let mut all: Vec<&Arc<Slow>> = lists.iter().flat_map(|list| list.iter()).collect();
    all.sort_by_key(|slow| std::cmp::Reverse(slow.at_unix_us));
    all.into_iter().take(limit).map(|slow| slow_request(slow)).collect()
}

/// What is known of the members of the cluster, by name.
async fn members(desk: &Desk) -> Vec<MemberState> {
    let shared = &desk.shared;
    let (own, leader) = (shared.identity.member_id, shared.raft.leader.load(Ordering::Acquire));
    let mut states = Vec::new();
    for member in shared.cluster.load_full().members.iter() {
        let is_self = member.id == own;
        let of = desk.registry.peers.of(member.id);
        let is_connected = is_self || of.is_active.get() > 0;
        let mut state = MemberState {
            id: member.id,
            name: member.name.clone(),
            is_learner: member.is_learner,
            is_leader: member.id == leader,
            is_self,
            is_connected,
            // That of one who is gone says nothing any more.
            round_trip_us: if is_connected { of.last_round_trip_ns.get() / 1000 } else { 0 },
            ..MemberState::default()
        };
        // Raft knows that of others as long as this member leads.
        if !is_self
            && leader == own
            && let Ok(progress) = desk.progress(member.id).await
        {
            state.entries_behind = progress.leader_matched.saturating_sub(progress.matched);
            state.bytes_behind = progress.bytes_behind;
            state.needs_state = progress.needs_state;
            state.is_behind_memory = progress.is_behind_memory;
            state.is_waited_for = progress.is_waited_for;
        }
        states.push(state);
    }
    states.sort_by(|one, other| one.name.cmp(&other.name));
    states
}

/// Answers Top.
///
/// **Errors** damaged data.
pub(super) async fn top(desk: &Desk, request: TopRequest) -> Result<Bytes, Error> {
    let limit = match usize::try_from(request.limit).unwrap_or(usize::MAX) {
        0 => ROWS,
        limit => limit.min(ROWS_MAX),
    };
    let view = desk.view(Consistency::Serializable).await?;
    let mut usage = children(desk, &view, Bytes::new()).await?;
    usage.sort_by_key(|row| std::cmp::Reverse(row.usage.live_bytes));
    usage.truncate(limit);
    let now = desk.clock.now();
    let (hot_keys, hot_prefixes) = hot::hottest(&desk.board.heat_now(), now, limit);
    let shared = &desk.shared;
    let load = |value: &AtomicU64| value.load(Ordering::Acquire);
    let (open, _) = shared.connections.total_and_least();
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
        connections: open as u64,
        watchers: sum(desk, |counters| &counters.watchers),
        is_leader: load(&shared.raft.leader) == shared.identity.member_id,
        methods: methods(desk),
        phases: phases(desk),
        hot_keys: hot_keys.into_iter().map(hot_item).collect(),
        hot_prefixes: hot_prefixes.into_iter().map(hot_item).collect(),
        slow: slow(desk, limit),
        usage: usage.into_iter().map(prefix_usage).collect(),
        is_learner: shared.is_learner(),
        members: members(desk).await,
        worries: worries(desk).into_iter().map(|(_, _, what)| what).collect(),
    }))
}

/// Measures the space that `prefix` takes.
///
/// **Errors** damaged data.
async fn of(desk: &Desk, view: &ReadView, prefix: Bytes) -> Result<Row, Error> {
    let range = below(&prefix);
    let usage = desk.step_through(view, |view, _| view.usage(&range).map(Some)).await?;
    Ok(Row { prefix, usage, is_rest: false })
}

/// Measures the space of each child of `prefix`; the last row is the rest. If there is only one child, its children are
/// listed instead.
///
/// **Errors** damaged data.
pub async fn children(desk: &Desk, view: &ReadView, mut prefix: Bytes) -> Result<Vec<Row>, Error> {
    let mut rests = Vec::new();
    for depth in 1.. {
        let whole = of(desk, view, prefix).await?;
        let mut rows = level(desk, view, &whole).await?;
        let rest = rows.pop_if(|row| row.is_rest);
        if let [only] = rows.as_slice()
            && depth < DESCENT_MAX
        {
            rests.extend(rest);
            prefix = only.prefix.clone();
            continue;
        }
        rows.extend(rest);
        rows.extend(rests.into_iter().rev());
        return Ok(rows);
    }
    unreachable!("the descent ends")
}

async fn level(desk: &Desk, view: &ReadView, whole: &Row) -> Result<Vec<Row>, Error> {
    let all = below(&whole.prefix);
    let mut rows = Vec::new();
    let mut rest = whole.usage;
    let mut from = whole.prefix.clone();
    for _ in 0..STEPS_MAX {
        let range = KeyRange { start: from, end: all.end.clone() };
        let Some(key) = desk.step_through(view, |view, _| first_key(view, &range).map(Some)).await? else { break };
        let Some(child) = child_of(&whole.prefix, &key) else {
            // This key belongs to no child, so it is part of the rest. The next key comes directly after it.
            from = [&key[..], &[0]].concat().into();
            continue;
        };
        if rows.len() == CHILDREN_MAX {
            break;
        }
        let row = of(desk, view, child).await?;
        rest = less(rest, row.usage);
        let end = below(&row.prefix).end;
        rows.push(row);
        let RangeEnd::Before(end) = end else { break };
        from = end;
    }
    if rest != Usage::default() {
        rows.push(Row { prefix: whole.prefix.clone(), usage: rest, is_rest: true });
    }
    Ok(rows)
}
