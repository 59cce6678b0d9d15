//! A simulated medium. One seed gives every legal state after power loss, and every fault.
//!
//! `SimStorage` is the machine's disk. Each simulated core gets its own `SimDisk` of it. Written bytes live in two
//! images (`image`), and so do names. A create, rename or remove is durable only once its directory was synced. Until
//! then, power loss keeps any prefix of the changes to that directory, in order, as journalling file systems do.
//!
//! Invariants:
//! - A *step* is one change that takes effect: a write, a sync, a create, rename or remove. `stop_after` lets exactly
//!   that many happen. Later operations stay in flight for ever, and every later call answers `Error::Stopped`.
//! - The same seed and the same calls give the same run.
//! - `crash_images` never invents content: each sector of an image holds its durable content, or that of a write that
//!   was volatile or in flight.
//!
//! It has no time, on purpose. An operation completes when `completions` or `wait` is called (`Order`). With
//! `Order::Manual`, it completes when the test says so. If a simulation wants time, it passes between those calls.
//!
//! - `storage`: the machine's disk for a test: faults, order, images after power loss.
//! - `state`: the content of the storage, and how operations take effect.
//! - `disk`: one core's view, a `Disk` like any other.
//! - `crash`: the choices that power loss leaves open. `image`: one file, live and durable.
//! - `random`: the only source of randomness.

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
