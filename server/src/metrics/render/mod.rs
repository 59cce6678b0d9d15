//! Runs on: connection core.
//!
//! The answer to /metrics: one file for each part of the member.
//!
//! - `scrape`: the sources of an answer
//! - `text`: Prometheus' text format
//! - `identity`: who the member is, and where raft stands
//! - `store`: keys, revisions, compactions, watchers, leases
//! - `disk`: the log, checkpoints, backups
//! - `peers`: connections with other members, whole states
//! - `requests`: calls, their durations, health checks, scrapes
//! - `insight`: phases, usage, heat: what etcd does not have
//! - `process`: the process, and what dashboards take from Go's runtime
//! - `absent`: etcd's families of parts that do not exist here, at zero
//!
//! Invariants: a family is written once, with all its samples after its TYPE. Types, label names and bounds of buckets
//! are etcd's, even where a counter is called a gauge. A help text begins with etcd's words. If the number is only the
//! nearest thing here, the text goes on with "Here:" and says what it is. `stock_families.txt` and `left_out.txt`
//! beside this folder are the list that the tests hold this to. This folder only writes text; the numbers were counted
//! elsewhere.

use self::{scrape::Scrape, text::Text};
use super::process::Process;

mod absent;
mod disk;
mod identity;
mod insight;
mod peers;
mod process;
mod requests;
pub(super) mod scrape;
mod store;
mod text;

/// The answer to /metrics.
pub fn render(of: &Scrape<'_>) -> String {
    let mut text = Text::new();
    identity::render(of, &mut text);
    store::render(of, &mut text);
    disk::render(of, &mut text);
    requests::render(of, &mut text);
    peers::render(of, &mut text);
    insight::render(of, &mut text);
    process::render(of, &Process::look(), &mut text);
    absent::render(&mut text);
    text.into_string()
}
