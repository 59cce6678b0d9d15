//! A simulated medium: every legal state that power loss may leave, and every fault, from one seed.
//!
//! `SimStorage` is the machine's disk; each simulated core gets its own `SimDisk` of it. What is written lives in two
//! images (`image`), names likewise: a create, rename or remove is durable only once its directory was synced, and
//! until then power loss keeps any prefix of what was done to that directory, in order (journalling file systems).
//!
//! Invariants:
//! - A *step* is one change that takes effect: a write, a sync, a create, rename or remove. `stop_after` lets exactly
//!   so many happen; what comes then stays in flight for ever and every later call answers `Error::Stopped`.
//! - The same seed, the same calls: the same run.
//! - `crash_images` never invents: each sector of an image holds its durable content or that of a write that was
//!   volatile or in flight.
//!
//! Deliberately has no time: an operation completes when `completions` or `wait` is called (`Order`), or, with
//! `Order::Manual`, when the test says so. Time, if a simulation wants it, is between those calls.
//!
//! - `storage`: the machine's disk as a test holds it: faults, order, images after power loss.
//! - `state`: what the storage holds, and how operations take effect.
//! - `disk`: one core's view, a `Disk` like any other.
//! - `crash`: the choices that power loss leaves open. `image`: one file, live and durable.
//! - `random`: the only source of chance.

mod crash;
mod disk;
mod image;
mod random;
mod state;
mod storage;

pub use disk::SimDisk;
pub use random::Random;
pub use state::{FaultKind, Faults, Full, InFlight, Injected, Order};
pub use storage::SimStorage;
