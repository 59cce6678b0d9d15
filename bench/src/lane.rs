//! A connection's share of the load: its clients, what they wait for, and what is made of the answers.
//!
//! - `in_flight` is the number of requests sent here and not ended. A request ends once, well (a latency) or not (an
//!   error).
//! - In a closed loop a client is either in `idle`, or it has a request in flight or a listing in `resumable`.
//! - A keepalive stream answers in the order it was asked: `pending` of its call is in that order.
//!
//! It sends nothing: the loop that owns the lane asks the source for what is due and opens the calls.

use std::collections::VecDeque;

use proto::wire::{Value, fields};

use crate::{
    error::Error,
    http2::{End, Sink},
    reply,
    report::{Tally, error_kind},
    workload::STAMP_BYTES,
};

/// What the generator remembers of a call.
pub(crate) struct Call {
    pub(crate) intended_ns: u64,
    pub(crate) sent_ns: u64,
    /// The client that waits for it, counted within the lane.
    pub(crate) client: u32,
    pub(crate) step: Step,
}

/// What the call is for.
pub(crate) enum Step {
    /// One request, one reply that only has to arrive. A watched put succeeds in `watchers` events.
    Single {
        class: u8,
        watchers: u64,
    },
    Page(Box<Listing>),
    Grant,
    /// A keepalive with a stream of its own; the TTL answered.
    KeepAliveOnce {
        ttl_s: u64,
    },
    KeepAlives {
        pending: VecDeque<Pending>,
    },
    Watch,
}

/// A listing under way.
pub(crate) struct Listing {
    pub(crate) intended_ns: u64,
    pub(crate) client: u32,
    pub(crate) from: Vec<u8>,
    pub(crate) revision: i64,
    has_more: bool,
    failure: Option<Error>,
}

impl Listing {
    pub(crate) fn new(from: Vec<u8>, intended_ns: u64, client: u32) -> Listing {
        Listing { intended_ns, client, from, revision: 0, has_more: false, failure: None }
    }

    /// Takes a page in and moves behind its last key; answers how many keys it had.
    fn turn_page(&mut self, message: &[u8]) -> u64 {
        match reply::page(message) {
            Ok(page) => {
                if self.revision == 0 {
                    self.revision = page.revision;
                }
                self.has_more = page.has_more && page.keys > 0;
                self.from.clear();
                self.from.extend_from_slice(page.key_last);
                self.from.push(0);
                page.keys
            }
            Err(error) => {
                self.failure = Some(error);
                0
            }
        }
    }
}

/// A keepalive sent and not answered.
#[derive(Clone, Copy)]
pub(crate) struct Pending {
    pub(crate) intended_ns: u64,
    pub(crate) sent_ns: u64,
    pub(crate) client: u32,
}

/// A client's lease, and the stream it is kept alive on while there is one.
#[derive(Clone, Copy, Default)]
pub(crate) struct LeaseSlot {
    pub(crate) lease: i64,
    pub(crate) stream: Option<u32>,
}

/// See the head of the file.
pub(crate) struct Lane {
    /// Among the connections of all threads.
    pub(crate) position: u64,
    /// Requests taken from an open loop's timetable.
    pub(crate) taken: u64,
    pub(crate) in_flight: usize,
    pub(crate) idle: Vec<u32>,
    pub(crate) resumable: Vec<Listing>,
    pub(crate) leases: Vec<LeaseSlot>,
    pub(crate) lease_next: usize,
    /// Down for too long: no more attempts.
    pub(crate) is_given_up: bool,
}

impl Lane {
    pub(crate) fn new(position: u64, clients: u32) -> Lane {
        Lane {
            position,
            taken: 0,
            in_flight: 0,
            idle: (0..clients).rev().collect(),
            resumable: Vec::new(),
            leases: Vec::new(),
            lease_next: 0,
            is_given_up: false,
        }
    }
}

/// What must be answered before the run may start.
#[derive(Default)]
pub(crate) struct Preparation {
    pub(crate) missing: u64,
    pub(crate) failure: Option<String>,
}

/// Events promised by acknowledged puts, and events that came.
#[derive(Default)]
pub(crate) struct Fanout {
    pub(crate) expected: u64,
    pub(crate) delivered: u64,
    /// Stamps before it are of no put of this run.
    pub(crate) start_ns: u64,
}

/// Takes what arrives on one lane.
pub(crate) struct Intake<'a> {
    pub(crate) lane: &'a mut Lane,
    pub(crate) tally: &'a mut Tally,
    pub(crate) preparation: &'a mut Preparation,
    pub(crate) fanout: &'a mut Fanout,
    pub(crate) last_end_ns: &'a mut u64,
    pub(crate) now_ns: u64,
    pub(crate) is_closed_loop: bool,
}

impl Intake<'_> {
    /// Ends a request: `failure` names what went wrong.
    fn end_request(&mut self, class: u8, since_ns: u64, client: u32, failure: Option<&str>) {
        self.end_step(class, since_ns, failure);
        self.free(client);
    }

    fn end_step(&mut self, class: u8, since_ns: u64, failure: Option<&str>) {
        assert!(self.lane.in_flight > 0);
        self.lane.in_flight -= 1;
        self.tally.ended += 1;
        *self.last_end_ns = self.now_ns;
        match failure {
            None => self.tally.latencies[usize::from(class)].record(self.now_ns.saturating_sub(since_ns)),
            Some(kind) => self.tally.error(kind, 1),
        }
    }

    fn free(&mut self, client: u32) {
        if self.is_closed_loop {
            self.lane.idle.push(client);
        }
    }

    fn end_page(&mut self, mut listing: Listing, sent_ns: u64, failure: Option<&str>) {
        let malformed = listing.failure.take().map(|error| error.to_string());
        let failure = failure.or(malformed.as_deref());
        self.end_step(0, sent_ns, failure);
        if failure.is_none() && listing.has_more {
            self.lane.resumable.push(listing);
            return;
        }
        if failure.is_none() {
            self.tally.latencies[1].record(self.now_ns.saturating_sub(listing.intended_ns));
        }
        self.free(listing.client);
    }

    fn end_keep_alives(&mut self, client: u32, pending: VecDeque<Pending>, kind: &str) {
        for one in pending {
            self.end_request(0, one.intended_ns, one.client, Some(kind));
        }
        let slot = usize::try_from(client).expect("a client count fits");
        self.lane.leases[slot].stream = None;
    }

    fn prepared(&mut self, failure: Option<&str>) {
        match failure {
            None => {
                self.preparation.missing =
                    self.preparation.missing.checked_sub(1).expect("only what is missing is answered");
            }
            Some(kind) => self.preparation.failure = Some(kind.to_owned()),
        }
    }

    fn kept_alive(&mut self, one: Pending, message: &[u8]) {
        let failure = match reply::varint_field(message, 3) {
            Ok(0) => Some(LEASE_GONE.to_owned()),
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        };
        self.end_request(0, one.intended_ns, one.client, failure.as_deref());
    }

    /// Reads a WatchResponse: a watcher's creation or cancellation, or events.
    fn watched(&mut self, message: &[u8]) -> Result<(), Error> {
        let mut is_created = false;
        let mut is_canceled = false;
        let mut reason: &[u8] = &[];
        for field in fields(message) {
            match field? {
                (3, Value::Varint(flag)) => is_created = flag != 0,
                (4, Value::Varint(flag)) => is_canceled = flag != 0,
                (6, Value::Delimited(text)) => reason = text,
                (11, Value::Delimited(event)) => self.event(event)?,
                _ => {}
            }
        }
        if is_canceled {
            let kind = format!("watch canceled: {}", reason.escape_ascii());
            if self.preparation.missing > 0 {
                self.prepared(Some(&kind));
            } else {
                self.tally.error(&kind, 1);
            }
        } else if is_created {
            self.prepared(None);
        }
        Ok(())
    }

    fn event(&mut self, event: &[u8]) -> Result<(), Error> {
        let value = reply::bytes_field(reply::bytes_field(event, 2)?, 5)?;
        let stamp_ns = value.first_chunk::<STAMP_BYTES>().map_or(0, |stamp| u64::from_be_bytes(*stamp));
        if (self.fanout.start_ns..=self.now_ns).contains(&stamp_ns) && self.fanout.start_ns > 0 {
            self.fanout.delivered += 1;
            self.tally.items += 1;
            *self.last_end_ns = self.now_ns;
            self.tally.latencies[1].record(self.now_ns - stamp_ns);
        } else {
            self.tally.error("event of a put that is not ours", 1);
        }
        Ok(())
    }
}

const LEASE_GONE: &str = "NotFound: keepalive answered with TTL 0: the lease is gone";

impl Sink<Call> for Intake<'_> {
    fn message(&mut self, call: &mut Call, message: &[u8]) {
        match &mut call.step {
            Step::Single { .. } => {}
            Step::Page(listing) => self.tally.items += listing.turn_page(message),
            Step::Grant => match reply::varint_field(message, 2) {
                Ok(lease) => {
                    let slot = usize::try_from(call.client).expect("a client count fits");
                    self.lane.leases[slot].lease = lease.cast_signed();
                }
                Err(error) => self.prepared(Some(&error.to_string())),
            },
            Step::KeepAliveOnce { ttl_s } => *ttl_s = reply::varint_field(message, 3).unwrap_or(0),
            Step::KeepAlives { pending } => match pending.pop_front() {
                Some(one) => self.kept_alive(one, message),
                None => self.tally.error("keepalive answered twice", 1),
            },
            Step::Watch => {
                if let Err(error) = self.watched(message) {
                    self.tally.error(&error.to_string(), 1);
                }
            }
        }
    }

    fn closed(&mut self, call: Call, end: End) {
        let failed = (end != End::Ok).then(|| error_kind(&end));
        let failure = failed.as_deref();
        match call.step {
            Step::Single { class, watchers } => {
                if failure.is_none() {
                    self.fanout.expected += watchers;
                }
                self.end_request(class, call.intended_ns, call.client, failure);
            }
            Step::Page(listing) => self.end_page(*listing, call.sent_ns, failure),
            Step::Grant => self.prepared(failure),
            Step::KeepAliveOnce { ttl_s } => {
                let failure = if ttl_s == 0 { failure.or(Some(LEASE_GONE)) } else { failure };
                self.end_request(0, call.intended_ns, call.client, failure);
            }
            Step::KeepAlives { pending } => self.end_keep_alives(call.client, pending, &error_kind(&end)),
            Step::Watch if self.preparation.missing > 0 => self.prepared(Some(&error_kind(&end))),
            Step::Watch => self.tally.error(&format!("watch stream ended: {}", error_kind(&end)), 1),
        }
    }
}
