//! One request that deletes very many keys, and power losses in the middle of it. It is no bug of etcd: there, nobody
//! is served meanwhile.
//!
//! `ORLOP_CLUSTER_KEYS` sets how many keys; a million take some minutes and 2 GiB.

use proto::{
    etcdserverpb::{self as pb, request_op},
    internal::Request,
};
use server::apply::long::Steps;

use super::{World, calm, millis, op, put};
use crate::{member::Member, plan::number, world::Event};

/// Puts in one request, and requests at once.
const PUTS: u64 = 128;
const TXNS: u64 = 40;

fn all() -> pb::RangeRequest {
    pb::RangeRequest { key: "big/".into(), range_end: "big0".into(), count_only: true, ..pb::RangeRequest::default() }
}

fn puts(from: u64, to: u64) -> Request {
    let puts = (from..to).map(|key| op(request_op::Request::RequestPut(put(&format!("big/{key:08}"), "value"))));
    Request::Txn(pb::TxnRequest { success: puts.collect(), ..pb::TxnRequest::default() })
}

impl World {
    fn fill(&mut self, keys: u64) {
        for first in (0..keys).step_by(usize::try_from(PUTS * TXNS).unwrap()) {
            let leader = self.led();
            let firsts = (first..keys.min(first + PUTS * TXNS)).step_by(usize::try_from(PUTS).unwrap());
            let ids: Vec<u64> =
                firsts.map(|from| self.member(leader).propose(puts(from, keys.min(from + PUTS)))).collect();
            self.step(leader);
            for id in ids {
                self.answer(id).expect("it is not refused");
            }
        }
    }

    /// How many of the keys the member shows.
    fn count(&self, member: &Member) -> u64 {
        let view = member.shared.view.load();
        let (_, answer) = member.read(&view, &all()).expect("its disk can be read").expect("it is not refused");
        answer.count.cast_unsigned()
    }

    /// Whether the member at `at` has deleted some of the keys. All members show all of them, or none.
    fn is_in_the_middle(&self, at: usize, keys: u64) -> bool {
        for member in self.seats.iter().filter_map(|seat| seat.member.as_ref()) {
            let count = self.count(member);
            assert!(count == 0 || count == keys, "m{} shows {count} of {keys} keys", member.id);
        }
        self.seats[at].member.as_ref().is_some_and(|member| member.shared.view.load().is_unfinished())
    }
}

#[test]
fn a_delete_of_very_many_keys_outlives_power_loss_of_each_member_in_the_middle() {
    let keys = number("ORLOP_CLUSTER_KEYS").unwrap_or(20_000);
    let mut world = calm(22_000, 3);
    world.queue.retain(|event| !matches!(event.0.2, Event::Compare));
    for at in 0..3 {
        world.seats[at].steps = Steps { at_once_max: 1024, keys: usize::try_from(keys / 200).unwrap() };
        world.crash(at);
    }
    world.fill(keys);
    world.agree();
    let leader = world.led();
    let delete = pb::DeleteRangeRequest { key: "big/".into(), range_end: "big0".into(), ..Default::default() };
    world.propose(leader, Request::DeleteRange(delete));
    let mut lost = 0;
    for at in [(leader + 1) % 3, leader, (leader + 2) % 3] {
        world.until("the member is in the middle of it, or done", |world| {
            let is_done = |member: &Member| world.count(member) == 0;
            world.is_in_the_middle(at, keys) || world.seats[at].member.as_ref().is_some_and(is_done)
        });
        lost += u32::from(world.is_in_the_middle(at, keys));
        world.lose(at, true, millis(5));
    }
    assert!(lost > 1, "{lost} members lose power in the middle of the delete");
    world.until("all have deleted all", |world| {
        let none_left = |seat: &crate::seat::Seat| seat.member.as_ref().is_some_and(|member| world.count(member) == 0);
        world.seats.iter().filter(|seat| seat.id.is_some()).all(none_left)
    });
    world.agree();
    world.heal();
}
