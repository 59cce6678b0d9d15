//! Runs on: main thread, before any core is started.
//!
//! Defines a flag, for every command: its row in a table, its kind, and the value of a text.
//!
//! Invariants:
//! - A default is a value of its kind. A test checks each table for it.
//! - A name occurs once in a table.
//!
//! Not here: the tables (`flags` has the server's table, each command its own), and the reading of arguments
//! (`values`).

use std::collections::BTreeMap;

use super::{error::Invalid, gates, go, url::Url};

/// How a flag's text is read and refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    /// Go's boolean. It needs no value on the command line.
    Switch,
    Unsigned,
    /// etcd's own 32-bit type, with other error texts.
    Unsigned32,
    Signed,
    Duration,
    /// A list of URLs. An empty text keeps the default.
    Urls,
    /// One of these words.
    Words(&'static [&'static str]),
    /// A comma-separated list of these words.
    WordList(&'static [&'static str]),
    Gates,
}

/// What happens with a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The command reads it.
    Used,
    /// Sets the knob whose row names this flag.
    Knob,
    /// It is accepted without effect, for this reason; the server warns.
    Idle(&'static str),
    /// It is refused for this reason, unless it asks for what is true anyway.
    Missing(&'static str),
    /// It only counts for a member without data. There it is refused for this reason, unless it asks for what is true
    /// anyway.
    FirstStart(&'static str),
    /// etcd itself has dropped it. Any value is accepted, with etcd's warning.
    Legacy,
    /// It is another name of this flag in the same table.
    Same(&'static str),
}

/// One row.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    pub(crate) default: &'static str,
    pub(crate) fate: Fate,
    pub(crate) help: &'static str,
}

/// A row of a table.
pub(crate) const fn row(name: &'static str, kind: Kind, default: &'static str, fate: Fate, help: &'static str) -> Flag {
    Flag { name, kind, default, fate, help }
}

/// A flag's value, by kind.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Switch(bool),
    Unsigned(u64),
    Signed(i64),
    /// Nanoseconds.
    Duration(i64),
    Urls(Vec<Url>),
    Gates(BTreeMap<String, bool>),
}

impl Flag {
    /// Reads the value of a text.
    ///
    /// **Errors**: the text that follows `invalid value "x" for flag -name: ` in etcd.
    pub(crate) fn parse(&self, text: &str) -> Result<Value, Invalid> {
        match self.kind {
            _ if self.fate == Fate::Legacy => Ok(Value::Text(text.to_owned())),
            Kind::Text => Ok(Value::Text(text.to_owned())),
            Kind::Switch => go::parse_bool(text).map(Value::Switch).ok_or(Invalid::Syntax),
            Kind::Unsigned => go::parse_uint(text).map(Value::Unsigned).map_err(Invalid::from),
            Kind::Unsigned32 => go::parse_uint(text)
                .and_then(|n| if u32::try_from(n).is_ok() { Ok(n) } else { Err(go::IntegerError::Range) })
                .map(Value::Unsigned)
                .map_err(|error| error.as_strconv(text)),
            Kind::Signed => go::parse_int(text).map(Value::Signed).map_err(Invalid::from),
            // The type of this flag in Go says no more than that.
            Kind::Duration => go::parse_duration(text).map(Value::Duration).map_err(|_text| Invalid::Syntax),
            Kind::Urls if text.is_empty() => match self.default {
                "" => Ok(Value::Urls(Vec::new())),
                default => Url::parse_list(default).map(Value::Urls),
            },
            Kind::Urls => Url::parse_list(text).map(Value::Urls),
            Kind::Words(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Kind::Words(_) => Err(Invalid::Word),
            Kind::WordList(words) => match text.split(',').find(|word| !words.contains(word)) {
                Some(word) => Err(Invalid::ListWord(word.to_owned())),
                None => Ok(Value::Text(text.to_owned())),
            },
            Kind::Gates => gates::parse(text).map(Value::Gates),
        }
    }
}

/// What a name on the command line stands for.
pub(crate) enum Target {
    /// A row of the table.
    Flag(&'static Flag),
    /// A feature gate that a flag of an older release sets.
    Gate(&'static str),
    /// A knob without a flag of etcd's.
    Knob(&'static tuning::Knob),
}

impl Target {
    /// Whether it takes no value from the next argument.
    pub(crate) fn is_switch(&self) -> bool {
        match self {
            Self::Flag(row) => row.kind == Kind::Switch,
            Self::Gate(_) => true,
            Self::Knob(knob) => knob.unit == tuning::Unit::Switch,
        }
    }
}

/// Rows that are together in the help, under a title.
pub(crate) type Section = (&'static str, &'static [Flag]);

/// All flags of a command.
pub(crate) struct Table {
    /// The sections, in the order of the help.
    pub(crate) sections: &'static [Section],
    /// Whether words that are not flags may be among the arguments.
    pub(crate) takes_words: bool,
    /// Whether the knobs of `tuning`'s registry are flags too.
    pub(crate) has_knobs: bool,
    /// What a flag of an older release stands for now.
    pub(crate) renamed: fn(&str) -> Option<Target>,
}

impl Table {
    /// A table for a command that only has flags of its own.
    pub(crate) const fn of(sections: &'static [Section]) -> Self {
        Self { sections, takes_words: true, has_knobs: false, renamed: |_name| None }
    }

    /// All rows.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &'static Flag> + use<> {
        self.sections.iter().flat_map(|(_, rows)| rows.iter())
    }

    /// The row of a flag.
    pub(crate) fn row(&self, name: &str) -> Option<&'static Flag> {
        self.rows().find(|row| row.name == name)
    }

    /// What a name stands for.
    pub(crate) fn find(&self, name: &str) -> Option<Target> {
        match self.row(name) {
            Some(Flag { fate: Fate::Same(other), .. }) => return self.row(other).map(Target::Flag),
            Some(row) => return Some(Target::Flag(row)),
            None => {}
        }
        if let Some(target) = (self.renamed)(name) {
            return Some(target);
        }
        let knob = tuning::knob(name).ok().filter(|knob| self.has_knobs && knob.etcd_flag.is_none());
        knob.map(Target::Knob)
    }
}

#[cfg(test)]
impl Table {
    /// Panics if a row cannot be used.
    pub(crate) fn check(&self) {
        let mut names = std::collections::BTreeSet::new();
        for row in self.rows() {
            assert!(names.insert(row.name), "{} stands twice", row.name);
            assert!(row.parse(row.default).is_ok(), "{}: {:?}", row.name, row.parse(row.default));
            assert!(row.fate == Fate::Legacy || !row.help.is_empty(), "{}", row.name);
            assert!(self.find(row.name).is_some(), "{}", row.name);
        }
        for knob in tuning::REGISTRY.iter().filter(|knob| self.has_knobs && knob.etcd_flag.is_none()) {
            assert!(names.insert(knob.name().leak()), "{} is a flag of etcd's", knob.name());
        }
    }
}
