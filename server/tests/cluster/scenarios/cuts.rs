//! Logs that are cut at their end: who has lost what it has promised decides nothing, and a cluster goes on.
//!
//! These are no bugs of etcd. There, such a member votes as if nothing had happened.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use engine::planted::plant;
use proto::internal::Request;

use super::{World, calm, millis, put};
use crate::{
    member::{HEARTBEAT, LOG, Member},
    shrink,
};

/// Heartbeat intervals in an election timeout.
const TIMEOUT: Duration = HEARTBEAT.saturating_mul(10);

impl World {
    fn is_cut(&self, at: usize) -> bool {
        self.seats[at].member.as_ref().is_some_and(Member::is_cut)
    }

    /// All machines lose power while their logs are written, and have it again at once.
    fn tear_all(&mut self) {
        let leader = self.led();
        (0..self.members()).for_each(|at| self.hang(at, Duration::from_secs(60)));
        for number in 0..4 {
            self.propose(leader, Request::Put(put(&format!("torn{number}"), vec![b't'; 6000])));
            self.pass(millis(20));
        }
        for at in 0..self.members() {
            self.lose(at, true, Duration::ZERO);
        }
        self.until("all run again", |world| world.seats.iter().all(|seat| seat.id.is_none() || seat.member.is_some()));
    }
}

/// Torn ends are what power loss leaves, so nobody may have to wait for a person because of them.
#[test]
fn members_that_were_cut_by_one_power_loss_elect_within_three_timeouts() {
    let mut torn = [0; 2];
    for seed in 0..60 {
        let members = if seed % 2 == 0 { 3 } else { 5 };
        let mut world = calm(1_000_000 + seed, members);
        let leader = world.led();
        world.put(leader, "kept", "whole");
        world.tear_all();
        let began = world.now;
        let cut = (0..members).filter(|at| world.is_cut(*at)).count();
        torn[members / 4] += u32::from(cut > members / 2);
        let new = world.led();
        assert!(world.now - began < 3 * TIMEOUT, "seed {seed}: it took {:?}", world.now - began);
        world.put(new, "more", "later");
        assert_eq!(world.read(new, 1, "kept").1, Some("whole".into()));
        world.until("all have caught up", |world| !(0..members).any(|at| world.is_cut(at)));
        world.heal();
    }
    assert!(torn.iter().all(|torn| *torn > 4), "a majority of three, and of five, was cut in {torn:?} runs");
}

/// Two of three acknowledge a write. One of them loses it, and the other one goes away: the third cannot know of it, so
/// nobody leads until who has it is back.
#[test]
fn what_a_member_has_lost_is_not_forgotten_by_its_vote() {
    let mut lost = 0;
    for seed in 0..8 {
        let mut world = calm(2_000_000 + seed, 3);
        let leader = world.led();
        let (loser, ignorant) = ((leader + 1) % 3, (leader + 2) % 3);
        world.cut_off(ignorant);
        world.put(leader, "register", "new");
        world.lose(leader, true, Duration::from_secs(30));
        world.lose_tail(loser, millis(10));
        world.join(ignorant);
        world.until("the member runs again", |world| world.seats[loser].member.is_some());
        if world.is_cut(loser) {
            lost += 1;
            for _ in 0..80 {
                world.pass(millis(300));
                assert_eq!(world.leader(), None, "they do not have all that was acknowledged");
            }
        }
        let new = world.led();
        assert_eq!(world.read(new, 1, "register").1, Some("new".into()));
        world.until("it has caught up", |world| !world.is_cut(loser));
        world.heal();
    }
    assert!(lost > 4, "{lost} of 8 have lost the end of their log");
}

/// The leader's disk hangs, and the other two write down what it sends. One of them loses that, the leader loses power,
/// and they come back before the third, who alone has it. Returns whether a log was cut.
fn a_leader_hangs_and_an_end_is_lost(seed: u64) -> bool {
    let mut world = calm(6_000_000 + seed, 3);
    let leader = world.led();
    let (loser, other) = ((leader + 1) % 3, (leader + 2) % 3);
    world.put(leader, "register", "old");
    world.hang(leader, Duration::from_secs(60));
    world.propose(leader, Request::Put(put("register", "new")));
    world.pass(HEARTBEAT * 3);
    world.lose_tail(loser, millis(10));
    world.lose(leader, true, millis(10));
    world.lose(other, true, Duration::from_secs(8));
    world.until("two run again", |world| [leader, loser].iter().all(|at| world.seats[*at].member.is_some()));
    let is_cut = world.is_cut(loser);
    world.pass(millis(6000));
    world.until("all run again", |world| (0..3).all(|at| world.seats[at].member.is_some()));
    // The checkers know what was committed.
    world.heal();
    is_cut
}

/// Who has lost its end asks the leader to which it acknowledged it, so that one has it, or has not committed it.
#[test]
fn a_leader_commits_what_it_holds_itself() {
    let cut = (0..8).filter(|seed| a_leader_hangs_and_an_end_is_lost(*seed)).count();
    assert!(cut > 4, "{cut} of 8 have lost the end of their log");
}

/// Plants a defect, with which a history must come to two entries at one place in some seed.
fn finds(defect: &'static str, history: impl Fn(u64) -> bool) {
    plant(Some(defect));
    let found = shrink::caught(|| (0..8).filter(|seed| history(*seed)).count());
    plant(None);
    assert!(found.is_err_and(|(reason, _)| reason.contains("one entry at index")), "{defect} is not found");
}

#[test]
fn a_leader_that_commits_what_it_does_not_hold_is_found() {
    finds("a leader that commits what it does not hold", a_leader_hangs_and_an_end_is_lost);
}

/// One of three is away for long. Another one loses power while it writes, and when it is back the third elects with
/// it: who was away has counted on neither.
#[test]
fn who_has_been_away_for_long_is_not_waited_for() {
    let mut torn = 0;
    for seed in 0..30 {
        let mut world = calm(4_000_000 + seed, 3);
        let away = world.follower();
        world.lose(away, true, Duration::from_secs(600));
        let leader = world.led();
        // It is noted durably that nobody hears of that one.
        for number in 0..6 {
            world.pass(2 * TIMEOUT + millis(300));
            world.put(leader, &format!("kept{number}"), "whole");
        }
        let at = if seed % 2 == 0 { leader } else { 3 - leader - away };
        world.hang(at, Duration::from_secs(60));
        world.propose(leader, Request::Put(put("torn", vec![b't'; 9000])));
        world.pass(millis(20));
        world.lose(at, true, millis(20));
        world.until("it runs again", |world| world.seats[at].member.is_some());
        torn += u32::from(world.is_cut(at));
        world.pass(3 * TIMEOUT);
        let new = world.leader().expect("the two elect one of them");
        assert_eq!(world.read(new, 1, "kept5").1, Some("whole".into()));
        world.until("it has caught up", |world| !world.is_cut(at));
        world.heal();
    }
    assert!(torn > 4, "{torn} of 30 were cut");
}

/// Two of three hold much, and one of them loses its log. The other one sends it again, and loses power in the middle
/// of that. Returns whether it was the middle.
fn a_leader_ends_while_it_sends_again(seed: u64) -> bool {
    let mut world = calm(7_000_000 + seed, 3);
    let leader = world.led();
    let (loser, ignorant) = ((leader + 1) % 3, (leader + 2) % 3);
    world.outrun(leader);
    world.agree();
    // It says that it follows the leader, and hears of nothing new.
    world.hold((leader, ignorant), true, true);
    let value = Bytes::from(vec![b'm'; 100_000]);
    for id in world.burst(leader, 60, &value) {
        world.answer(id).expect("it is not refused");
    }
    world.lose(loser, true, millis(10));
    let log = &world.seats[loser].disks.log;
    for path in log.paths().into_iter().filter(|path| path.starts_with(Path::new(LOG))) {
        log.replace(&path, None);
    }
    world.until("it runs again", |world| world.seats[loser].member.is_some());
    let before = world.member(loser).applied();
    world.until("a part has arrived", |world| world.member(loser).applied() > before);
    let is_middle = world.member(loser).applied() + 10 < world.truth.applied();
    world.lose(leader, true, Duration::from_secs(6));
    world.join(ignorant);
    world.pass(Duration::from_secs(5));
    world.until("it is back", |world| world.seats[leader].member.is_some());
    world.heal();
    is_middle
}

#[test]
fn a_member_that_has_a_part_of_what_it_lost_does_not_vote() {
    let middle = (0..8).filter(|seed| a_leader_ends_while_it_sends_again(*seed)).count();
    assert!(middle > 4, "{middle} of 8 ended in the middle");
}

#[test]
fn a_cut_that_is_made_up_for_too_early_is_found() {
    finds("a cut that is made up for too early", a_leader_ends_while_it_sends_again);
}

/// A leader that was cut off writes something of its own, which the next one's entries then replace in its log. It
/// loses these, so its own are there again, and the other one believes that it has everything. Returns whether its log
/// was cut.
fn what_has_replaced_others_is_lost(seed: u64) -> bool {
    let mut world = calm(8_000_000 + seed, 3);
    let at = world.led();
    world.put(at, "register", "first");
    world.agree();
    world.cut_off(at);
    world.propose(at, Request::Put(put("register", "never")));
    world.pass(HEARTBEAT);
    world.until("another one leads", |world| world.leader().is_some_and(|leader| leader != at));
    let leader = world.led();
    world.put(leader, "register", "second");
    world.join(at);
    world.agree();
    world.lose_tail(at, millis(10));
    world.until("it runs again", |world| world.seats[at].member.is_some());
    let is_cut = world.is_cut(at);
    world.pass(4 * TIMEOUT);
    world.heal();
    is_cut
}

#[test]
fn a_member_that_has_again_what_was_replaced_does_not_take_it_for_its_leaders() {
    let cut = (0..8).filter(|seed| what_has_replaced_others_is_lost(*seed)).count();
    assert!(cut > 4, "{cut} of 8 have lost the end of their log");
}

#[test]
fn a_leader_that_counts_on_what_was_lost_is_found() {
    finds("a leader that counts on what was lost", what_has_replaced_others_is_lost);
}

/// The log of a member is damaged before its end, or gone. It starts with what others send it.
#[test]
fn a_member_whose_log_is_damaged_or_gone_is_repaired_by_the_others() {
    for seed in 0..6 {
        let mut world = calm(3_000_000 + seed, 3);
        // Who has not written a checkpoint yet does not know that it had a log.
        let leader = world.led();
        world.outrun(leader);
        world.agree();
        let at = if seed % 2 == 0 { world.led() } else { world.follower() };
        world.lose(at, true, Duration::from_millis(100));
        let log = &world.seats[at].disks.log;
        let segments: Vec<_> = log.paths().into_iter().filter(|path| path.starts_with(Path::new(LOG))).collect();
        for path in &segments {
            match seed % 3 {
                0 => log.damage(path, 4096, |sector| sector[20] ^= 1),
                1 => log.replace(path, None),
                _ => log.damage(path, 0, |sector| sector[40] ^= 1),
            }
        }
        world.until("it runs again", |world| world.seats[at].member.is_some());
        assert!(world.is_cut(at), "seed {seed}: it has lost its log");
        let leader = world.led();
        world.put(leader, "more", "later");
        world.until("it has caught up", |world| !world.is_cut(at));
        world.agree();
        world.heal();
    }
}
