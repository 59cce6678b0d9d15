//! Runs on: apply core.
//!
//! A state of another member takes the place of this member's: because raft says so, when the log does not lead to the
//! present any more; or because pages are damaged here, and the state has them.
//!
//! Invariants:
//! - The state is ahead of what is applied, or, if it makes up for damage, not behind; and it is not ahead of what is
//!   committed. Entries up to it are not applied any more: they are in it. Who waits for one of them hears that it took
//!   too long; nobody can say what came of it.
//! - Entries that a state makes up for are dropped as soon as it is chosen: from then on it is installed, or a later
//!   one of raft's, before anything else is applied.
//! - From the moment at which it is due until it is installed, nothing is applied, swept or checkpointed.
//! - Lessor, tables, views and watchers turn over in one turn. Watchers read what they missed from the store.
//! - Raft hears of the installation when both copies of the superblock name the state; only then does the log start
//!   again behind it.

use std::time::Duration;

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, ConfState};
use engine::{Checkpoint, CheckpointDone, Store, planted::is_planted};

use super::{
    arrived::{Arrived, UnderWay},
    entry::Applier,
    fatal::Fatal,
    machine::Apply,
    members,
    message::Answer,
    table,
    upkeep::sweep::Sweep,
};
use crate::error::Error;

impl Apply {
    /// An empty state beside this member's, in which that of another one is built with `cache_bytes` of memory. It
    /// comes back in [`Apply::discard`], or through raft.
    pub fn incoming(&mut self, cache_bytes: usize) -> Store {
        self.install.begun += 1;
        self.store.incoming(cache_bytes)
    }

    /// A state was given up before all of it had arrived. Each that was begun is, or arrives.
    pub fn discard(&mut self, incoming: Store) {
        self.install.ended();
        self.store.discard(incoming);
    }

    /// Takes a state that raft did not ask for.
    pub(super) fn arrive(&mut self, arrived: Box<Arrived>) {
        self.install.ended();
        // One that is chosen stays: entries were dropped for it, and a later one may turn out to be of no use.
        let is_chosen = self.install.is_chosen;
        let unneeded = match &mut self.install.spare {
            Some(before) if is_chosen || before.at.index >= arrived.at.index => arrived,
            spare => match spare.replace(arrived) {
                Some(before) => before,
                None => return,
            },
        };
        self.store.discard(unneeded.store);
    }

    /// Raft says that this state takes the place of all that was handed over and is not applied.
    pub(super) fn install(&mut self, arrived: Box<Arrived>) {
        // One that makes up for damage may be under way: it ends first.
        assert!(arrived.at.index > self.applied.index, "a state is ahead");
        assert!(self.install.due.is_none(), "raft waits until one state is installed");
        self.install.ended();
        self.install.due = Some(arrived);
        self.pass_over(u64::MAX);
    }

    /// Drops the entries up to `index` that were handed over: they are in the state.
    fn pass_over(&mut self, index: u64) {
        self.asked = None;
        while let Some(entry) = self.queue.pop_front_if(|entry| entry.index <= index) {
            if let Some(mut proposal) = entry.proposal {
                proposal.result = Err(Error::Timeout);
                self.answer(proposal.reply, Answer::Applied(proposal));
            }
        }
    }

    /// Whether a state that has arrived, to make up for damage here, can be installed now. One that is of no use any
    /// more is given up.
    fn is_repair_due(&mut self) -> bool {
        let own = self.shared.identity.member_id;
        let Some(at) = self.install.spare.as_ref().map(|spare| spare.at) else { return false };
        let is_ours = |state: &ConfState| state.voters.contains(&own) || state.learners.contains(&own);
        // Who is no member there is sent no entries any more, and learns from nobody that it was removed.
        let is_member = self.install.spare.as_ref().is_some_and(|spare| is_ours(&spare.tables.conf_state));
        if at.index < self.applied.index || !self.standstill.is_on() || !is_member {
            // What was dropped for it came with another state.
            let spare = self.install.spare.take().expect("just seen");
            self.store.discard(spare.store);
            self.install.is_chosen = false;
            return false;
        }
        // What is not known to be committed here is handed over when it is.
        self.install.is_chosen = true;
        self.pass_over(at.index);
        at.index <= self.handed
    }

    /// Begins to install a state, if one is due and there. Returns the job that writes the superblock.
    ///
    /// **Errors** the state contradicts this member's: one of the two is not the cluster's.
    pub(super) fn begin_install(&mut self) -> Result<Option<Checkpoint>, Fatal> {
        if self.install.under_way.is_some() || self.store.is_checkpointing() {
            return Ok(None);
        }
        let is_repair = self.install.due.is_none();
        if is_repair && !self.is_repair_due() {
            return Ok(None);
        }
        let arrived = self.install.due.take().or_else(|| self.install.spare.take()).expect("one of them is there");
        let Arrived { store, at, tables } = *arrived;
        let (new, old) = (store.mvcc().view(), self.store.mvcc().view());
        let is_ahead = at.index >= self.applied.index
            && at.term >= self.applied.term
            && new.revision() >= old.revision()
            && new.compact_revision() >= old.compact_revision();
        if !is_ahead {
            return Err(Fatal::Contradiction { index: at.index });
        }
        tracing::info!(
            index = at.index,
            revision = new.revision(),
            is_repair,
            "a state of another member takes the place of this member's"
        );
        self.pass_over(at.index);
        self.install.is_chosen = false;
        self.install.under_way = Some(UnderWay { at, tables, is_repair });
        self.counters.installs_inflight.set(1);
        Ok(Some(self.store.install_begin(store)))
    }

    /// Both copies of the superblock name the state: everything turns over.
    pub(super) fn installed(&mut self, done: CheckpointDone, now: Duration) {
        let UnderWay { at, tables, is_repair } = self.install.under_way.take().expect("an installation was begun");
        self.counters.installs_inflight.set(0);
        tracing::info!(index = at.index, is_repair, "applied snapshot");
        self.store.checkpoint_end(done);
        let conf_state = tables.conf_state.clone();
        let before = std::mem::replace(&mut self.applier.conf_state, conf_state.clone());
        let lessor = self.applier.lessor.afresh();
        let (steps, learners_max) = (self.applier.steps, self.applier.learners_max);
        self.applier = Applier { steps, learners_max, ..Applier::new(lessor, tables, None) };
        self.applied = at;
        self.handed = self.handed.max(at.index);
        self.pinned.clear(false);
        self.expiring.clear();
        self.expiring_at = None;
        self.own_since.clear();
        self.events.clear();
        self.unlisted = (!is_planted("an event lost at an install")).then_some(None);
        self.sweep = Sweep::left();
        self.shared.hashes.begin(self.store.mvcc().live().compact_revision());
        self.checkpoints.ended(now);
        if is_repair {
            self.report.conf_changes.extend(changes_between(before, &conf_state));
            self.report.trim = Some(at);
        } else {
            self.report.conf_changes.clear();
            self.report.installed = Some(at);
        }
        self.store.set_vital(table::encode_vital(&self.shared.identity, &conf_state));
        self.standstill.passed(&self.shared);
        self.taken.sum_up(&self.store);
        self.publish();
        self.publish_cluster();
        self.publish_users();
        self.publish_leases();
        self.publish_behind();
        self.end_renewals();
    }
}

/// Changes that lead from one configuration to another, each with the configuration that it makes.
fn changes_between(mut from: ConfState, to: &ConfState) -> Vec<(ConfChange, ConfState)> {
    let change = |kind, member_id| ConfChange { id: 0, kind, member_id, context: Bytes::new() };
    let is_new = |ids: &[u64], id: &&u64| !ids.contains(*id);
    let voters = to.voters.iter().filter(|id| is_new(&from.voters, id));
    let learners = to.learners.iter().filter(|id| is_new(&from.learners, id));
    let known = from.voters.iter().chain(&from.learners);
    let gone = known.filter(|id| !to.voters.contains(id) && !to.learners.contains(id));
    let changes: Vec<ConfChange> = (voters.map(|id| change(ConfChangeKind::AddNode, *id)))
        .chain(learners.map(|id| change(ConfChangeKind::AddLearnerNode, *id)))
        .chain(gone.map(|id| change(ConfChangeKind::RemoveNode, *id)))
        .collect();
    let mut made = Vec::with_capacity(changes.len());
    for change in changes {
        from = members::changed(&from, &change).expect("voters are added before others are removed");
        made.push((change, from.clone()));
    }
    assert_eq!(&from, to, "the changes lead there");
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_configuration_is_reached_from_any_other() {
        let state = |voters: &[u64], learners: &[u64]| ConfState { voters: voters.into(), learners: learners.into() };
        let states = [state(&[1], &[]), state(&[1, 2, 3], &[4]), state(&[4, 5], &[1]), state(&[2, 9], &[3, 4])];
        for from in &states {
            for to in &states {
                let changes = changes_between(from.clone(), to);
                assert_eq!(changes.last().map_or(from, |(_, made)| made), to);
            }
        }
    }
}
