//! Runs on: apply core.
//!
//! What becomes of apply when the next entry needs a page that cannot be read.
//!
//! The entry is in the log of every member, so it must have the same result on all of them: this one may neither skip
//! it nor let it fail. So apply stands still before it. What was applied stays readable, but for the damage. Nothing
//! new is let into the log meanwhile. The page is tried again now and then: a failed read may be a passing one.
//!
//! Invariants:
//! - `tried` is the page that the entry at the front waited for last. Apply stands still only if its own read of that
//!   page has failed.
//! - `shared.standstill` tells the reason as long as apply stands still, and `shared.is_behind` whether the state lacks
//!   something that was acknowledged before the start.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use engine::{Fault, Place, Unreadable};

use crate::shared::Shared;

/// Pause before a page is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Standstill {
    tried: Option<Place>,
    /// When the page is tried again, if apply stands still. `Duration::MAX` for never.
    until: Option<Duration>,
}

impl Standstill {
    /// Whether apply stands still.
    pub fn is_on(&self) -> bool {
        self.until.is_some()
    }

    /// Whether it lasts until the member is started again.
    pub fn is_for_good(&self) -> bool {
        self.until == Some(Duration::MAX)
    }

    /// Whether the entry at the front may be tried now.
    pub fn lets_pass(&self, now: Duration) -> bool {
        self.until.is_none_or(|until| until <= now)
    }

    /// Whether apply itself has tried in vain to read what `fault` asks for.
    pub fn has_failed(&self, fault: &Fault, unreadable: &Unreadable) -> bool {
        self.tried == Some(fault.place()) && unreadable.avoids(fault.place())
    }

    /// The entry at the front waits for `fault`.
    pub fn waits_for(&mut self, fault: &Fault) {
        self.tried = Some(fault.place());
    }

    /// The entry at `index` cannot be applied, because of a page of the store in `dir`.
    pub fn begin(&mut self, shared: &Shared, dir: &Path, index: u64, now: Duration) {
        let place = self.tried.take().expect("a page was tried");
        let (path, offset) = (dir.join(place.path()), place.offset);
        if self.until.replace(now + RETRY_AFTER).is_none() {
            let reason = format!("entry {index} needs {} at offset {offset}, which cannot be read", path.display());
            self.tell(shared, reason);
        }
    }

    /// Nothing may be applied in this run, because the start could not read all of the state.
    pub fn begin_for_good(&mut self, shared: &Shared, reason: String) {
        self.until = Some(Duration::MAX);
        self.tell(shared, reason);
    }

    fn tell(&self, shared: &Shared, reason: String) {
        assert!(self.is_on(), "the reason is told while it holds");
        tracing::error!(
            reason,
            "no further entry is applied and no write is taken; what can be read is served; 'orlop verify' names the \
             damage"
        );
        shared.standstill.store(Some(Arc::new(reason)));
    }

    /// An entry was applied.
    pub fn passed(&mut self, shared: &Shared) {
        self.tried = None;
        if self.until.take().is_some() {
            shared.standstill.store(None);
            shared.is_behind.store(false, Ordering::Release);
            tracing::info!("the page could be read: entries are applied again");
        }
    }
}
