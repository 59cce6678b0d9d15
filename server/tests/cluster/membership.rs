//! Members that come and go: what operators ask for, and what must hold meanwhile.
//!
//! Operators add members as learners and as voters, promote, move and remove them, whoever they are, ask for nonsense,
//! and have leadership handed over. They do not wait for each other. Each member that the log has added is started on a
//! free machine with empty disks, and never again on others. A member that finds out that it was removed stops one
//! second later, and its machine is free.
//!
//! What is checked: each change is answered as a model of the members table says that applies the same log; each member
//! holds this table, at the entry at which it is, and raft the same configuration; a former member never returns; a
//! leader has at most one change that is not committed; only voters lead.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, ConfState, EntryKind, Message, MessageKind};
use engine::disk::sim::Random;
use proto::internal::{self, Request};
use server::{
    apply::{outcome::Outcome, proposal::Proposal},
    error::Error,
};

use super::{
    member::{Member, member_of},
    plan::sequence,
    world::{Event, World},
};

/// Machines that members may run on.
pub(crate) const MACHINES: usize = 7;
/// How often operators look for members to start.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(500);
/// From the moment when a member knows that it was removed to its end. **Source** etcd v3.7.1
/// `server/etcdserver/server.go`.
const LEAVE_AFTER: Duration = Duration::from_secs(1);
/// What was asked for and is not applied after this time will not be.
const LIMBO: Duration = Duration::from_secs(20);

/// Who is in the cluster, and who was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Table {
    members: BTreeMap<u64, consensus::Member>,
    removed: BTreeSet<u64>,
}

impl Table {
    fn ids(&self, is_learner: bool) -> Vec<u64> {
        let members = self.members.values();
        members.filter(|member| member.is_learner == is_learner).map(|member| member.id).collect()
    }

    fn configuration(&self) -> ConfState {
        ConfState { voters: self.ids(false), learners: self.ids(true) }
    }

    /// What etcd makes of a change.
    fn change(&mut self, change: &ConfChange) -> Result<(), Error> {
        let id = change.member_id;
        let named = consensus::Member::from_json(&change.context).unwrap_or_default();
        let has_url = |member: &consensus::Member| member.peer_urls.iter().any(|url| named.peer_urls.contains(url));
        let is_taken = self.members.values().any(|member| member.id != id && has_url(member));
        let is_last_voter = self.ids(false) == [id];
        let has_learner = !self.ids(true).is_empty();
        match (change.kind, self.members.get_mut(&id)) {
            _ if self.removed.contains(&id) => return Err(Error::MemberRemoved),
            (ConfChangeKind::RemoveNode, Some(_)) if is_last_voter => return Err(Error::NotEnoughStarted),
            (ConfChangeKind::RemoveNode, Some(_)) => {
                self.members.remove(&id);
                self.removed.insert(id);
            }
            (ConfChangeKind::AddNode, Some(member)) if named.is_promote => {
                if !std::mem::take(&mut member.is_learner) {
                    return Err(Error::MemberNotLearner);
                }
            }
            (ConfChangeKind::UpdateNode, Some(_)) if is_taken => return Err(Error::PeerUrlExists),
            (ConfChangeKind::UpdateNode, Some(member)) => member.peer_urls = named.peer_urls,
            (ConfChangeKind::AddNode | ConfChangeKind::AddLearnerNode, Some(_)) => return Err(Error::MemberExists),
            (ConfChangeKind::RemoveNode | ConfChangeKind::UpdateNode, None) => return Err(Error::MemberNotFound),
            (_, None) if named.is_promote => return Err(Error::MemberNotFound),
            (_, None) if is_taken => return Err(Error::PeerUrlExists),
            (ConfChangeKind::AddLearnerNode, None) if has_learner => return Err(Error::TooManyLearners),
            (_, None) => drop(self.members.insert(id, named)),
        }
        Ok(())
    }
}

/// A change that is asked for.
struct Asked {
    kind: ConfChangeKind,
    at: Duration,
}

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Membership {
    /// Committed entries that the model has not applied.
    entries: BTreeMap<u64, (EntryKind, Bytes)>,
    applied: u64,
    /// The table, from each entry on that changed it.
    tables: BTreeMap<u64, Table>,
    /// What became of each change, by what the log has of it. A member whose clock went back uses ids again.
    results: HashMap<Bytes, Vec<Result<Vec<consensus::Member>, Error>>>,
    /// Changes whose result is not known.
    asked: BTreeMap<Bytes, Asked>,
    started: BTreeSet<u64>,
    last_id: u64,
    /// A sequence of chance for each operator.
    operators: Vec<Random>,
    /// Changes that were made and refused, transfers that have succeeded.
    pub(crate) made: u64,
    pub(crate) refused: u64,
    pub(crate) transferred: u64,
}

impl Membership {
    /// A cluster that begins with so many members, and has so many operators.
    pub(crate) fn new(seed: u64, members: usize, operators: usize) -> Self {
        let last_id = members as u64;
        let operators = (0..operators).map(|operator| sequence(seed, "operator", operator)).collect();
        let tables = [(0, Table::default())].into();
        Self { last_id, started: (1..=last_id).collect(), tables, operators, ..Self::default() }
    }

    /// How many voters there are at least, whatever becomes of what was asked for.
    pub(crate) fn voters(&self, now: Duration) -> usize {
        let removals = self.in_limbo(now, |kind| kind == ConfChangeKind::RemoveNode);
        self.table().ids(false).len().saturating_sub(removals)
    }

    fn table(&self) -> &Table {
        self.table_at(u64::MAX)
    }

    fn table_at(&self, index: u64) -> &Table {
        self.tables.range(..=index).next_back().expect("there is one before the first entry").1
    }

    /// Some member takes the entry at `index` for committed.
    pub(crate) fn committed(&mut self, index: u64, kind: EntryKind, data: &Bytes) {
        if index > self.applied {
            self.entries.insert(index, (kind, data.clone()));
        }
        while let Some((kind, data)) = self.entries.remove(&(self.applied + 1)) {
            self.applied += 1;
            let mut table = self.table().clone();
            match kind {
                EntryKind::ConfChange => {
                    let change = ConfChange::decode(&data).expect("members decode what they propose");
                    let result = table.change(&change).map(|()| table.members.values().cloned().collect());
                    self.asked.remove(&data);
                    self.results.entry(data).or_default().push(result);
                }
                EntryKind::Normal => {
                    if let Ok((_, Request::ClusterMemberAttrSet(set))) = internal::decode(data)
                        && let Some(member) = table.members.get_mut(&set.member_id)
                    {
                        let attributes = set.member_attributes.expect("a member publishes something");
                        (member.name, member.client_urls) = (attributes.name, attributes.client_urls);
                    }
                }
            }
            if table != *self.table() {
                self.tables.insert(self.applied, table);
            }
        }
    }

    /// A member answers a proposal. Returns whether it was a change of the members.
    pub(crate) fn answered(&mut self, proposal: &Proposal) -> bool {
        let Some(results) = self.results.get(&proposal.entry) else {
            // What raft refuses is not in the log.
            return self.asked.remove(&proposal.entry).is_some_and(|_| proposal.result.is_err());
        };
        let told = match &proposal.result {
            Ok(Outcome::Members(members)) => Ok(members.clone()),
            // It is in a state that took the place of this member's.
            Err(Error::Timeout) => return true,
            Err(error) => Err(error.clone()),
            Ok(other) => panic!("{other:?} is told of a change"),
        };
        match &told {
            Ok(_) => self.made += 1,
            Err(_) => self.refused += 1,
        }
        assert!(results.contains(&told), "{told:?} is told of a change, and it has become {results:?}");
        true
    }

    /// Changes of this kind that may still be applied.
    fn in_limbo(&self, now: Duration, is_it: impl Fn(ConfChangeKind) -> bool) -> usize {
        self.asked.values().filter(|asked| is_it(asked.kind) && now < asked.at + LIMBO).count()
    }

    /// A member holds what the model says, and raft knows it. A former member knows nothing newer.
    pub(crate) fn check(&self, member: &Member) {
        let applied = member.applied();
        let table = self.table_at(applied);
        let cluster = member.shared.cluster.load();
        let held = || cluster.members.iter();
        let id = member.id;
        if member.stands_still() && cluster.members.is_empty() {
            // It cannot read its tables.
            return;
        }
        assert!(
            held().eq(table.members.values()),
            "member {id} at {applied} holds {:?}, not {table:?}",
            cluster.members
        );
        assert_eq!(cluster.removed, table.removed, "former members, of member {id} at {applied}");
        assert!(held().all(|member| !cluster.removed.contains(&member.id)), "a former member returns");
        let (known, configuration) = member.configuration();
        let expected = self.table_at(known).configuration();
        assert_eq!(configuration, &expected, "raft's configuration, of member {id} at {known}");
        assert!(!member.is_leader() || expected.voters.contains(&id), "member {id} leads, and has no vote");
    }

    /// What a leader sends has at most one change that is not committed.
    pub(crate) fn check_sent(&self, message: &Message) {
        if message.kind == MessageKind::Append {
            let open = |entry: &&consensus::Entry| entry.kind == EntryKind::ConfChange && entry.index > message.commit;
            let pending = message.entries.iter().filter(open).count();
            assert!(pending <= 1, "{pending} changes are pending in {message:?}");
        }
    }
}

impl World {
    /// The machine of a member.
    pub(crate) fn seat_of(&self, id: u64) -> Option<usize> {
        self.seats.iter().position(|seat| seat.id == Some(id))
    }

    /// The machines on which there is a member, running or not.
    pub(crate) fn occupied(&self) -> Vec<usize> {
        (0..self.seats.len()).filter(|at| self.seats[*at].id.is_some()).collect()
    }

    /// Starts the members that were added and never ran.
    pub(crate) fn start_added(&mut self) {
        self.plan(LOOK_EVERY, Event::StartAdded);
        let table = self.membership.table();
        let added: Vec<u64> =
            table.members.keys().copied().filter(|id| !self.membership.started.contains(id)).collect();
        for id in added {
            let at = self.seats.iter().position(|seat| seat.id.is_none()).expect("a machine is kept free for it");
            self.membership.started.insert(id);
            self.seats[at].id = Some(id);
            self.tell(|_| format!("m{id} is to run on machine {at}"));
            self.plan(Duration::from_millis(id * 97 % 2000), Event::Restart { member: at });
        }
    }

    /// Lets the member at `at` find out that it was removed, by its own log or by a peer that it reaches.
    pub(crate) fn find_out(&mut self, at: usize) {
        let Some(member) = &self.seats[at].member else { return };
        let is_told = member.has_removed(member.id) || member.links.is_removed();
        if is_told && !std::mem::replace(&mut self.seats[at].is_leaving, true) {
            let life = self.seats[at].life;
            self.tell(|world| format!("{} knows that it was removed", world.shown(at)));
            self.plan(LEAVE_AFTER, Event::Leave { member: at, life });
        }
    }

    /// A member that was removed is gone, and its machine is free.
    pub(crate) fn leave(&mut self, at: usize, life: u64) {
        if self.seats[at].life == life {
            self.tell(|world| format!("{} ends", world.shown(at)));
            self.free(at);
        }
    }

    fn awake(&self, random: &mut Random, is_it: impl Fn(&Member) -> bool) -> Option<usize> {
        let awake = self.occupied().into_iter().filter(|at| {
            let seat = &self.seats[*at];
            seat.paused_until <= self.now && seat.member.as_ref().is_some_and(&is_it)
        });
        pick(awake, random)
    }

    /// An operator does something.
    pub(crate) fn operate(&mut self, operator: usize) {
        let mut random = Random::new(self.membership.operators[operator].bits());
        self.plan(Duration::from_millis(200 + random.below(8000)), Event::Operator { operator });
        match random.below(5) {
            _ if self.is_quiet() => {}
            0 => self.move_leader(&mut random),
            _ => self.change_members(&mut random),
        }
    }

    /// An operator asks for some change of the members.
    fn change_members(&mut self, random: &mut Random) {
        let Some(at) = self.awake(random, |_| true) else { return };
        let Some((kind, named)) = self.wish(random) else { return };
        let now = self.now;
        self.tell(|world| format!("{} is asked: {kind:?} {named:?}", world.shown(at)));
        let member = self.seats[at].member.as_mut().expect("it is awake");
        let change = member.change(kind, &named);
        self.membership.asked.insert(change, Asked { kind, at: now });
        self.step(at);
    }

    /// What an operator wants next, if it may be asked for now.
    fn wish(&mut self, random: &mut Random) -> Option<(ConfChangeKind, consensus::Member)> {
        use ConfChangeKind::{AddLearnerNode, AddNode, RemoveNode, UpdateNode};
        let now = self.now;
        let table = self.membership.table().clone();
        let adds = self.membership.in_limbo(now, |kind| matches!(kind, AddNode | AddLearnerNode));
        let removals = self.membership.in_limbo(now, |kind| kind == RemoveNode);
        let orphans = table.members.keys().filter(|id| !self.membership.started.contains(id)).count();
        let free = self.seats.iter().filter(|seat| seat.id.is_none()).count();
        let may_add = free > adds + orphans;
        let any = |random: &mut Random| pick(table.members.values().cloned(), random);
        let learner = table.ids(true).first().copied();
        let mut fresh = |is_learner| {
            self.membership.last_id += 1;
            consensus::Member { is_learner, name: String::new(), ..member_of(self.membership.last_id) }
        };
        match random.below(14) {
            0..=2 if may_add && learner.is_none() => Some((AddLearnerNode, fresh(true))),
            3..=4 if may_add => Some((AddNode, fresh(false))),
            5..=7 => {
                let id = learner.filter(|id| self.has_caught_up(*id) || random.chance(1, 6))?;
                Some((AddNode, consensus::Member { id, is_promote: true, ..consensus::Member::default() }))
            }
            8..=10 => {
                let leader = self.awake(random, Member::is_leader).and_then(|at| self.seats[at].id);
                let leader = leader.filter(|_| random.chance(1, 3)).and_then(|id| table.members.get(&id).cloned());
                let member = leader.or_else(|| any(random))?;
                // Mostly three voters stay, at times two.
                let least = if random.chance(1, 5) { 2 } else { 3 };
                let may = member.is_learner || table.ids(false).len() > least + removals;
                (may && !self.is_mending()).then_some((RemoveNode, member))
            }
            11 => {
                let member = any(random)?;
                let peer_urls = vec![format!("http://10.0.1.{}:{}", member.id, random.below(60_000))];
                Some((UpdateNode, consensus::Member { peer_urls, ..member }))
            }
            // An address in use is free once a removal under way is made, and then its new owner needs a machine.
            _ => nonsense(&table, random).filter(|(kind, member)| {
                let adds = matches!(kind, AddNode | AddLearnerNode) && !member.is_promote;
                may_add || !adds
            }),
        }
    }

    fn has_caught_up(&self, id: u64) -> bool {
        let applied = |at: usize| self.seats[at].member.as_ref().map_or(0, Member::applied);
        self.seat_of(id).is_some_and(|at| 10 * applied(at) >= 9 * self.membership.applied)
    }

    /// An operator asks for another leader: mostly the leader, and mostly for a voter.
    fn move_leader(&mut self, random: &mut Random) {
        let leader = self.awake(random, Member::is_leader).filter(|_| random.chance(7, 8));
        let Some(at) = leader.or_else(|| self.awake(random, |_| true)) else { return };
        let table = self.membership.table();
        let target = pick(table.members.keys().copied(), random).filter(|_| random.chance(7, 8));
        let target = target.unwrap_or_else(|| 1 + random.below(self.membership.last_id + 1));
        self.tell(|world| format!("{} is asked to hand leadership to m{target}", world.shown(at)));
        self.seats[at].member.as_mut().expect("it is awake").transfer(target);
        self.step(at);
    }

    /// The member at `at` answers its transfers.
    pub(crate) fn transferred(&mut self, at: usize, results: Vec<(u64, Result<(), Error>)>) {
        let Some(member) = &self.seats[at].member else { return };
        let cluster = member.shared.cluster.load();
        let is_voter = |id: u64| cluster.members.iter().any(|member| member.id == id && !member.is_learner);
        for (target, result) in results {
            match result {
                Ok(()) => {
                    assert_eq!(member.leader(), target, "leadership was handed over");
                    self.membership.transferred += 1;
                }
                Err(Error::NotLeader) => assert!(!member.is_leader()),
                Err(Error::BadLeaderTransferee) => assert!(!is_voter(target)),
                Err(Error::LeaderTransferTimeout | Error::TooManyRequests) => {}
                Err(other) => panic!("{other} is told of a transfer"),
            }
        }
    }

    /// All members hold what the model says, and are where it says.
    pub(crate) fn check_members(&self) {
        for member in self.seats.iter().filter_map(|seat| seat.member.as_ref()) {
            self.membership.check(member);
        }
    }

    /// At the end, each member of the table runs, and nobody else.
    pub(crate) fn check_all_members_run(&self) {
        let running = self.seats.iter().filter_map(|seat| seat.member.as_ref()).map(|member| member.id);
        let running: BTreeSet<u64> = running.collect();
        let expected: BTreeSet<u64> = self.membership.table().members.keys().copied().collect();
        assert_eq!(running, expected, "who is in the cluster runs, and nobody else");
    }
}

/// A change that etcd refuses, or that changes nothing.
fn nonsense(table: &Table, random: &mut Random) -> Option<(ConfChangeKind, consensus::Member)> {
    use ConfChangeKind::{AddLearnerNode, AddNode, RemoveNode, UpdateNode};
    let known = pick(table.members.values().cloned(), random)?;
    let former = pick(table.removed.iter().copied(), random).map(member_of);
    let unknown = member_of(1_000_000 + random.below(9));
    let promote = |id| consensus::Member { id, is_promote: true, ..consensus::Member::default() };
    let taken = consensus::Member { peer_urls: known.peer_urls.clone(), ..unknown.clone() };
    Some(match random.below(9) {
        0 | 1 => (AddNode, former?),
        2 => (AddLearnerNode, consensus::Member { is_learner: true, ..former? }),
        3 => (RemoveNode, former?),
        4 => (AddNode, known),
        5 => (AddNode, taken),
        6 => (AddNode, promote(table.ids(false).first().copied()?)),
        7 => (AddNode, promote(unknown.id)),
        _ if random.chance(1, 2) => (RemoveNode, unknown),
        _ => (UpdateNode, unknown),
    })
}

fn pick<T>(of: impl Iterator<Item = T>, random: &mut Random) -> Option<T> {
    let mut all: Vec<T> = of.collect();
    let count = all.len() as u64;
    (count > 0).then(|| all.swap_remove(usize::try_from(random.below(count)).expect("a place in a list")))
}
