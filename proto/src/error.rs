//! Why bytes are not what they should be: a message, an entry of the log, a txn.

/// Everything that this crate reports.
#[derive(Debug, thiserror::Error, Eq, PartialEq)]
pub enum Error {
    /// The bytes are not protobuf, or not of these messages.
    #[error("entry cannot be decoded: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field runs past the end of the entry, or has a wire type that these messages do not use.
    #[error("entry is damaged at field {field}")]
    Damaged {
        /// Its number, 0 where not even that can be read.
        field: u64,
    },
    /// Messages are nested too deep, see [`txn::LEVELS_MAX`](crate::txn::LEVELS_MAX). protobuf-go's words.
    #[error("proto: exceeded maximum recursion depth")]
    TooDeep,
    /// No request is set, or only one that this release does not know.
    #[error("entry carries no known request")]
    NoRequest,
    /// More than one request is set.
    #[error("entry carries more than one request")]
    SeveralRequests,
    /// Neither a header nor an id says who waits for it.
    #[error("entry has no header")]
    NoHeader,
}
