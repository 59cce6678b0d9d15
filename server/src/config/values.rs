//! Runs on: main thread, before any core is started.
//!
//! From arguments and variables to values by flag: syntax only, no meaning.
//!
//! Invariants:
//! - A flag given twice has its last value; gates add up.
//! - A flag and its variable together are refused, as in etcd, even with equal values.
//! - An empty variable is not set. An unknown `ETCD_` or `ORLOP_` variable is a warning: Kubernetes makes such
//!   variables for a service named etcd. Its value is not repeated, it may be a secret.

use super::flags::{self, Fate, Flag, Kind, Renamed, Value};
use super::{Stop, Warning, go};
use std::collections::{BTreeMap, BTreeSet};

/// What was set, by whom.
#[derive(Debug, Default)]
pub(super) struct Values {
    set: BTreeMap<&'static str, Value>,
    /// Knobs set by flags of their own: name and text, in the order given.
    pub(super) knobs: Vec<(String, String)>,
    pub(super) warnings: Vec<Warning>,
}

impl Values {
    /// Reads both sources.
    ///
    /// **Errors**: `Usage` for the arguments, `Refused` for the variables and for an argument that is no flag.
    pub(super) fn read(arguments: &[String], variables: &[(String, String)]) -> Result<Self, Stop> {
        let mut values = Self::default();
        let given = values.read_arguments(arguments)?;
        if values.switch("version") {
            return Err(Stop::Version);
        }
        values.read_variables(variables, &given)?;
        Ok(values)
    }

    /// Whether the user set it.
    pub(super) fn is_set(&self, name: &str) -> bool {
        self.set.contains_key(name)
    }

    /// The value set, or the default.
    pub(super) fn value(&self, name: &str) -> Value {
        let row = flags::find(name).expect("callers name rows of the table");
        match self.set.get(name) {
            Some(value) => value.clone(),
            None => row.parse(row.default).expect("defaults are values: tested"),
        }
    }

    /// Whether the value differs from the default.
    pub(super) fn differs(&self, row: &Flag) -> bool {
        self.set.get(row.name).is_some_and(|value| row.parse(row.default).as_ref() != Ok(value))
    }

    pub(super) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Value::Text(text) => text,
            other => unreachable!("--{name} is not text: {other:?}"),
        }
    }

    pub(super) fn switch(&self, name: &str) -> bool {
        self.value(name) == Value::Switch(true)
    }

    /// Nanoseconds.
    pub(super) fn duration(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Duration(nanoseconds) => nanoseconds,
            other => unreachable!("--{name} is not a duration: {other:?}"),
        }
    }

    pub(super) fn unsigned(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Unsigned(number) => number,
            other => unreachable!("--{name} is not an integer: {other:?}"),
        }
    }

    pub(super) fn urls(&self, name: &str) -> Vec<super::Url> {
        match self.value(name) {
            Value::Urls(urls) => urls,
            other => unreachable!("--{name} is not a list of URLs: {other:?}"),
        }
    }

    pub(super) fn gates(&self, name: &str) -> BTreeMap<String, bool> {
        match self.value(name) {
            Value::Gates(gates) => gates,
            other => unreachable!("--{name} is not a list of gates: {other:?}"),
        }
    }

    /// Names as given, for the comparison with variables.
    fn read_arguments(&mut self, arguments: &[String]) -> Result<BTreeSet<String>, Stop> {
        let mut given = BTreeSet::new();
        let mut rest = arguments.iter();
        let not_a_flag = |text: &str| Err(Stop::Refused(format!("{text:?} is not a valid flag")));
        while let Some(text) = rest.next() {
            let (name, value) = match go::argument(text) {
                go::Argument::Flag { name, value } => (name, value),
                go::Argument::Bad => return Err(Stop::Usage(format!("bad flag syntax: {text}"))),
                go::Argument::Positional => return not_a_flag(text),
                go::Argument::End => match rest.next() {
                    Some(text) => return not_a_flag(text),
                    None => break,
                },
            };
            if name == "h" || name == "help" {
                return Err(Stop::Help(flags::help()));
            }
            let Some(target) = Target::find(name) else {
                return Err(Stop::Usage(format!("flag provided but not defined: -{name}")));
            };
            let value = match value {
                Some(value) => value,
                None if target.is_switch() => "true",
                None => rest.next().ok_or_else(|| Stop::Usage(format!("flag needs an argument: -{name}")))?.as_str(),
            };
            self.set(&target, name, value).map_err(|why| Stop::Usage(refusal(&target, name, value, &why)))?;
            given.insert(name.to_owned());
        }
        Ok(given)
    }

    fn read_variables(&mut self, variables: &[(String, String)], given: &BTreeSet<String>) -> Result<(), Stop> {
        let shadowed: BTreeSet<String> = given.iter().filter_map(|name| variable_name(name)).collect();
        let mut faults = Vec::new();
        for (key, value) in variables.iter().filter(|(key, _)| key.starts_with("ETCD_") || key.starts_with("ORLOP_")) {
            if shadowed.contains(key) {
                return Err(Stop::Refused(format!(
                    "conflicting environment variable is shadowed by corresponding command-line flag \
                     (either unset environment variable or disable flag)): {key}"
                )));
            }
            let (name, target) = match Target::of_variable(key) {
                _ if key == "ETCD_VERSION" => {
                    self.warn("cannot set special environment variable", "key", key);
                    continue;
                }
                Some(found) if !value.is_empty() => found,
                _ => {
                    self.warn("unrecognized environment variable", "environment-variable", key);
                    continue;
                }
            };
            if let Err(why) = self.set(&target, &name, value) {
                faults.push(format!("invalid value {value:?} for {key}: {why}"));
            }
        }
        match faults.into_iter().next() {
            Some(fault) => Err(Stop::Refused(fault)),
            None => Ok(()),
        }
    }

    fn warn(&mut self, message: &str, field: &'static str, value: &str) {
        self.warnings.push(Warning { message: message.to_owned(), field, value: value.to_owned() });
    }

    fn set(&mut self, target: &Target, given_as: &str, text: &str) -> Result<(), String> {
        match target {
            Target::Flag(row) => {
                let value = row.parse(text)?;
                if row.fate == Fate::Legacy {
                    self.warn("flag is no longer supported - ignoring", "flag-name", row.name);
                }
                if row.name != given_as {
                    self.warn("flag of an older release, please use the present one", "flag-name", row.name);
                }
                self.insert(row.name, value);
            }
            Target::Gate(gate) => {
                let value = go::parse_bool(text).ok_or("parse error")?;
                self.warn("flag of an older release, please use --feature-gates", "feature-gate", gate);
                self.insert("feature-gates", Value::Gates(BTreeMap::from([((*gate).to_owned(), value)])));
            }
            Target::Knob(knob) => {
                // Whether the value is good is known now; it takes effect after the profile and the file.
                knob.set(&mut tuning::Knobs::default(), text).map_err(|error| error.to_string())?;
                self.knobs.push((knob.name(), text.to_owned()));
            }
        }
        Ok(())
    }

    fn insert(&mut self, name: &'static str, value: Value) {
        match (self.set.get_mut(name), value) {
            (Some(Value::Gates(gates)), Value::Gates(more)) => gates.extend(more),
            (_, value) => {
                self.set.insert(name, value);
            }
        }
    }
}

/// What a name on the command line stands for.
enum Target {
    Flag(&'static Flag),
    Gate(&'static str),
    Knob(&'static tuning::Knob),
}

impl Target {
    fn find(name: &str) -> Option<Self> {
        if let Some(row) = flags::find(name) {
            return Some(Self::Flag(row));
        }
        if let Some(new) = flags::renamed(name) {
            return Some(match new {
                Renamed::Flag(row) => Self::Flag(row),
                Renamed::Gate(gate) => Self::Gate(gate),
            });
        }
        tuning::knob(name).ok().filter(|knob| knob.etcd_flag.is_none()).map(Self::Knob)
    }

    /// The flag whose variable this is, and what it stands for.
    fn of_variable(key: &str) -> Option<(String, Self)> {
        let (is_ours, rest) = match key.strip_prefix("ORLOP_") {
            Some(rest) => (true, rest),
            None => (false, key.strip_prefix("ETCD_")?),
        };
        if rest.chars().any(|c| c.is_ascii_lowercase()) {
            return None;
        }
        let name = rest.to_ascii_lowercase().replace('_', "-");
        let target = Self::find(&name)?;
        (target.is_ours() == is_ours).then_some((name, target))
    }

    fn is_switch(&self) -> bool {
        match self {
            Self::Flag(row) => row.is_switch(),
            Self::Gate(_) => true,
            Self::Knob(knob) => knob.unit == tuning::Unit::Switch,
        }
    }

    fn is_ours(&self) -> bool {
        match self {
            Self::Flag(row) => row.is_ours(),
            Self::Gate(_) => false,
            Self::Knob(_) => true,
        }
    }
}

/// The variable of a flag.
fn variable_name(flag: &str) -> Option<String> {
    let prefix = if Target::find(flag)?.is_ours() { "ORLOP" } else { "ETCD" };
    Some(format!("{prefix}_{}", flag.to_ascii_uppercase().replace('-', "_")))
}

/// Go's words for a bad value on the command line.
fn refusal(target: &Target, name: &str, value: &str, why: &str) -> String {
    let is_boolean = match target {
        Target::Flag(row) => row.kind == Kind::Switch,
        Target::Gate(_) | Target::Knob(_) => target.is_switch(),
    };
    if is_boolean {
        format!("invalid boolean value {value:?} for -{name}: {why}")
    } else {
        format!("invalid value {value:?} for flag -{name}: {why}")
    }
}
