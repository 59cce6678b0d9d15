//! The end of a run: no more faults, and all members come to agree, and serve.

use std::{cmp::Reverse, time::Duration};

use super::{
    leases::EXPIRY_MAX,
    member::Member,
    seat::Seat,
    world::{Event, World},
};

/// After the last fault, all members agree and serve within this time.
const RECOVERY: Duration = Duration::from_secs(15);

impl World {
    /// Clients write again. Some of them pause for long, and mostly read.
    fn serves_again(&mut self) {
        let written = self.clients.tally.written;
        let end = self.now + Duration::from_secs(2) + 20 * Duration::from_micros(self.plan.pause_us_max);
        while self.plan.clients > 0 && self.clients.tally.written == written {
            if self.now >= end {
                self.tell_of_all();
                panic!("the cluster serves again");
            }
            self.run(Duration::from_millis(500));
        }
    }

    /// How all members stand, for a person who reads why the run failed.
    fn tell_of_all(&mut self) {
        for at in 0..self.seats.len() {
            let Seat { id: Some(id), member, is_cut, is_off, is_leaving, .. } = &self.seats[at] else { continue };
            let shown = member.as_ref().map_or_else(|| format!("m{id} does not run"), Member::shown_whole);
            let cut = member.as_ref().map(Member::is_cut);
            let text = format!("machine {at}: {shown}, cut {is_cut} {cut:?}, off {is_off}, leaving {is_leaving}");
            self.story.fault(self.now, &text);
        }
    }

    /// No more faults: all members come to agree, and serve.
    pub(crate) fn heal(&mut self) {
        self.story.tell(self.now, || "no more faults".to_owned());
        self.queue.retain(|Reverse((_, _, event))| !matches!(event, Event::Operator { .. }));
        self.unblock_all();
        for at in 0..self.seats.len() {
            self.mend(at);
            let seat = &mut self.seats[at];
            (seat.paused_until, seat.hung_until, seat.slow_until, seat.store_slow_until) = Default::default();
            (seat.loss_in_checkpoint, seat.loss_in_apply) = (None, None);
            seat.kept_until = Duration::ZERO;
            seat.copy = None;
            if seat.member.as_ref().is_some_and(Member::is_damaged) {
                // It tries again only after a while; a person would not wait.
                self.lose(at, false, Duration::ZERO);
            }
            self.plan(Duration::ZERO, Event::Resume { member: at });
            self.plan(Duration::ZERO, Event::Restart { member: at });
        }
        self.undo_hopeless_damage();
        self.run(RECOVERY);
        self.serves_again();
        // Clients fall silent, leases expire, and all is applied everywhere.
        self.clients.waiting.iter_mut().for_each(|waiting| *waiting = None);
        self.leases.let_go();
        self.watchers.hurry();
        self.queue.retain(|Reverse((_, _, event))| !matches!(event, Event::Client { .. } | Event::LeaseClient { .. }));
        self.run(EXPIRY_MAX);
        assert_eq!(self.leases.live(), 0, "leases that nobody renews are revoked");
        self.check_all_members_run();
        let members = || self.seats.iter().filter_map(|seat| seat.member.as_ref());
        let unready: Vec<String> = members().filter(|member| !member.is_ready()).map(Member::shown_whole).collect();
        assert!(unready.is_empty(), "not ready: {unready:?}");
        let applied: Vec<u64> = members().map(Member::applied).collect();
        assert!(applied.iter().all(|applied| *applied == self.truth.applied()), "{applied:?}");
        self.compare();
        self.watchers.check_end(&self.truth);
        self.clients.check_end();
    }
}
