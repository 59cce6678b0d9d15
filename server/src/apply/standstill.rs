//! Runs on: apply core.
//!
//! What becomes of apply when the next entry needs a page that cannot be read, or when this member waits for the state
//! of another one, which makes up for damage (`repair`).
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
    why: Option<Why>,
}

/// Why apply stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// A page that the entry at the front needs cannot be read. It is tried again at this time.
    Page { retry_at: Duration },
    /// The start could not read all of the state.
    Unread,
    /// The state of another member is waited for, until this time or as long as it arrives.
    Repair { until: Duration },
}

impl Standstill {
    /// Whether apply stands still.
    pub fn is_on(&self) -> bool {
        self.why.is_some()
    }

    /// Whether it lasts until the member is started again, or has the state of another one.
    pub fn is_for_good(&self) -> bool {
        self.why == Some(Why::Unread)
    }

    /// Until when this member waits for the state of another one, if it stands still for that.
    pub fn waits_until(&self) -> Option<Duration> {
        match self.why {
            Some(Why::Repair { until }) => Some(until),
            _ => None,
        }
    }

    /// Whether the entry at the front may be tried now.
    pub fn lets_pass(&self, now: Duration) -> bool {
        match self.why {
            None => true,
            Some(Why::Page { retry_at }) => retry_at <= now,
            Some(Why::Unread | Why::Repair { .. }) => false,
        }
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
        if self.why.replace(Why::Page { retry_at: now + RETRY_AFTER }).is_none() {
            let reason = format!("entry {index} needs {} at offset {offset}, which cannot be read", path.display());
            self.tell(shared, reason);
        }
    }

    /// Nothing may be applied in this run, because the start could not read all of the state.
    pub fn begin_for_good(&mut self, shared: &Shared, reason: String) {
        self.why = Some(Why::Unread);
        self.tell(shared, reason);
    }

    /// Nothing is applied until the state of another member is there, or `until` has passed: that state must not be
    /// behind this member's.
    pub fn begin_repair(&mut self, shared: &Shared, until: Duration) {
        assert!(!self.is_on(), "it stands still for one reason");
        self.why = Some(Why::Repair { until });
        self.tell(shared, "pages are damaged, and the state of another member is waited for".to_owned());
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

    /// An entry was applied, or a state was installed, or none has come.
    pub fn passed(&mut self, shared: &Shared) {
        self.tried = None;
        if self.why.take().is_some() {
            shared.standstill.store(None);
            shared.is_behind.store(false, Ordering::Release);
            tracing::info!("entries are applied again");
        }
    }
}
