//! Named sets of knobs for a kind of work, each change with its reason.
//!
//! Invariants: every change names a knob, changes it from its default, and the result passes `Knobs::check`.
//! A profile is applied first; a knobs file, then flags, go on top of it.

use crate::{
    error::Error,
    knobs::{Knobs, knob},
};

/// A knob set by a profile.
#[derive(Debug)]
pub struct Change {
    /// The knob's name.
    pub knob: &'static str,
    /// Its value, as text.
    pub value: &'static str,
    /// Why this work wants it.
    pub why: &'static str,
}

/// A named set of changes to the defaults.
#[derive(Debug)]
pub struct Profile {
    /// As given to `--profile`.
    pub name: &'static str,
    /// The work it is for.
    pub purpose: &'static str,
    /// What it sets.
    pub changes: &'static [Change],
}

impl Profile {
    /// The knobs with this profile's changes.
    pub fn apply(&self, mut knobs: Knobs) -> Knobs {
        for change in self.changes {
            knob(change.knob)
                .and_then(|row| row.set(&mut knobs, change.value))
                .expect("a profile's rows are checked by its test");
        }
        knobs
    }
}

/// The profile of a name.
///
/// **Errors**: `UnknownProfile`, with the names there are.
pub fn profile(name: &str) -> Result<&'static Profile, Error> {
    PROFILES.iter().find(|p| p.name == name).ok_or_else(|| Error::UnknownProfile {
        name: name.into(),
        known: PROFILES.iter().map(|p| p.name).collect::<Vec<_>>().join(", "),
    })
}

const fn change(knob: &'static str, value: &'static str, why: &'static str) -> Change {
    Change { knob, value, why }
}

/// All profiles.
pub static PROFILES: &[Profile] = &[
    Profile {
        name: "kubernetes",
        purpose: "behind kube-apiserver: about 60 watch streams per apiserver, consistent lists from its cache, \
                  objects of a few KiB",
        changes: &[
            change(
                "server-watch-progress-interval-ms",
                "5s",
                "kubeadm's value: the apiserver's caches learn the revision by it",
            ),
            change(
                "server-stream-buffer-bytes-max",
                "8MiB",
                "few streams, each with all events of a resource: a burst must not send it back to disk",
            ),
            change(
                "server-connection-buffer-bytes-max",
                "16MiB",
                "lists of a whole resource are answered over few connections",
            ),
        ],
    },
    Profile {
        name: "small-writes",
        purpose: "many small puts: locks, counters, service discovery",
        changes: &[
            change("store-checkpoint-wal-bytes", "512MiB", "a hot leaf is written once for more puts"),
            change("consensus-proposals-bytes-max", "128MiB", "entries are small, their overhead in memory is not"),
            change("server-mailbox-messages-max", "16384", "a group at full load holds thousands of proposals"),
        ],
    },
    Profile {
        name: "many-watchers",
        purpose: "10,000 and more watch streams",
        changes: &[
            change("server-stream-buffer-bytes-max", "128KiB", "10,000 slow streams then hold 1.3 GB, not 10"),
            change(
                "server-catch-up-bytes-per-turn",
                "256KiB",
                "live events of the synced must not wait for the unsynced",
            ),
            change("server-connection-buffer-bytes-max", "1MiB", "as many connections, each with little to send"),
            change("server-connections-max", "262144", "a connection for each watching process"),
        ],
    },
    Profile {
        name: "large-values",
        purpose: "values of 100 KiB and more",
        changes: &[
            change("wal-segment-bytes", "256MiB", "a segment still lasts for hundreds of entries"),
            change("wal-group-bytes-max", "8MiB", "a group still gathers more than one entry"),
            change("store-segment-bytes", "64MiB", "less is left unused at a segment's end"),
            change("store-write-bytes", "4MiB", "a value is written in one piece"),
            change("store-checkpoint-wal-bytes", "1GiB", "the same number of entries between checkpoints"),
            change("store-recent-bytes-max", "3GiB", "two checkpoints' worth, and some"),
            change("consensus-proposals-bytes-max", "256MiB", "a hundred clients with a full request each"),
            change("consensus-apply-batch-bytes-max", "8MiB", "a publish still covers more than one entry"),
            change("server-stream-window-bytes", "2097152", "a request arrives without waiting for window updates"),
            change("server-connection-window-bytes", "8388608", "several such requests at once"),
        ],
    },
    Profile {
        name: "low-memory",
        purpose: "hosts with 512 MiB or less",
        changes: &[
            change("wal-segment-bytes", "8MiB", "lets a checkpoint be small"),
            change("wal-group-bytes-max", "1MiB", "a group is a buffer, twice"),
            change("store-checkpoint-wal-bytes", "16MiB", "records wait in memory until their checkpoint"),
            change("store-recent-bytes-max", "48MiB", "two checkpoints' worth, and some"),
            change("store-cache-bytes", "24MiB", "reads come from disk rather than from memory"),
            change("store-write-bytes", "256KiB", "a checkpoint has a dozen buffers of this size"),
            change("server-huge-pages", "false", "what was given up goes back"),
            change("store-open-segments-max", "32", "fewer open files"),
            change("consensus-proposals-bytes-max", "8MiB", "refuses early rather than swaps"),
            change("consensus-tail-bytes-max", "1MiB", "one member has no follower to feed"),
            change("server-connection-buffer-bytes-max", "512KiB", "multiplies with connections"),
            change("server-gathered-bytes-max", "64MiB", "it is held twice while it is encoded"),
            change("server-stream-buffer-bytes-max", "64KiB", "multiplies with watch streams"),
            change("server-catch-up-bytes-per-turn", "128KiB", "what a turn reads, it holds"),
            change("server-connections-max", "1024", "a connection costs some 50 KiB"),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_changes_what_it_says_and_passes_the_checks() {
        for profile in PROFILES {
            let mut knobs = Knobs::default();
            for change in profile.changes {
                let row = knob(change.knob).unwrap();
                row.set(&mut knobs, change.value).unwrap();
                assert_ne!(row.get(&knobs), row.default_text(), "{} sets {} to its default", profile.name, change.knob);
            }
            assert_eq!(profile.apply(Knobs::default()), knobs);
            assert_eq!(knobs.check(), Ok(()), "{}", profile.name);
        }
    }

    #[test]
    fn an_unknown_profile_is_refused_with_the_names_there_are() {
        let text = profile("speed").unwrap_err().to_string();
        assert_eq!(
            text,
            "unknown profile \"speed\" (there are kubernetes, small-writes, many-watchers, large-values, low-memory)"
        );
    }
}
