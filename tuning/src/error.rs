//! Why a setting was refused.

/// Everything that this crate refuses, apart from what `check` finds. Each names what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No knob has this name.
    #[error("unknown knob {name:?}")]
    UnknownKnob {
        /// As written by the user.
        name: String,
    },
    /// No profile has this name.
    #[error("unknown profile {name:?} (there are {known})")]
    UnknownProfile {
        /// As written by the user.
        name: String,
        /// All names, comma separated.
        known: String,
    },
    /// The text is not a value of the knob's unit.
    #[error("invalid value {text:?} for {name}: expected {expected}")]
    BadValue {
        /// The knob.
        name: String,
        /// As written by the user.
        text: String,
        /// What would have been a value.
        expected: String,
    },
    /// A value, but outside the knob's bounds.
    #[error("value {text:?} for {name} is out of bounds ({min} to {max})")]
    OutOfBounds {
        /// The knob.
        name: String,
        /// As written by the user.
        text: String,
        /// Smallest value allowed.
        min: String,
        /// Largest value allowed.
        max: String,
    },
    /// A line of a knobs file is not `knob = value`, a `[group]` or a comment.
    #[error("line {line}: expected `knob = value`, `[group]` or `# comment`")]
    BadLine {
        /// Counted from 1.
        line: usize,
    },
    /// A knobs file sets the same knob twice.
    #[error("line {line}: {name} is set twice")]
    SetTwice {
        /// Counted from 1.
        line: usize,
        /// The knob.
        name: String,
    },
    /// A line of a knobs file has a knob or value that was refused.
    #[error("line {line}: {source}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Why.
        source: Box<Error>,
    },
}
