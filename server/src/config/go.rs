//! Runs on: main thread, before any core is started.
//!
//! Go's text syntax, as etcd's users know it: arguments, booleans, integers, durations.
//!
//! Invariant: a text is accepted or refused here as Go's `flag`, `strconv` and `time` packages do, in their words. Go's
//! own limits beyond 64 bits are not copied; etcd's flags have none.

use super::error::Invalid;

/// One argument of a command line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Argument<'a> {
    /// `-name`, `--name`, `-name=value`, `--name=value`.
    Flag { name: &'a str, value: Option<&'a str> },
    /// `--`: everything after it is not a flag.
    End,
    /// Anything else. Go stops looking for flags here.
    Positional,
    /// `---x`, `--=x`.
    Bad,
}

/// Splits an argument into its parts.
pub(super) fn argument(text: &str) -> Argument<'_> {
    if text == "--" {
        return Argument::End;
    }
    let Some(rest) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|rest| !rest.is_empty()) else {
        return Argument::Positional;
    };
    if rest.starts_with(['-', '=']) {
        return Argument::Bad;
    }
    match rest.split_once('=') {
        Some((name, value)) => Argument::Flag { name, value: Some(value) },
        None => Argument::Flag { name: rest, value: None },
    }
}

/// `strconv.ParseBool`.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Why a text is not an integer.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) enum IntegerError {
    Syntax,
    Range,
}

impl IntegerError {
    /// The error in the words of `strconv`.
    pub(super) fn as_strconv(self, text: &str) -> Invalid {
        let why = match self {
            Self::Syntax => "invalid syntax",
            Self::Range => "value out of range",
        };
        Invalid::Integer { text: text.to_owned(), why }
    }
}

/// The error in the words of `flag`.
impl From<IntegerError> for Invalid {
    fn from(error: IntegerError) -> Self {
        match error {
            IntegerError::Syntax => Self::Syntax,
            IntegerError::Range => Self::Range,
        }
    }
}

/// `strconv.ParseUint(text, 0, 64)`: decimal, or `0x`, `0o`, `0`, `0b` with their digits, `_` between digits.
pub(super) fn parse_uint(text: &str) -> Result<u64, IntegerError> {
    let lower = text.to_ascii_lowercase();
    let (digits, base, has_prefix) = match lower.as_bytes() {
        [b'0', b'x', ..] => (&lower[2..], 16, true),
        [b'0', b'o', ..] => (&lower[2..], 8, true),
        [b'0', b'b', ..] => (&lower[2..], 2, true),
        [b'0', _, ..] => (&lower[1..], 8, true),
        _ => (lower.as_str(), 10, false),
    };
    // An underscore is between digits, or between prefix and digit. It is never last and never double.
    let badly_placed = digits.ends_with('_') || digits.contains("__") || (!has_prefix && digits.starts_with('_'));
    let plain = digits.replace('_', "");
    if badly_placed || plain.is_empty() || !plain.chars().all(|c| c.is_digit(base)) {
        return Err(IntegerError::Syntax);
    }
    u64::from_str_radix(&plain, base).map_err(|_overflow| IntegerError::Range)
}

/// `strconv.ParseInt(text, 0, 64)`.
pub(super) fn parse_int(text: &str) -> Result<i64, IntegerError> {
    let (is_negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = i128::from(parse_uint(digits)?);
    let value = if is_negative { -magnitude } else { magnitude };
    i64::try_from(value).map_err(|_overflow| IntegerError::Range)
}

/// Nanoseconds in each of `time`'s units. If two suffixes match, the longer one comes first.
const UNITS: [(&str, i128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// `time.ParseDuration`, in nanoseconds.
///
/// **Errors**: Go's text.
pub(super) fn parse_duration(text: &str) -> Result<i64, Invalid> {
    let invalid = || Invalid::Duration(text.to_owned());
    let (is_negative, mut rest) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let whole_len = digits_len(rest);
        let after_whole = &rest[whole_len..];
        let fraction = after_whole.strip_prefix('.').map(|tail| &tail[..digits_len(tail)]);
        if whole_len == 0 && fraction.is_none_or(str::is_empty) {
            return Err(invalid());
        }
        let number_len = whole_len + fraction.map_or(0, |digits| digits.len() + 1);
        let after = &rest[number_len..];
        let unit_len = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let unit = &after[..unit_len];
        if unit.is_empty() {
            return Err(Invalid::DurationWithoutUnit(text.to_owned()));
        }
        let (_, worth) = UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| Invalid::DurationUnit { unit: unit.to_owned(), text: text.to_owned() })?;
        total = add_part(total, &rest[..whole_len], fraction.unwrap_or(""), *worth).ok_or_else(invalid)?;
        rest = &after[unit_len..];
    }
    i64::try_from(if is_negative { -total } else { total }).map_err(|_overflow| invalid())
}

fn digits_len(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

/// Adds `whole.fraction` units. `None` if 63 bits overflow.
fn add_part(total: i128, whole: &str, fraction: &str, worth: i128) -> Option<i128> {
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // Nineteen digits are finer than a nanosecond of an hour. Further digits do not count.
    let fraction = &fraction[..fraction.len().min(19)];
    let scale = 10_i128.pow(u32::try_from(fraction.len()).ok()?);
    let part: i128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let sum = total.checked_add(whole.checked_mul(worth)?)?.checked_add(part.checked_mul(worth)? / scale)?;
    (sum <= i128::from(i64::MAX) + 1).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_split_as_in_go() {
        let flag = |name, value| Argument::Flag { name, value };
        let rows = [
            ("-name", flag("name", None)),
            ("--name", flag("name", None)),
            ("--name=", flag("name", Some(""))),
            ("-name=a=b", flag("name", Some("a=b"))),
            ("--", Argument::End),
            ("-", Argument::Positional),
            ("", Argument::Positional),
            ("name", Argument::Positional),
            ("---name", Argument::Bad),
            ("--=x", Argument::Bad),
            ("-=x", Argument::Bad),
        ];
        for (text, want) in rows {
            assert_eq!(argument(text), want, "{text}");
        }
    }

    #[test]
    fn integers_parse_as_in_go() {
        use IntegerError::{Range, Syntax};
        let rows = [
            ("0", Ok(0)),
            ("42", Ok(42)),
            ("0x1F", Ok(31)),
            ("0b101", Ok(5)),
            ("0o17", Ok(15)),
            ("017", Ok(15)),
            ("0_17", Ok(15)),
            ("1_000", Ok(1000)),
            ("0x_1f", Ok(31)),
            ("18446744073709551615", Ok(u64::MAX)),
            ("18446744073709551616", Err(Range)),
            ("", Err(Syntax)),
            ("_1", Err(Syntax)),
            ("1_", Err(Syntax)),
            ("1__0", Err(Syntax)),
            ("089", Err(Syntax)),
            ("0x", Err(Syntax)),
            ("1e3", Err(Syntax)),
            ("-1", Err(Syntax)),
            ("+1", Err(Syntax)),
            (" 1", Err(Syntax)),
        ];
        for (text, want) in rows {
            assert_eq!(parse_uint(text), want, "{text:?}");
        }
        assert_eq!(parse_int("-0x10"), Ok(-16));
        assert_eq!(parse_int("+7"), Ok(7));
        assert_eq!(parse_int("-9223372036854775808"), Ok(i64::MIN));
        assert_eq!(parse_int("9223372036854775808"), Err(Range));
        assert_eq!(parse_int("--1"), Err(Syntax));
    }

    #[test]
    fn durations_parse_as_in_go() {
        let second = 1_000_000_000;
        let rows = [
            ("0", Ok(0)),
            ("5s", Ok(5 * second)),
            ("1m30s", Ok(90 * second)),
            ("2h", Ok(7200 * second)),
            ("1.5h", Ok(5400 * second)),
            (".5s", Ok(second / 2)),
            ("5.s", Ok(5 * second)),
            ("100ms", Ok(second / 10)),
            ("7\u{b5}s", Ok(7_000)),
            ("-1m", Ok(-60 * second)),
            ("+1m", Ok(60 * second)),
            ("3000000h", Err("time: invalid duration \"3000000h\"")),
            ("5", Err("time: missing unit in duration \"5\"")),
            ("5.5", Err("time: missing unit in duration \"5.5\"")),
            ("5x", Err("time: unknown unit \"x\" in duration \"5x\"")),
            ("5 s", Err("time: unknown unit \" s\" in duration \"5 s\"")),
            ("foo", Err("time: invalid duration \"foo\"")),
            ("", Err("time: invalid duration \"\"")),
            ("-", Err("time: invalid duration \"-\"")),
            (".s", Err("time: invalid duration \".s\"")),
        ];
        for (text, want) in rows {
            assert_eq!(parse_duration(text).map_err(|why| why.to_string()), want.map_err(str::to_owned), "{text:?}");
        }
    }
}
