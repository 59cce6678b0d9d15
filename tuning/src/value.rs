//! How a knob's value is written and read as text.
//!
//! Invariant: `parse(show(v)) == v` for every value and unit; `show` is exact, never rounded.
//! Text is for people: `64MiB`, `5s`, `auto`, `unlimited`; a bare integer is in the knob's own unit.

use std::fmt;

/// Bytes in a KiB.
pub const KIB: u64 = 1 << 10;
/// Bytes in a MiB.
pub const MIB: u64 = 1 << 20;
/// Bytes in a GiB.
pub const GIB: u64 = 1 << 30;

/// What a knob counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes; text may end in `KiB`, `MiB`, `GiB`.
    Bytes,
    /// Milliseconds; text may end in `ms`, `s`, `m`, `h`.
    Milliseconds,
    /// Things.
    Count,
    /// `true` or `false`.
    Switch,
    /// One of a few words.
    Choice,
}

impl Unit {
    /// What a user may write, for an error message; a choice lists its words instead.
    fn expected(self) -> &'static str {
        match self {
            Self::Bytes => "bytes, such as 1048576 or 1MiB",
            Self::Milliseconds => "milliseconds, such as 1500, or 1500ms, 5s, 10m, 2h",
            Self::Count => "an integer, not negative",
            Self::Switch => "true or false",
            Self::Choice => "one of its words",
        }
    }

    /// Suffixes with their worth, the biggest first.
    fn suffixes(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Bytes => &[("GiB", GIB), ("MiB", MIB), ("KiB", KIB)],
            // "ms" comes before "s" and "m", which it ends or begins with.
            Self::Milliseconds => &[("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)],
            Self::Count | Self::Switch | Self::Choice => &[],
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Milliseconds => "milliseconds",
            Self::Count => "count",
            Self::Switch => "true|false",
            Self::Choice => "choice",
        })
    }
}

/// A type that a knob may have.
pub(crate) trait Value: Copy + PartialOrd {
    fn parse(text: &str, unit: Unit) -> Option<Self>;
    fn show(self, unit: Unit) -> String;

    /// What a user may write.
    fn expected(unit: Unit) -> String {
        unit.expected().to_owned()
    }
}

/// An enum whose variants are written as words.
macro_rules! choice {
    (
        $(#[doc = $doc:literal])+
        $Choice:ident { $($(#[doc = $variant_doc:literal])+ $Variant:ident = $word:literal,)+ }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
        pub enum $Choice {
            $($(#[doc = $variant_doc])+ #[doc = concat!("Written `", $word, "`.")] $Variant,)+
        }

        impl $Choice {
            const WORDS: &[(Self, &str)] = &[$((Self::$Variant, $word),)+];
        }

        impl Value for $Choice {
            fn parse(text: &str, _: Unit) -> Option<Self> {
                Self::WORDS.iter().find(|(_, word)| *word == text).map(|(choice, _)| *choice)
            }

            fn show(self, _: Unit) -> String {
                match self {
                    $(Self::$Variant => $word,)+
                }
                .into()
            }

            fn expected(_: Unit) -> String {
                let words: Vec<&str> = Self::WORDS.iter().map(|(_, word)| *word).collect();
                let (last, others) = words.split_last().expect("a choice has words");
                format!("{} or {last}", others.join(", "))
            }
        }
    };
}

choice! {
    /// How files are read and written.
    IoPathChoice {
        /// io_uring where the kernel allows it, else portable; the choice and its reason are logged at start.
        Auto = "auto",
        /// io_uring, or a refusal to start.
        Uring = "uring",
        /// `pwrite` on a thread.
        Portable = "portable",
    }
}

choice! {
    /// Which threads the raft core and the apply core run on.
    RaftApply {
        /// Chosen by the number of CPUs.
        Auto = "auto",
        /// None of their own: both run in the loop of the first serving core.
        Shared = "shared",
        /// One thread for both, which serves no connections.
        OneThread = "one-thread",
        /// A thread for each.
        TwoThreads = "two-threads",
    }
}

impl RaftApply {
    /// Threads beside the serving ones; none where it is not decided yet.
    pub(crate) fn threads(self) -> usize {
        match self {
            Self::Auto | Self::Shared => 0,
            Self::OneThread => 1,
            Self::TwoThreads => 2,
        }
    }
}

fn parse_integer(text: &str, unit: Unit) -> Option<u64> {
    if text == "unlimited" {
        return Some(u64::MAX);
    }
    let (digits, worth) = unit
        .suffixes()
        .iter()
        .find_map(|(suffix, worth)| Some((text.strip_suffix(suffix)?, *worth)))
        .unwrap_or((text, 1));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit() || b == b'_') {
        return None;
    }
    digits.replace('_', "").parse::<u64>().ok()?.checked_mul(worth)
}

fn show_integer(value: u64, unit: Unit) -> String {
    let best = unit.suffixes().iter().filter(|(_, worth)| value >= *worth && value.is_multiple_of(*worth));
    match best.max_by_key(|(_, worth)| *worth) {
        Some((suffix, worth)) => format!("{}{suffix}", value / worth),
        None => value.to_string(),
    }
}

/// `unlimited` is the type's own largest value, so that it survives the way through `u64`.
macro_rules! integer_value {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn parse(text: &str, unit: Unit) -> Option<Self> {
                if text == "unlimited" {
                    return Some(Self::MAX);
                }
                Self::try_from(parse_integer(text, unit)?).ok()
            }

            fn show(self, unit: Unit) -> String {
                match u64::try_from(self) {
                    Ok(value) if self != Self::MAX => show_integer(value, unit),
                    _ => "unlimited".into(),
                }
            }
        }
    )*};
}
integer_value!(u32, u64, usize);

impl Value for bool {
    fn parse(text: &str, _: Unit) -> Option<Self> {
        text.parse().ok()
    }

    fn show(self, _: Unit) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_means_what_it_says_in_its_unit() {
        let rows: [(&str, Unit, Option<u64>); 16] = [
            ("0", Unit::Bytes, Some(0)),
            ("1_000", Unit::Bytes, Some(1000)),
            ("64MiB", Unit::Bytes, Some(64 << 20)),
            ("1GiB", Unit::Bytes, Some(1 << 30)),
            ("1.5MiB", Unit::Bytes, None),
            ("-1", Unit::Bytes, None),
            ("MiB", Unit::Bytes, None),
            ("64MB", Unit::Bytes, None),
            ("99999999999GiB", Unit::Bytes, None),
            ("250", Unit::Milliseconds, Some(250)),
            ("250ms", Unit::Milliseconds, Some(250)),
            ("5s", Unit::Milliseconds, Some(5_000)),
            ("10m", Unit::Milliseconds, Some(600_000)),
            ("2h", Unit::Milliseconds, Some(7_200_000)),
            ("5s", Unit::Count, None),
            ("unlimited", Unit::Count, Some(u64::MAX)),
        ];
        for (text, unit, want) in rows {
            assert_eq!(<u64 as Value>::parse(text, unit), want, "{text} in {unit}");
        }
        assert_eq!(<u32 as Value>::parse("4294967296", Unit::Count), None);
        assert_eq!(<u32 as Value>::parse("unlimited", Unit::Count), Some(u32::MAX));
    }

    #[test]
    fn shown_values_parse_back_to_themselves() {
        for unit in [Unit::Bytes, Unit::Milliseconds, Unit::Count] {
            for value in [0, 1, 999, 1000, 1024, 1025, 60_000, 90_000, 3 << 20, (5 << 30) + 1, u64::MAX - 1, u64::MAX] {
                let text = value.show(unit);
                assert_eq!(<u64 as Value>::parse(&text, unit), Some(value), "{text}");
            }
        }
        assert_eq!(7_200_000_u64.show(Unit::Milliseconds), "2h");
        assert_eq!((64_u64 << 20).show(Unit::Bytes), "64MiB");
    }

    #[test]
    fn a_choice_is_written_as_its_word() {
        for (choice, word) in RaftApply::WORDS {
            assert_eq!(choice.show(Unit::Choice), *word);
            assert_eq!(RaftApply::parse(word, Unit::Choice), Some(*choice));
        }
        assert_eq!(RaftApply::parse("", Unit::Choice), None);
        assert_eq!(RaftApply::expected(Unit::Choice), "auto, shared, one-thread or two-threads");
        assert_eq!(IoPathChoice::expected(Unit::Choice), "auto, uring or portable");
    }
}
