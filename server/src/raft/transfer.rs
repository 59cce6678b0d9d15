//! Runs on: raft core.
//!
//! Clients that wait until another member leads, because they have asked for it; and a leader that ends.
//!
//! Invariant: at most [`WAITING_MAX`] wait, and none for longer than the request timeout.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/server.go` `MoveLeader`.

use std::time::Duration;

use crate::{error::Error, slots::ReplyTo};

/// Clients that wait at once.
const WAITING_MAX: usize = 64;

#[derive(Debug)]
struct Transfer {
    reply: ReplyTo,
    target: u64,
    until: Duration,
}

/// A leader that ends: it hands leadership to any voter that takes it.
#[derive(Debug)]
pub struct Leaving {
    /// Who is told how it went.
    pub reply: ReplyTo,
    /// Who was asked to lead, in this order.
    pub tried: Vec<u64>,
    /// Since when nobody leads: the one that was asked has begun an election, or a majority is lost.
    pub leaderless_since: Option<Duration>,
    /// When it is given up.
    pub until: Duration,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Transfers {
    waiting: Vec<Transfer>,
}

impl Transfers {
    /// Makes `reply` wait until `target` leads, but not after `until`.
    ///
    /// **Errors** as many wait as may.
    pub fn push(&mut self, reply: ReplyTo, target: u64, until: Duration) -> Result<(), Error> {
        if self.waiting.len() == WAITING_MAX {
            return Err(Error::TooManyRequests);
        }
        self.waiting.push(Transfer { reply, target, until });
        Ok(())
    }

    /// Takes out those who need not wait any more, now that `leader` leads (0 for none), with what they are told.
    pub fn take_ended(&mut self, leader: u64, now: Duration) -> Vec<(ReplyTo, Result<(), Error>)> {
        let mut ended = Vec::new();
        self.waiting.retain(|transfer| {
            let result = match leader == transfer.target {
                true => Ok(()),
                false if now >= transfer.until => Err(Error::LeaderTransferTimeout),
                false => return true,
            };
            ended.push((transfer.reply, result));
            false
        });
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Slots;

    #[test]
    fn who_asks_for_another_leader_waits_until_it_leads_or_time_is_over() {
        let slots = Slots::<()>::new(1);
        let slot = slots.open(Duration::ZERO).unwrap().id();
        let (reply, second) = (ReplyTo { core: 0, slot }, Duration::from_secs(1));
        let mut transfers = Transfers::default();
        transfers.push(reply, 2, 7 * second).unwrap();
        transfers.push(reply, 3, 9 * second).unwrap();
        let results = |ended: Vec<(ReplyTo, Result<(), Error>)>| ended.into_iter().map(|(_, result)| result).collect();
        let mut ended = |leader, at| -> Vec<_> { results(transfers.take_ended(leader, at * second)) };
        assert_eq!(ended(1, 6), []);
        assert_eq!(ended(0, 7), [Err(Error::LeaderTransferTimeout)]);
        assert_eq!(ended(3, 9), [Ok(())]);
        assert_eq!(ended(3, 9), [], "each is told once");
        for _ in 0..WAITING_MAX {
            transfers.push(reply, 2, second).unwrap();
        }
        assert_eq!(transfers.push(reply, 2, second), Err(Error::TooManyRequests));
    }
}
