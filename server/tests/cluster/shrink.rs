//! Runs plans. One that fails is made small: the shortest time, the fewest faults and clients with which a run still
//! fails, within a bounded number of runs.

use std::{
    any::Any,
    cell::RefCell,
    fmt,
    panic::{self, AssertUnwindSafe},
    sync::Once,
    time::Duration,
};

use super::{
    plan::Plan,
    world::{Tally, World},
};

/// A run that ended before its time.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What still fails. It ends where the failure came.
    pub(crate) plan: Plan,
    pub(crate) reason: String,
    /// The line that found it. A smaller plan must fail there, too.
    place: String,
    pub(crate) story: String,
}

thread_local! {
    /// Where the last panic of this thread came from, while they are caught.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What `run` returns, or why and where it panics. Nothing is printed.
pub(crate) fn caught<T>(run: impl FnOnce() -> T) -> Result<T, (String, String)> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let default = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let is_caught = PANIC.with_borrow_mut(|place| {
                place.as_mut().map(|place| *place = info.location().map(ToString::to_string).unwrap_or_default())
            });
            if is_caught.is_none() {
                default(info);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let ended = panic::catch_unwind(AssertUnwindSafe(run));
    let place = PANIC.take().unwrap_or_default();
    ended.map_err(|payload| (text_of(payload.as_ref()), place))
}

fn text_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Runs `plan` to its end, and heals the cluster. The story is told if somebody reads it.
pub(crate) fn run(plan: &Plan, is_told: bool) -> Result<Tally, Box<Failure>> {
    let mut world = World::new(plan.clone());
    world.story.is_told = is_told;
    caught(|| world.live()).map_err(|(reason, place)| {
        let mut plan = plan.clone();
        if world.now < plan.time {
            plan.end_at(world.now + Duration::from_millis(1));
        }
        Box::new(Failure { plan, reason, place, story: world.story.to_string() })
    })?;
    Ok(world.tally())
}

/// The search for the smallest plan.
struct Search {
    best: Box<Failure>,
    runs_left: usize,
}

impl Search {
    /// Whether `plan` fails in the same way. It is the best one then.
    fn fails(&mut self, plan: &Plan) -> bool {
        let Some(left) = self.runs_left.checked_sub(1) else { return false };
        self.runs_left = left;
        match run(plan, false) {
            Err(failure) if failure.place == self.best.place => {
                self.best = failure;
                true
            }
            _ => false,
        }
    }

    /// Leaves out faults: half of them at a time, then fewer, in the end one.
    fn leave_out_faults(&mut self) {
        let mut size = self.best.plan.blows.len().div_ceil(2);
        while size > 0 {
            let mut from = 0;
            while from < self.best.plan.blows.len() {
                let mut plan = self.best.plan.clone();
                plan.blows.drain(from..(from + size).min(plan.blows.len()));
                if !self.fails(&plan) {
                    from += size;
                }
            }
            size = if size == 1 { 0 } else { size.div_ceil(2) };
        }
    }

    /// Leaves out all faults but one or two, if there are only a few, even if the run fails later then: within `time`.
    fn keep_two_faults(&mut self, time: Duration) {
        let blows = self.best.plan.blows.clone();
        let count = if blows.len() <= 8 { blows.len() } else { 0 };
        let pairs = (0..count).flat_map(|one| (one..count).map(move |other| (one, other)));
        let (alone, together): (Vec<_>, Vec<_>) = pairs.partition(|(one, other)| one == other);
        for (one, other) in alone.into_iter().chain(together) {
            let mut kept = vec![blows[one]];
            kept.extend((one != other).then(|| blows[other]));
            let is_less = kept.len() < self.best.plan.blows.len();
            if is_less && self.fails(&Plan { blows: kept, time, ..self.best.plan.clone() }) {
                return;
            }
        }
    }

    /// Leaves out clients of one kind: all, or else half of them, as long as that works.
    fn leave_out(&mut self, count: impl Fn(&mut Plan) -> &mut usize) {
        let mut kept = 0;
        loop {
            let mut plan = self.best.plan.clone();
            let now = std::mem::replace(count(&mut plan), kept);
            if kept >= now || self.fails(&plan) {
                return;
            }
            kept = if kept == 0 { 1 } else { 2 * kept };
        }
    }

    fn shorten(&mut self) {
        let mut plan = self.best.plan.clone();
        while !plan.time.is_zero() {
            plan.end_at(plan.time / 2);
            if !self.fails(&plan) {
                return;
            }
            plan = self.best.plan.clone();
        }
    }
}

/// The smallest plan that is found, within so many runs, to fail as that of `failure` did, with its story.
pub(crate) fn shrunk(failure: Box<Failure>, runs_max: usize) -> Box<Failure> {
    let time = 3 * failure.plan.time;
    let mut search = Search { best: failure, runs_left: runs_max };
    search.shorten();
    search.leave_out_faults();
    search.leave_out(|plan| &mut plan.operators);
    search.leave_out(|plan| &mut plan.lease_clients);
    search.leave_out(|plan| &mut plan.watch_clients);
    search.leave_out(|plan| &mut plan.clients);
    // What could not be left out at first may be of no use any more without what was left out later.
    let mut left = usize::MAX;
    while search.best.plan.blows.len() < std::mem::replace(&mut left, search.best.plan.blows.len()) {
        search.leave_out_faults();
        search.shorten();
    }
    search.keep_two_faults(time);
    run(&search.best.plan, true).expect_err("a seed replays")
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plan, reason, place, story } = self;
        write!(
            f,
            "{reason}\n(found at {place})\n{story}again: {plan} cargo test -p server --test cluster clusters_serve"
        )
    }
}
