//! Runs on: apply core.
//!
//! Apply: the one place where committed entries change state.
//!
//! - `outcome`: the result of an entry, on its way to its client
//! - `proposal`: a client's request on its way through the log
//! - `own`: entries of the server's own
//! - `message`: the messages to apply, and what it answers and reports
//! - `fatal`: why a member stops
//! - `table`: keys of the meta tree that are not leases
//! - `restore`: what a start and a backup read from the meta tree; `start`: what of it a start needs
//! - `arrived`: a state of another member; `install`: how it takes the place of this member's
//! - `touch`: what an entry keeps in memory until it is applied
//! - `kv`: puts, deletes and txns inside an entry
//! - `lease`: leases inside an entry
//! - `alarms`: alarms inside an entry
//! - `users`: whether who asks may, and changes of users
//! - `members`: configuration changes, and what a member publishes about itself
//! - `entry`: one entry: what it needs in memory, and what it changes
//! - `long`: one entry that deletes very many keys, in steps
//! - `count`: counts the operations of entries
//! - `needs`: what a request will need, before it is proposed
//! - `prefetch`: loads pages that waiting entries will need
//! - `standstill`: what becomes of apply when a page that an entry needs cannot be read
//! - `repair`: what a member with peers does about pages that are lost; `attempts`: and when
//! - `upkeep/`: what keeps the store small and the log short: checkpoints, the sweep, giving space back
//! - `initiative`: what apply proposes by itself
//! - `unanswered`: questions to the lessor that wait; `renewals`: renewals of leases, and other questions to the lessor
//! - `readiness`: what the member may answer: which reads, and whether it may serve
//! - `machine`: applies the queue of committed entries turn by turn, publishes, and answers

pub mod alarms;
pub mod arrived;
mod attempts;
pub mod count;
pub mod entry;
pub mod fatal;
mod initiative;
mod install;
mod kv;
mod lease;
pub mod long;
pub mod machine;
pub mod members;
pub mod message;
pub mod needs;
pub mod outcome;
pub mod own;
pub mod prefetch;
pub mod proposal;
mod readiness;
mod renewals;
mod repair;
pub mod restore;
pub mod standstill;
pub mod start;
pub mod table;
#[cfg(test)]
mod tests;
pub mod touch;
mod unanswered;
pub mod upkeep;
pub mod users;
