//! Runs on: connection core.
//!
//! The way to the leader, for what it alone can answer. Who leads may change while it is asked, and the one that is
//! asked may not know yet that it leads. So whoever goes this way tries again, until its request has taken as long as a
//! proposal may.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/v3_server.go`: `waitLeader`, `LeaseRenew`, `leaseTimeToLive`.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    desk::Desk,
    due::passed,
    others::{Answered, Asking},
};
use crate::error::Error;

/// Pause between two tries.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// With an election timeout, how long a member that is there may need for an answer; etcd bounds its dials so.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// Who leads.
#[derive(Debug, PartialEq, Eq)]
pub enum Leader {
    /// This member.
    Own,
    /// Another one, which is reached at these peer URLs.
    Other(Vec<String>),
}

/// See the head of this file.
pub struct Way<'a> {
    desk: &'a Desk,
    began: Duration,
}

impl<'a> Way<'a> {
    /// The way of a request that begins now.
    pub fn new(desk: &'a Desk) -> Self {
        Self { desk, began: desk.clock.now() }
    }

    /// Who leads. Waits for an election.
    ///
    /// **Errors** nobody leads as long as this request may take; nobody knows where the leader is; this member stops.
    pub async fn leader(&self) -> Result<Leader, Error> {
        loop {
            let shared = &self.desk.shared;
            let leader = shared.raft.leader.load(Ordering::Acquire);
            if leader == shared.identity.member_id {
                return Ok(Leader::Own);
            }
            let cluster = shared.cluster.load();
            if let Some(member) = cluster.members.iter().find(|member| member.id == leader) {
                return match &member.peer_urls[..] {
                    [] => Err(Error::NoLeader),
                    urls => Ok(Leader::Other(urls.to_vec())),
                };
            }
            drop(cluster);
            if shared.is_stopping.load(Ordering::Acquire) {
                return Err(Error::Stopped);
            }
            self.again().await.map_err(|_over| Error::NoLeader)?;
        }
    }

    /// Asks the member at `url`, as long as this request may take; what may be asked twice, not longer than a member
    /// that is there needs. `None` if no answer comes.
    pub async fn ask(&self, url: &str, asking: &Asking) -> Option<Answered> {
        let until = if asking.is_repeatable {
            self.until().min(self.desk.clock.now() + ANSWERS_WITHIN + self.desk.shared.limits.election_timeout)
        } else {
            self.until()
        };
        let answer = tokio::select! {
            biased;
            answer = self.desk.others.ask(url, asking) => answer,
            () = passed(self.desk, until) => return None,
        };
        answer.inspect_err(|error| tracing::debug!(error, path = asking.path, "the leader does not answer")).ok()
    }

    /// Waits a moment before the next try.
    ///
    /// **Errors** this request has taken as long as it may.
    pub async fn again(&self) -> Result<(), Error> {
        let now = self.desk.clock.now();
        if now >= self.until() {
            return Err(Error::Timeout);
        }
        passed(self.desk, now + AGAIN_AFTER).await;
        Ok(())
    }

    fn until(&self) -> Duration {
        self.began + self.desk.shared.limits.request_timeout
    }
}
