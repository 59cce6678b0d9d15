//! Runs on: connection core.
//!
//! What a person should look at: /health, /readyz and Top show it.

use std::sync::atomic::Ordering;

use super::desk::Desk;

/// What does not keep the member from serving, but should be looked at: the name of a check, the reason that /health
/// shows, and what is the matter.
pub fn worries(desk: &Desk) -> Vec<(&'static str, &'static str, String)> {
    let mut worries = Vec::new();
    let unreadable = desk.shared.view.unreadable().count();
    if unreadable > 0 {
        let what = format!("{unreadable} pages cannot be read: requests that need them fail");
        worries.push(("unreadable_pages", "UNREADABLE PAGES", what));
    }
    if desk.shared.is_disk_full.load(Ordering::Acquire) {
        worries.push((
            "disk_full",
            "DISK FULL",
            "the disk is full: writes are refused until there is space".to_owned(),
        ));
    }
    worries
}
