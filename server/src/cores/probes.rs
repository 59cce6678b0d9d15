//! Runs on: connection core.
//!
//! Asks each other member from time to time how it is: it measures round trips, and finds clocks that differ. Nothing
//! else depends on it.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/rafthttp/probing_status.go`: path, time between two, texts.

use std::{rc::Rc, time::Duration};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{task::spawn_local, time::MissedTickBehavior};

use crate::{
    api::{desk::Desk, others::Asking},
    peer::{ask::ask_over, dial::dial},
};

/// Time between two probes of a member, and how long an answer may take.
const PROBE_EVERY: Duration = Duration::from_secs(4);
/// Clocks that differ by more are worth a line in the log.
const DRIFT_MAX: Duration = Duration::from_secs(1);
/// An answer at most. **Units** bytes.
const ANSWER_BYTES_MAX: usize = 1024;

/// Runs until its core ends.
pub async fn run(desk: Rc<Desk>) {
    let mut ticks = tokio::time::interval(PROBE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for turn in 0_usize.. {
        ticks.tick().await;
        let own = desk.shared.identity.member_id;
        for member in desk.shared.cluster.load().members.iter().filter(|member| member.id != own) {
            let Some(url) = member.peer_urls.get(turn % member.peer_urls.len().max(1)).cloned() else { continue };
            let (desk, id) = (Rc::clone(&desk), member.id);
            spawn_local(async move {
                let probed = tokio::time::timeout(PROBE_EVERY, probe(&desk, &url)).await;
                note(&desk, id, probed.unwrap_or_else(|_late| Err(format!("{url}: it does not answer"))));
            });
        }
    }
}

/// What a probe has found.
struct Probed {
    round_trip: Duration,
    /// How much the clocks of the two members differ, unless the answer does not tell.
    drift: Option<Duration>,
}

async fn probe(desk: &Desk, url: &str) -> Result<Probed, String> {
    let mut stream = dial(url, desk.shared.limits.dial_from).await.map_err(|error| format!("{url}: {error}"))?;
    let path = "/raft/probing".to_owned();
    let asking = Asking { method: "GET", path, answer_bytes_max: ANSWER_BYTES_MAX, ..Asking::default() };
    let (began, began_us) = (desk.clock.now(), desk.clock.unix_us());
    let (answered, _) = ask_over(&mut stream, url, &asking).await?;
    let round_trip = desk.clock.now().saturating_sub(began);
    if answered.status != 200 {
        return Err(format!("{url}: it answers with status {}", answered.status));
    }
    let drift = said_at_us(&answered.body).map(|said_us| {
        let half_us = u64::try_from(round_trip.as_micros() / 2).unwrap_or(u64::MAX);
        Duration::from_micros(said_us.abs_diff(began_us.saturating_add(half_us)))
    });
    Ok(Probed { round_trip, drift })
}

/// The time that an answer says it is. **Units** microseconds since 1970.
fn said_at_us(body: &[u8]) -> Option<u64> {
    let said: serde_json::Value = serde_json::from_slice(body).ok()?;
    let now = OffsetDateTime::parse(said["Now"].as_str()?, &Rfc3339).ok()?;
    u64::try_from(now.unix_timestamp_nanos() / 1000).ok()
}

fn note(desk: &Desk, id: u64, probed: Result<Probed, String>) {
    let (of, id) = (desk.registry.peers.of(id), format!("{id:x}"));
    match probed {
        Ok(Probed { round_trip, drift }) => {
            of.round_trips.observe_time(round_trip);
            of.last_round_trip_ns.set(u64::try_from(round_trip.as_nanos()).unwrap_or(u64::MAX).max(1));
            if let Some(drift) = drift.filter(|drift| *drift > DRIFT_MAX) {
                let (drift, rtt) = (format!("{drift:?}"), format!("{round_trip:?}"));
                tracing::warn!("remote-peer-id" = id, "clock-drift" = drift, rtt, "prober found high clock drift");
            }
        }
        Err(error) => {
            of.last_round_trip_ns.set(0);
            tracing::warn!("remote-peer-id" = id, error, "prober detected unhealthy status");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_taken_from_gos_form_and_from_our_own() {
        let at = |body: &str| said_at_us(body.as_bytes());
        assert_eq!(at(r#"{"OK":true,"Now":"1970-01-01T02:00:01.000002999+02:00"}"#), Some(1_000_002));
        assert_eq!(at(r#"{"OK":true,"Now":"1970-01-01T00:00:01Z"}"#), Some(1_000_000));
        for strange in ["", "{}", r#"{"Now":7}"#, r#"{"Now":"soon"}"#, r#"{"Now":"1969-12-31T23:59:59Z"}"#] {
            assert_eq!(at(strange), None, "{strange}");
        }
    }
}
