//! A leader that is to be removed hands leadership on, and the others go on without it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, Entry, Error, Message, MessageKind, Options};

use world::{Machine, World, options, seeded};

struct Cluster {
    members: Vec<World>,
    /// Messages of this kind are lost.
    lost: Option<MessageKind>,
    /// What the members have forwarded to one of them, by its position.
    forwarded: Vec<(usize, Entry)>,
}

impl Cluster {
    /// So many members, of which the first leads.
    fn new(count: u64) -> Cluster {
        let open = |id| {
            let options = Options { seed: id, ..options() };
            World::open(id, count, seeded(id), Machine::new(), options).unwrap()
        };
        let mut cluster = Cluster { members: (1..=count).map(open).collect(), lost: None, forwarded: Vec::new() };
        while cluster.leader() != Some(1) {
            cluster.members[0].driver.tick();
            cluster.exchange();
        }
        cluster
    }

    fn leader(&self) -> Option<u64> {
        self.members.iter().find(|member| member.driver.status().is_leader).map(|member| member.id)
    }

    fn exchange(&mut self) {
        loop {
            self.members.iter_mut().for_each(|member| member.settle().unwrap());
            let messages: Vec<Message> =
                self.members.iter_mut().flat_map(|member| member.outbox.split_off(0)).collect();
            if messages.is_empty() {
                return;
            }
            for mut message in messages.into_iter().filter(|message| Some(message.kind) != self.lost) {
                let to = usize::try_from(message.to - 1).unwrap();
                let driver = &mut self.members[to].driver;
                if message.kind == MessageKind::Propose {
                    driver.check(&mut message).unwrap();
                    self.forwarded.extend(message.entries.into_iter().map(|entry| (to, entry)));
                } else {
                    driver.receive(message).unwrap();
                }
            }
            self.propose_forwarded();
        }
    }

    /// Proposes what was forwarded, and keeps what is to wait.
    fn propose_forwarded(&mut self) {
        for (to, entry) in std::mem::take(&mut self.forwarded) {
            let proposed = self.members[to].driver.propose_entries([(entry.kind, entry.data.clone())].into_iter());
            if let Some(refused) = proposed.first() {
                assert!(matches!(refused.error, Error::NoLeader), "{refused:?}");
                self.forwarded.push((to, entry));
            }
        }
    }

    fn tick_all(&mut self, ticks: usize) {
        for _ in 0..ticks {
            self.members.iter_mut().for_each(|member| member.driver.tick());
            self.propose_forwarded();
            self.exchange();
        }
    }

    fn voters(&self, position: usize) -> &[u64] {
        &self.members[position].driver.conf_state().voters
    }
}

fn removal_of(member_id: u64) -> ConfChange {
    ConfChange { id: 77, kind: ConfChangeKind::RemoveNode, member_id, context: Bytes::new() }
}

#[test]
fn a_leader_that_is_to_be_removed_hands_leadership_on_first() {
    for count in [2, 3] {
        let mut cluster = Cluster::new(count);
        let refused = cluster.members[0].driver.propose_conf_change(&removal_of(1));
        assert!(matches!(refused, Err(Error::NoLeader)), "it is proposed to the next leader");
        cluster.exchange();
        let leader = cluster.leader().unwrap();
        assert_ne!(leader, 1);
        // A new leader makes an empty entry of a change that comes before it has applied all that it began with.
        let refused = cluster.members[0].driver.propose_conf_change(&removal_of(1));
        assert!(matches!(refused, Err(Error::NoLeader)), "the next leader has only begun");
        cluster.tick_all(3);
        cluster.members[0].driver.propose_conf_change(&removal_of(1)).unwrap();
        cluster.exchange();
        let (left, at) = (Vec::from_iter(2..=count), usize::try_from(leader - 1).unwrap());
        assert_eq!((cluster.voters(0), cluster.voters(at)), (&left[..], &left[..]));
        // The others go on.
        cluster.members.remove(0);
        cluster.members[at - 1].propose("x").unwrap();
        let others: Vec<u64> = cluster.members.iter().map(|member| member.id).collect();
        for _ in 0..3 {
            cluster.members.iter_mut().for_each(|member| member.settle().unwrap());
            let messages: Vec<Message> =
                cluster.members.iter_mut().flat_map(|member| member.outbox.split_off(0)).collect();
            for message in messages {
                let to = others.iter().position(|id| *id == message.to).expect("nothing is sent to former members");
                cluster.members[to].driver.receive(message).unwrap();
            }
        }
        assert_eq!(cluster.members[at - 1].machine.requests(), ["x"]);
    }
}

#[test]
fn a_removal_that_is_forwarded_to_the_leader_waits_for_the_next_one() {
    let mut cluster = Cluster::new(3);
    cluster.tick_all(3);
    cluster.members[1].driver.propose_conf_change(&removal_of(1)).unwrap();
    cluster.exchange();
    assert!(cluster.leader().is_some_and(|leader| leader != 1));
    cluster.tick_all(4);
    for position in 0..3 {
        assert_eq!(cluster.voters(position), [2, 3], "member {}", position + 1);
    }
}

#[test]
fn a_leader_whose_leadership_nobody_takes_over_is_removed_nevertheless() {
    let mut cluster = Cluster::new(3);
    cluster.lost = Some(MessageKind::TimeoutNow);
    assert!(matches!(cluster.members[0].driver.propose_conf_change(&removal_of(1)), Err(Error::NoLeader)));
    cluster.exchange();
    assert_eq!(cluster.leader(), Some(1));
    let mut ticks = 0;
    while cluster.members[0].driver.propose_conf_change(&removal_of(1)).is_err() {
        cluster.members[0].driver.tick();
        cluster.exchange();
        ticks += 1;
        assert!(ticks <= 2 * options().election_ticks, "leadership is tried to be handed on once in a term");
    }
    assert!(ticks > 1);
    cluster.exchange();
    assert_eq!(cluster.leader(), None, "it is no member any more");
    for position in 0..3 {
        assert_eq!(cluster.voters(position), [2, 3], "member {}", position + 1);
    }
    cluster.lost = None;
    cluster.tick_all(3 * options().election_ticks);
    assert!(cluster.leader().is_some());
}
