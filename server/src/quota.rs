//! Runs on: every core (costs), raft core (`Asking`), apply core (checks of entries, the `Keeper`).
//!
//! Quota and alarms: the cost of a request, the state of a full store, the requests that an active alarm refuses, and
//! this member's own NOSPACE alarm.
//!
//! Data counts against the quota, not files: everything that is reachable, history included, and the records that no
//! checkpoint has written. Dead bytes in segment files do not count, because they go away by themselves. **Source** of
//! costs, checks and their order: etcd v3.7.1 `storage/quota.go`, `etcdserver/api/v3rpc/quota.go`,
//! `etcdserver/apply/{capped,corrupt,uber_applier}.go`.
//!
//! Invariants:
//! - The alarms alone decide which entry is refused, and entries alone change the alarms. Sizes differ between members.
//!   They only decide what a member proposes, and what it refuses before it is proposed.
//! - A member disarms only its own NOSPACE alarm, only if its quota raised it (`RaisedBy::Quota`), and only below
//!   `disarm_below`. That is well under the quota, so that the alarm does not flap. Who raised it is durable, because
//!   it is in the entry: the header of an entry that a quota proposes names `QUOTA_USER`. At this place etcd has the
//!   user of an authenticated client, and does not read it for an alarm. If a client raises an alarm that a quota has
//!   raised, the alarm becomes the client's. So an operator can keep it up.
//!
//! One thing differs from etcd. A put may be let in and then find the quota exceeded. It is applied and answered as a
//! success, and the alarm is raised all the same.

use std::time::Duration;

use proto::{
    etcdserverpb as pb,
    etcdserverpb::{alarm_request::AlarmAction, request_op},
    internal::{Request, RequestHeader},
};

use crate::{
    error::Error,
    shared::{Alarm, Alarms, Quota, RaisedBy},
};

/// The user in the header of an entry that a quota proposes.
const QUOTA_USER: &str = "orlop-quota";

/// Who proposed the entry with this header.
pub fn raised_by(header: &RequestHeader) -> RaisedBy {
    if header.username == QUOTA_USER { RaisedBy::Quota } else { RaisedBy::Hand }
}

/// The header of entry `id`, proposed for `purpose`.
pub fn header(id: u64, purpose: Purpose) -> RequestHeader {
    let username = if purpose == Purpose::Alarm { QUOTA_USER.to_owned() } else { String::new() };
    RequestHeader { id, username, ..Default::default() }
}

/// Alarms at most. etcd's clients know two types of alarm for each member.
pub const ALARMS_MAX: usize = 1 << 14;
/// etcd's estimate of what a key takes beside its bytes. **Units** bytes.
const KEY_OVERHEAD: u64 = 256;
/// etcd's estimate of a lease. **Units** bytes.
const LEASE_OVERHEAD: u64 = 64;

/// A quota above this is accepted with a warning: it is four times what was measured. **Units** bytes.
pub const SENSIBLE_BYTES_MAX: i64 = 128 << 30;

/// Sizes above which the way back to etcd has a hurdle, and what that is. **Units** bytes. **Source** etcd v3.7.1
/// `server/storage/quota.go`: its default quota, and the size that it suggests at most.
const WAY_BACK: [(u64, &str); 2] = [
    (2 << 30, "the data exceeds etcd's default quota: etcd takes its backup only with --quota-backend-bytes"),
    (8 << 30, "the data exceeds the size that etcd suggests at most: the way back to etcd ends here"),
];

/// Knows when the data passes a size of [`WAY_BACK`]. Such a size counts as passed until the data is a tenth below it,
/// so that data at its edge is not told of again and again.
#[derive(Debug, Default)]
pub struct WayBack {
    has_passed: [bool; WAY_BACK.len()],
}

impl WayBack {
    /// Takes in that there are `used` bytes. Returns the sizes that were passed just now, with their hurdles.
    pub fn passed(&mut self, used: u64) -> impl Iterator<Item = (u64, &'static str)> {
        WAY_BACK.into_iter().zip(&mut self.has_passed).filter_map(move |((size, hurdle), has_passed)| {
            let had_passed = *has_passed;
            *has_passed = if had_passed { used > size - size / 10 } else { used > size };
            (*has_passed && !had_passed).then_some((size, hurdle))
        })
    }
}

/// The cost of a Put.
pub fn put_cost(request: &pb::PutRequest) -> u64 {
    KEY_OVERHEAD + request.key.len() as u64 + request.value.len() as u64
}

/// The cost of a Txn: that of the dearer of its branches.
pub fn txn_cost(request: &pb::TxnRequest) -> u64 {
    let branch = |ops: &[pb::RequestOp]| ops.iter().map(op_cost).sum::<u64>();
    branch(&request.success).max(branch(&request.failure))
}

fn op_cost(op: &pb::RequestOp) -> u64 {
    match &op.request {
        Some(request_op::Request::RequestPut(put)) => put_cost(put),
        Some(request_op::Request::RequestTxn(txn)) => txn_cost(txn),
        _ => 0,
    }
}

/// The cost of a LeaseGrant.
pub const fn lease_cost() -> u64 {
    LEASE_OVERHEAD
}

/// What an entry's request costs.
pub fn cost(request: &Request) -> u64 {
    match request {
        Request::Put(put) => put_cost(put),
        Request::Txn(txn) => txn_cost(txn),
        Request::LeaseGrant(_) => LEASE_OVERHEAD,
        _ => 0,
    }
}

/// Whether any member has this alarm.
pub fn is_active(alarms: &Alarms, alarm: Alarm) -> bool {
    alarms.keys().any(|(_, active)| *active == alarm as i32)
}

/// Checks an entry against the active alarms, in etcd's order.
///
/// **Errors** CORRUPT refuses everything that reads or changes keys and leases; NOSPACE refuses what adds to them.
pub fn check(alarms: &Alarms, request: &Request) -> Result<(), Error> {
    if alarms.is_empty() {
        return Ok(());
    }
    let is_of_store = matches!(
        request,
        Request::Range(_)
            | Request::Put(_)
            | Request::DeleteRange(_)
            | Request::Txn(_)
            | Request::Compaction(_)
            | Request::LeaseGrant(_)
            | Request::LeaseRevoke(_)
    );
    if is_of_store && is_active(alarms, Alarm::Corrupt) {
        return Err(Error::Corrupt);
    }
    if is_active(alarms, Alarm::Nospace) && cost(request) > 0 {
        return Err(Error::NoSpace);
    }
    Ok(())
}

/// The purpose of a proposal. It decides when the log's own space is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It adds data, and is refused first.
    Grow,
    /// It removes data, or changes little.
    Other,
    /// It comes from this member's quota, and raises or disarms its alarm.
    Alarm,
}

impl Purpose {
    /// The purpose of a request of this cost.
    pub const fn of_cost(cost: u64) -> Self {
        if cost > 0 { Self::Grow } else { Self::Other }
    }
}

/// The request that raises or disarms a member's NOSPACE alarm.
pub fn own_alarm(member_id: u64, action: AlarmAction) -> pb::AlarmRequest {
    pb::AlarmRequest { action: action as i32, member_id, alarm: Alarm::Nospace as i32 }
}

/// Limits how often this member's NOSPACE alarm is proposed.
#[derive(Debug, Default)]
pub struct Asking {
    /// When the last proposal was made that may still be under way.
    asked: Option<Duration>,
}

impl Asking {
    /// Whether a proposal may be made now. It then counts as made.
    pub fn ask(&mut self, now: Duration) -> bool {
        if self.asked.is_some_and(|at| now.saturating_sub(at) < ASK_AGAIN) {
            return false;
        }
        self.asked = Some(now);
        true
    }

    /// Notes that an entry about an alarm has come.
    pub fn heard(&mut self) {
        self.asked = None;
    }
}

/// This member's own NOSPACE alarm. It decides when the alarm is raised and disarmed.
#[derive(Debug)]
pub struct Keeper {
    quota: Quota,
    member_id: u64,
    /// The bytes that count, without the records that no checkpoint has written. **Units** bytes.
    settled_bytes: u64,
    asking: Asking,
    /// An entry found the quota exceeded.
    is_exceeded: bool,
    /// The sweep has dropped versions since the last checkpoint began. Only a checkpoint gives their bytes back.
    has_swept: bool,
}

/// Time after which a proposal of the keeper is made again if nothing was heard of it.
const ASK_AGAIN: Duration = Duration::from_secs(5);

impl Keeper {
    /// A keeper of `member_id`'s alarm.
    pub fn new(quota: Quota, member_id: u64) -> Self {
        Self { quota, member_id, settled_bytes: 0, asking: Asking::default(), is_exceeded: false, has_swept: false }
    }

    /// Takes in that the store holds `in_use` bytes, `recent` of them in records that no checkpoint has written.
    pub fn settle(&mut self, in_use: u64, recent: u64) {
        self.settled_bytes = in_use.saturating_sub(recent);
    }

    /// The bytes that count against the quota. **Units** bytes.
    pub fn used(&self, recent: u64) -> u64 {
        self.settled_bytes + recent
    }

    fn alarm<'a>(&self, alarms: &'a Alarms) -> Option<&'a RaisedBy> {
        alarms.get(&(self.member_id, Alarm::Nospace as i32))
    }

    /// Whether apply may propose something about the alarm now. It then counts as proposed.
    pub fn ask(&mut self, now: Duration) -> bool {
        self.asking.ask(now)
    }

    /// Takes in that `request` is about to be applied, beside `recent` bytes. `is_new` is false if an earlier run has
    /// applied it before.
    pub fn observe(&mut self, request: &Request, recent: u64, alarms: &Alarms, is_new: bool) {
        match request {
            Request::Alarm(_) => self.asking.heard(),
            _ => {
                let is_over = is_new && !self.quota.has_room(self.used(recent), cost(request));
                self.is_exceeded |= is_over && self.alarm(alarms).is_none();
            }
        }
    }

    /// Takes in that a step of the sweep has dropped `dropped` versions.
    pub fn swept(&mut self, dropped: u64) {
        self.has_swept |= dropped > 0;
    }

    /// Whether space is short, and a checkpoint is due because only it gives back what the sweep has dropped.
    pub fn wants_checkpoint(&self, recent: u64, alarms: &Alarms) -> bool {
        let is_tight = |quota: u64| self.used(recent) >= quota - quota / 10;
        self.has_swept && (self.quota.bytes.is_some_and(is_tight) || self.alarm(alarms).is_some())
    }

    /// Takes in that a checkpoint begins.
    pub fn checkpoint_begun(&mut self) {
        self.has_swept = false;
    }

    /// The action on the alarm that is due now, if there is one.
    pub fn due(&mut self, recent: u64, alarms: &Alarms) -> Option<AlarmAction> {
        let is_exceeded = std::mem::take(&mut self.is_exceeded);
        match self.alarm(alarms) {
            None => is_exceeded.then_some(AlarmAction::Activate),
            Some(RaisedBy::Quota) if self.quota.bytes.is_none() && self.quota.disarm_below > 0 => {
                Some(AlarmAction::Deactivate)
            }
            Some(RaisedBy::Quota) => (self.used(recent) < self.quota.disarm_below).then_some(AlarmAction::Deactivate),
            Some(RaisedBy::Hand) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: u64 = 7;
    const NOSPACE: (u64, i32) = (MEMBER, Alarm::Nospace as i32);
    const SECOND: Duration = Duration::from_secs(1);

    fn put_op(bytes: usize) -> pb::RequestOp {
        let put = pb::PutRequest { key: "k".into(), value: vec![0; bytes].into(), ..Default::default() };
        pb::RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    }

    fn put(bytes: usize) -> Request {
        let Some(request_op::Request::RequestPut(put)) = put_op(bytes).request else { unreachable!() };
        Request::Put(put)
    }

    fn alarm(action: AlarmAction) -> pb::AlarmRequest {
        pb::AlarmRequest { action: action as i32, member_id: MEMBER, alarm: Alarm::Nospace as i32 }
    }

    #[test]
    fn a_txn_costs_what_its_dearer_branch_puts() {
        let nested = pb::TxnRequest { success: vec![put_op(10), put_op(20)], ..Default::default() };
        let nested = pb::RequestOp { request: Some(request_op::Request::RequestTxn(nested)) };
        let delete = pb::RequestOp { request: Some(request_op::Request::RequestDeleteRange(Default::default())) };
        let txn = pb::TxnRequest { success: vec![put_op(100), delete.clone()], failure: vec![nested], compare: vec![] };
        assert_eq!(txn_cost(&txn), 2 * 257 + 30);
        assert_eq!(txn_cost(&pb::TxnRequest { success: vec![delete], ..Default::default() }), 0);
    }

    #[test]
    fn the_way_back_to_etcd_is_told_of_once_for_each_crossing() {
        const GIB: u64 = 1 << 30;
        let mut way_back = WayBack::default();
        let rows: [(u64, &[u64]); 9] = [
            (2 * GIB, &[]),
            (2 * GIB + 1, &[2]),
            (9 * GIB, &[8]),
            // At its edge.
            (8 * GIB, &[]),
            (9 * GIB, &[]),
            // Well below, and again.
            (7 * GIB, &[]),
            (9 * GIB, &[8]),
            (0, &[]),
            // As at the start of a member that has so much.
            (9 * GIB, &[2, 8]),
        ];
        for (used, expected) in rows {
            let passed: Vec<u64> = way_back.passed(used).map(|(size, _)| size / GIB).collect();
            assert_eq!(passed, expected, "{used}");
        }
    }

    #[test]
    fn alarms_refuse_what_etcd_refuses() {
        let delete = Request::DeleteRange(Default::default());
        let [full, corrupt] =
            [Alarm::Nospace, Alarm::Corrupt].map(|alarm| Alarms::from([((9, alarm as i32), RaisedBy::Hand)]));
        let both: Alarms = full.iter().chain(&corrupt).map(|(alarm, raised_by)| (*alarm, *raised_by)).collect();
        let unknown = Alarms::from([((9, 77), RaisedBy::Hand)]);
        assert_eq!(check(&full, &put(1)), Err(Error::NoSpace));
        assert_eq!(check(&full, &Request::LeaseGrant(Default::default())), Err(Error::NoSpace));
        assert_eq!(check(&full, &Request::Txn(Default::default())), Ok(()));
        assert_eq!(check(&full, &delete), Ok(()));
        assert_eq!(check(&full, &Request::Compaction(Default::default())), Ok(()));
        assert_eq!(check(&both, &put(1)), Err(Error::Corrupt));
        assert_eq!(check(&corrupt, &delete), Err(Error::Corrupt));
        assert_eq!(check(&corrupt, &Request::LeaseRevoke(Default::default())), Err(Error::Corrupt));
        assert_eq!(check(&corrupt, &Request::Alarm(alarm(AlarmAction::Deactivate))), Ok(()));
        assert_eq!(check(&unknown, &put(1)), Ok(()));
    }

    /// A keeper of a quota of 1000, and an alarm, raised by `raised_by`.
    fn raised(disarm_percent: u64, raised_by: RaisedBy) -> (Keeper, Alarms) {
        (Keeper::new(Quota::new(1000, disarm_percent), MEMBER), Alarms::from([(NOSPACE, raised_by)]))
    }

    #[test]
    fn an_entry_that_finds_the_quota_exceeded_raises_the_alarm_once() {
        let (mut keeper, alarms) = raised(90, RaisedBy::Hand);
        keeper.settle(800, 100);
        keeper.observe(&put(1), 41, &Alarms::new(), true);
        assert_eq!(keeper.due(41, &Alarms::new()), None, "the quota is not reached");
        keeper.observe(&put(1), 43, &Alarms::new(), false);
        assert_eq!(keeper.due(43, &Alarms::new()), None, "what is applied again raises nothing");
        keeper.observe(&put(1), 43, &Alarms::new(), true);
        assert_eq!(keeper.due(43, &Alarms::new()), Some(AlarmAction::Activate));
        assert_eq!(keeper.due(43, &Alarms::new()), None);
        keeper.observe(&put(1), 43, &alarms, true);
        assert_eq!(keeper.due(43, &alarms), None, "it is raised");
        assert!(keeper.ask(SECOND) && !keeper.ask(2 * SECOND) && keeper.ask(7 * SECOND));
        keeper.observe(&Request::Alarm(alarm(AlarmAction::Activate)), 43, &alarms, true);
        assert!(keeper.ask(8 * SECOND), "what was asked for has come");
    }

    #[test]
    fn only_the_quotas_own_alarm_is_taken_back_and_well_below_the_quota() {
        let (mut keeper, alarms) = raised(90, RaisedBy::Quota);
        keeper.settle(950, 0);
        assert_eq!(keeper.due(0, &alarms), None, "below the quota, but not by much");
        keeper.settle(899, 0);
        assert_eq!(keeper.due(1, &alarms), None);
        assert_eq!(keeper.due(0, &alarms), Some(AlarmAction::Deactivate));
        let (_, by_hand) = raised(90, RaisedBy::Hand);
        assert_eq!(keeper.due(0, &by_hand), None);
        let (mut sticky, alarms) = raised(0, RaisedBy::Quota);
        assert_eq!(sticky.due(0, &alarms), None, "0 percent is etcd's way");
        let mut unbounded = Keeper::new(Quota::new(u64::MAX, 90), MEMBER);
        assert_eq!(unbounded.due(1 << 60, &alarms), Some(AlarmAction::Deactivate), "there is no quota any more");
    }

    #[test]
    fn swept_data_is_checkpointed_when_space_is_short() {
        let (mut keeper, alarms) = raised(90, RaisedBy::Hand);
        assert!(!keeper.wants_checkpoint(950, &alarms), "there is nothing to gain");
        keeper.swept(3);
        assert!(keeper.wants_checkpoint(950, &Alarms::new()));
        assert!(keeper.wants_checkpoint(0, &alarms));
        assert!(!keeper.wants_checkpoint(0, &Alarms::new()), "there is enough");
        keeper.checkpoint_begun();
        assert!(!keeper.wants_checkpoint(950, &alarms));
    }

    #[test]
    fn an_entry_tells_whether_a_quota_proposed_it() {
        assert_eq!(raised_by(&header(1, Purpose::Alarm)), RaisedBy::Quota);
        assert_eq!(raised_by(&header(1, Purpose::Other)), RaisedBy::Hand);
    }
}
