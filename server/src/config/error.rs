//! Runs on: main thread, before any core is started.
//!
//! The errors of a command line or a setting, in the words of etcd and of Go.
//!
//! The variants of `Error` follow what the caller does: print the help, print the version, show the usage, or refuse to
//! start. `Invalid` says why a text is not a value. It does not say where the text was; the reader of the flag, the
//! variable or the list adds that.
//!
//! **Source**: etcd v3.7.1 and Go 1.26, `flag`, `strconv`, `time`, `net/url`.

/// Why a command does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `--help`: the help is printed on stdout, with exit status 0.
    #[error("help requested")]
    Help,
    /// `--version`: the version is printed on stdout, with exit status 0.
    #[error("version requested")]
    Version,
    /// The arguments do not parse. The message and the usage are printed on stderr, with exit status 2.
    #[error(transparent)]
    Usage(#[from] Usage),
    /// The server cannot start with this setting. The message is in etcd's words and is logged, with exit status 1.
    #[error("{0}")]
    Refused(String),
}

impl From<Invalid> for Error {
    fn from(why: Invalid) -> Self {
        Self::Refused(why.to_string())
    }
}

/// Why arguments do not parse, in the words of Go's `flag`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Usage {
    /// `---name`, `--=value`.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// The command has no such flag.
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    /// The flag is the last argument, and needs a value.
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    /// There is a word where only flags may be.
    #[error("{0:?} is not a valid flag")]
    Word(String),
    /// The value does not have the flag's kind.
    #[error("invalid value {text:?} for flag -{flag}: {why}")]
    Value {
        /// The flag, as it was given.
        flag: String,
        /// The value.
        text: String,
        /// What is wrong with it.
        why: Box<Invalid>,
    },
    /// The value of a switch is not a boolean.
    #[error("invalid boolean value {text:?} for -{flag}: {why}")]
    Boolean {
        /// The flag, as it was given.
        flag: String,
        /// The value.
        text: String,
        /// What is wrong with it.
        why: Box<Invalid>,
    },
}

/// Why a text is not a value of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The text is not a boolean, integer or duration, in the words of Go's `flag`.
    #[error("parse error")]
    Syntax,
    /// An integer is beyond its type, in the words of Go's `flag`.
    #[error("value out of range")]
    Range,
    /// An integer is wrong, in the words of Go's `strconv`.
    #[error("strconv.ParseUint: parsing {text:?}: {why}")]
    Integer {
        /// The text.
        text: String,
        /// Syntax or range.
        why: &'static str,
    },
    /// The word is not an allowed one.
    #[error("invalid value")]
    Word,
    /// The list has a word that is not allowed.
    #[error("invalid value {0:?}")]
    ListWord(String),
    /// A duration is wrong, in the words of Go's `time`.
    #[error("time: invalid duration {0:?}")]
    Duration(String),
    /// A duration that has a number without its unit.
    #[error("time: missing unit in duration {0:?}")]
    DurationWithoutUnit(String),
    /// A duration with a unit that Go does not know.
    #[error("time: unknown unit {unit:?} in duration {text:?}")]
    DurationUnit {
        /// The unit.
        unit: String,
        /// The whole text.
        text: String,
    },
    /// A gate without its value.
    #[error("missing bool value for {0}")]
    GateWithoutValue(String),
    /// A gate whose value is not a boolean.
    #[error("invalid value of {gate}={value}, err: strconv.ParseBool: parsing {value:?}: invalid syntax")]
    GateValue {
        /// The gate.
        gate: String,
        /// Its value.
        value: String,
    },
    /// etcd has no such gate.
    #[error("unrecognized feature gate: {0}")]
    Gate(String),
    /// A URL of another scheme.
    #[error("URL scheme must be http, https, unix, or unixs: {0}")]
    UrlScheme(String),
    /// A URL without host and port.
    #[error("URL address does not have the form \"host:port\": {0}")]
    UrlAddress(String),
    /// A URL with a path.
    #[error("URL must not contain a path: {0}")]
    UrlPath(String),
    /// A URL that Go's `net/url` refuses.
    #[error("parse {text:?}: {why}")]
    Url {
        /// The URL.
        text: String,
        /// Go's reason.
        why: String,
    },
    /// The host is a name, but listening needs an address.
    #[error("expected IP in URL for binding ({0})")]
    BindHost(String),
    /// A port above 65535.
    #[error("listen tcp: address {0}: invalid port")]
    BindPort(String),
    /// The value of a knob is wrong.
    #[error(transparent)]
    Knob(#[from] tuning::Error),
}
