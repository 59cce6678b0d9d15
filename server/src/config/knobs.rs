//! Runs on: main thread, before any core is started.
//!
//! Turns profile, knobs file and flags into the knobs.
//!
//! Invariant: a later source beats an earlier one, in this order: defaults, profile, room for the largest request,
//! knobs file, etcd's flags, knob flags. Only values that the user set are applied, so that the default of a flag does
//! not replace a value of the profile.

use tuning::{Knob, Knobs};

use super::{
    error::Error,
    flag::{Fate, Value},
    flags::TABLE,
    values::Values,
};

/// Reads a text file; `std::fs::read_to_string` in the program.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> std::io::Result<String>;

/// The knobs, and the profile's name.
///
/// **Errors**: a text that names the flag, file or knob.
pub(super) fn resolve(values: &mut Values, read_file: ReadFile<'_>) -> Result<(Option<&'static str>, Knobs), Error> {
    let mut knobs = Knobs::default();
    let profile = match values.text("profile").as_str() {
        "" => None,
        name => Some(tuning::profile(name).map_err(refused)?),
    };
    if let Some(profile) = profile {
        knobs = profile.apply(knobs);
    }
    make_room(values, &mut knobs);
    let file = values.text("knobs");
    if !file.is_empty() {
        let text = read_file(&file).map_err(|error| refused(format!("--knobs {file}: {error}")))?;
        tuning::apply_file(&mut knobs, &text).map_err(|error| refused(format!("--knobs {file}: {error}")))?;
    }
    check_ticks(values, &knobs)?;
    for knob in tuning::REGISTRY {
        if let Some(flag) = knob.etcd_flag.filter(|flag| values.is_set(flag)) {
            set_from_flag(values, &mut knobs, knob, flag)?;
        }
    }
    for (name, text) in &values.knobs {
        let set = tuning::knob(name).and_then(|knob| knob.set(&mut knobs, text));
        set.map_err(refused)?;
    }
    Ok((profile.map(|profile| profile.name), knobs))
}

fn refused(why: impl ToString) -> Error {
    Error::Refused(why.to_string())
}

/// etcd accepts any size of request. The sizes that depend on it follow, unless the user sets them.
fn make_room(values: &mut Values, knobs: &mut Knobs) {
    if !values.is_set("max-request-bytes") {
        return;
    }
    let bytes = values.unsigned("max-request-bytes");
    for name in knobs.make_room_for_requests(bytes) {
        values.warn("raised to hold the largest request", "knob", &name);
    }
    if bytes > 10 << 20 {
        values.warn("exceeded recommended request limit", "max-request-bytes", &bytes.to_string());
    }
}

/// Refuses in etcd's words what the bounds and rules of the knobs would refuse too.
fn check_ticks(values: &Values, knobs: &Knobs) -> Result<(), Error> {
    let set_or = |name: &str, otherwise: u64| if values.is_set(name) { values.unsigned(name) } else { otherwise };
    let heartbeat_ms = set_or("heartbeat-interval", knobs.consensus.heartbeat_ms);
    let election_ms = set_or("election-timeout", knobs.consensus.election_ms);
    if heartbeat_ms == 0 {
        return Err(refused("--heartbeat-interval must be >0 (set to 0ms)"));
    }
    if election_ms == 0 {
        return Err(refused("--election-timeout must be >0 (set to 0ms)"));
    }
    if heartbeat_ms.saturating_mul(5) > election_ms {
        return Err(refused(format!(
            "--election-timeout[{election_ms}ms] should be at least as 5 times as \
             --heartbeat-interval[{heartbeat_ms}ms]"
        )));
    }
    if election_ms > 50_000 {
        return Err(refused(format!(
            "--election-timeout[{election_ms}ms] is too long, and should be set less than 50000ms"
        )));
    }
    Ok(())
}

fn set_from_flag(values: &mut Values, knobs: &mut Knobs, knob: &Knob, flag: &str) -> Result<(), Error> {
    debug_assert!(TABLE.row(flag).is_some_and(|row| row.fate == Fate::Knob));
    let text = match (flag, values.value(flag)) {
        // In etcd these values mean "the default".
        ("quota-backend-bytes" | "compaction-batch-limit", Value::Signed(0))
        | ("snapshot-count", Value::Unsigned(0))
        | ("max-concurrent-streams", Value::Unsigned(0))
        | ("warning-unary-request-duration" | "watch-progress-notify-interval", Value::Duration(0)) => {
            knob.default_text()
        }
        ("quota-backend-bytes", Value::Signed(..0)) => "unlimited".to_owned(),
        ("compaction-batch-limit", Value::Signed(..0)) => knob.default_text(),
        ("watch-progress-notify-interval", Value::Duration(nanoseconds @ 1..100_000_000)) => {
            let message = "adjusting watch progress notify interval to minimum period";
            values.warn(message, "given-nanoseconds", &nanoseconds.to_string());
            "100ms".to_owned()
        }
        // Everything takes longer than a part of a millisecond.
        ("warning-unary-request-duration" | "warning-apply-duration", Value::Duration(0..1_000_000)) => "0".to_owned(),
        // A part of a millisecond counts as a whole one, because 0 has a meaning of its own.
        (_, Value::Duration(nanoseconds @ 0..)) => nanoseconds.unsigned_abs().div_ceil(1_000_000).to_string(),
        (_, Value::Duration(_)) => return Err(refused(format!("--{flag} must not be negative"))),
        (_, Value::Unsigned(number)) => number.to_string(),
        (_, Value::Signed(number)) => number.to_string(),
        (_, other) => unreachable!("--{flag} sets a knob but is {other:?}"),
    };
    knob.set(knobs, &text).map_err(|error| refused(format!("--{flag}: {error}")))
}
