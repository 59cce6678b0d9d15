//! Runs on: main thread, before any core is started.
//!
//! What can be wrong with a command line or a setting, in the words of etcd and of Go.
//!
//! The variants of `Error` follow what the caller does: print the help, print the version, show the usage, or refuse to
//! start. `Invalid` says why a text is no value. It does not say where the text stood: the reader of the flag, the
//! variable or the list adds that.
//!
//! **Source**: etcd v3.7.1 and Go 1.26, `flag`, `strconv`, `time`, `net/url`.

/// Why a command does not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `--help`: the help is printed on stdout, exit status 0.
    #[error("help requested")]
    Help,
    /// `--version`: the version is printed on stdout, exit status 0.
    #[error("version requested")]
    Version,
    /// The arguments do not parse: this and the usage are printed on stderr, exit status 2.
    #[error(transparent)]
    Usage(#[from] Usage),
    /// A setting that cannot be started, in etcd's words: it is logged, exit status 1.
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
    /// A word where only flags may stand.
    #[error("{0:?} is not a valid flag")]
    Word(String),
    /// The value is not of the flag's kind.
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

/// Why a text is no value of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// No boolean, integer or duration, as Go's `flag` says it.
    #[error("parse error")]
    Syntax,
    /// An integer beyond its type, as Go's `flag` says it.
    #[error("value out of range")]
    Range,
    /// An integer, as Go's `strconv` says it.
    #[error("strconv.ParseUint: parsing {text:?}: {why}")]
    Integer {
        /// The text.
        text: String,
        /// Syntax or range.
        why: &'static str,
    },
    /// None of the words allowed.
    #[error("invalid value")]
    Word,
    /// A list with a word that is not allowed.
    #[error("invalid value {0:?}")]
    ListWord(String),
    /// A duration, as Go's `time` says it.
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
    /// No gate of etcd's.
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
    /// A name where an address is needed to listen on.
    #[error("expected IP in URL for binding ({0})")]
    BindHost(String),
    /// A port above 65535.
    #[error("listen tcp: address {0}: invalid port")]
    BindPort(String),
    /// A knob's value.
    #[error(transparent)]
    Knob(#[from] tuning::Error),
}
