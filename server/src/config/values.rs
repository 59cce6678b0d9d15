//! Runs on: main thread, before any core is started.
//!
//! The one parser of command lines. It turns arguments into values by flag, with the table of any command. It knows
//! only the syntax, no meaning.
//!
//! Invariants:
//! - A flag that is given twice has its last value. Gates add up.
//! - The error names the first fault in the order of the arguments, as in Go.
//! - `--help` counts where Go sees it: not after a faulty flag, and not as the value of another flag.
//!
//! One thing differs from Go: if a table accepts words, flags may follow them, as in etcd's tools.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    error::{Error, Invalid, Usage},
    flag::{Fate, Flag, Table, Target, Value},
    go,
    url::Url,
};

/// A warning that is logged once there is a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The line's `msg`.
    pub message: String,
    /// Name and value of its field, if it has one.
    pub field: Option<(&'static str, String)>,
}

/// The values that the arguments set, and for the server the variables too.
pub(crate) struct Values {
    table: &'static Table,
    set: BTreeMap<&'static str, Value>,
    /// Names among the arguments, as they were given.
    given: BTreeSet<String>,
    words: Vec<String>,
    /// Knobs that were set by their own flags: name and text, in the order of the arguments.
    pub(super) knobs: Vec<(String, String)>,
    pub(super) warnings: Vec<Warning>,
}

impl Values {
    /// Reads the arguments of a command with these flags.
    ///
    /// **Errors**: `Help`; `Usage` for arguments that do not parse; `Refused` for a word if the table accepts none.
    pub(crate) fn read(table: &'static Table, arguments: &[String]) -> Result<Self, Error> {
        let mut values = Self {
            table,
            set: BTreeMap::new(),
            given: BTreeSet::new(),
            words: Vec::new(),
            knobs: Vec::new(),
            warnings: Vec::new(),
        };
        let mut rest = arguments.iter();
        while let Some(text) = rest.next() {
            match go::argument(text) {
                go::Argument::Flag { name, value } => values.read_flag(name, value, &mut rest)?,
                go::Argument::Bad => return Err(Usage::Syntax(text.clone()).into()),
                go::Argument::Positional => values.read_word(text)?,
                go::Argument::End => rest.by_ref().try_for_each(|text| values.read_word(text))?,
            }
        }
        Ok(values)
    }

    fn read_flag<'a>(
        &mut self,
        name: &str,
        value: Option<&'a str>,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), Error> {
        let Some(target) = self.table.find(name) else {
            let is_help = name == "h" || name == "help";
            return Err(if is_help { Error::Help } else { Usage::Unknown(name.to_owned()).into() });
        };
        let value = match value {
            Some(value) => value,
            None if target.is_switch() => "true",
            None => rest.next().ok_or_else(|| Usage::NoValue(name.to_owned()))?.as_str(),
        };
        self.set(&target, name, value).map_err(|why| {
            let (flag, text, why) = (name.to_owned(), value.to_owned(), Box::new(why));
            if target.is_switch() { Usage::Boolean { flag, text, why } } else { Usage::Value { flag, text, why } }
        })?;
        self.given.insert(name.to_owned());
        Ok(())
    }

    fn read_word(&mut self, text: &str) -> Result<(), Error> {
        if !self.table.takes_words {
            return Err(Error::Refused(Usage::Word(text.to_owned()).to_string()));
        }
        self.words.push(text.to_owned());
        Ok(())
    }

    /// Sets `target` from `text`. `given_as` is the name that was given.
    ///
    /// **Errors**: why the text is not a value.
    pub(super) fn set(&mut self, target: &Target, given_as: &str, text: &str) -> Result<(), Invalid> {
        match target {
            Target::Flag(row) => {
                let value = row.parse(text)?;
                if row.fate == Fate::Legacy {
                    self.warn("flag is no longer supported - ignoring", "flag-name", row.name);
                }
                if self.table.row(given_as).is_none() {
                    self.warn("flag of an older release, please use the present one", "flag-name", row.name);
                }
                self.insert(row.name, value);
            }
            Target::Gate(gate) => {
                let value = go::parse_bool(text).ok_or(Invalid::Syntax)?;
                self.warn("flag of an older release, please use --feature-gates", "feature-gate", gate);
                self.insert("feature-gates", Value::Gates(BTreeMap::from([((*gate).to_owned(), value)])));
            }
            Target::Knob(knob) => {
                // The value is checked now. It takes effect after the profile and the file.
                knob.set(&mut tuning::Knobs::default(), text)?;
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

    pub(super) fn warn(&mut self, message: &str, field: &'static str, value: &str) {
        self.warnings.push(Warning { message: message.to_owned(), field: Some((field, value.to_owned())) });
    }

    /// Warns without a field.
    pub(super) fn warn_plainly(&mut self, message: &str) {
        self.warnings.push(Warning { message: message.to_owned(), field: None });
    }

    /// Names of the flags among the arguments, as they were given.
    pub(super) fn given(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(String::as_str)
    }

    /// The words among the arguments that are neither flags nor their values, in order.
    pub(crate) fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    /// Refuses words, for a command that accepts none.
    ///
    /// **Errors**: it names the first word.
    pub(crate) fn refuse_words(&self) -> Result<(), Error> {
        self.words.first().map_or(Ok(()), |word| Err(Usage::Word(word.clone()).into()))
    }

    /// Whether the user set the flag.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.set.contains_key(name)
    }

    /// The value that was set, or the default.
    pub(super) fn value(&self, name: &str) -> Value {
        let row = self.table.row(name).expect("callers name rows of the table");
        match self.set.get(name) {
            Some(value) => value.clone(),
            None => row.parse(row.default).expect("defaults are values: tested"),
        }
    }

    /// Whether the value differs from the default.
    pub(super) fn differs(&self, row: &Flag) -> bool {
        self.set.get(row.name).is_some_and(|value| row.parse(row.default).as_ref() != Ok(value))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        match self.value(name) {
            Value::Text(text) => text,
            other => unreachable!("--{name} is not text: {other:?}"),
        }
    }

    pub(crate) fn switch(&self, name: &str) -> bool {
        self.value(name) == Value::Switch(true)
    }

    /// The value of a duration flag. **Units** nanoseconds.
    pub(super) fn duration(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Duration(nanoseconds) => nanoseconds,
            other => unreachable!("--{name} is not a duration: {other:?}"),
        }
    }

    pub(crate) fn unsigned(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Unsigned(number) => number,
            other => unreachable!("--{name} is not an integer: {other:?}"),
        }
    }

    pub(super) fn signed(&self, name: &str) -> i64 {
        match self.value(name) {
            Value::Signed(number) => number,
            other => unreachable!("--{name} is not an integer: {other:?}"),
        }
    }

    pub(super) fn urls(&self, name: &str) -> Vec<Url> {
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
}
