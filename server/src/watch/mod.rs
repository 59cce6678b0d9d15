//! Runs on: connection core.
//!
//! Watches lead from the batch of events that apply publishes to the bytes that each watch stream sends.
//!
//! ```text
//! apply ── Arc<Batch> ──> Hub::on_batch ──> synced watchers ───────────┐
//!                          (one Hub per connection core)               v
//! client ── WatchRequest ─> Hub::on_request ── replies ──────────> Outbox of the stream ──> Hub::take_output
//!                                                                      ^
//! ReadView ───────────────> Hub::catch_up ──> unsynced watchers ───────┘
//! ```
//!
//! - [`hub`]: the state machine. `request`, `deliver` and `catch_up` are its three activities.
//! - [`batch`]: what apply hands to every core: the events of one publish, each encoded once, whatever the number of
//!   watchers.
//! - [`history`]: the narrow view on the store that watching needs.
//! - `interval`: finds the watchers of a key. `stream`, `watcher`: the state of each. `encode`: `WatchResponse` on the
//!   wire.
//!
//! Nothing here reads a clock, awaits, or knows HTTP/2. A watcher belongs to the core of its stream and never leaves
//! it.

pub mod batch;
mod catch_up;
mod deliver;
pub mod encode;
pub mod history;
pub mod hub;
mod interval;
mod request;
pub mod stream;
#[cfg(test)]
mod tests;
mod watcher;
