//! Runs on: every core.
//!
//! The one table from errors to what a client sees: a gRPC code and etcd's exact text.
//!
//! It owns no state. An error is made where it is found, travels as a value, and becomes a status only at the wire.
//! Texts are etcd's, byte for byte, because clients map errors by text.
//! **Source** etcd v3.7.1 `api/v3rpc/rpctypes/error.go`, `server/etcdserver/api/v3rpc/util.go`.

use std::borrow::Cow;

/// gRPC status codes, by their wire numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// The call succeeded.
    Ok = 0,
    /// The caller went away.
    Canceled = 1,
    /// Any error for which etcd itself has no code.
    Unknown = 2,
    /// The request can never succeed as it is.
    InvalidArgument = 3,
    /// The time that the caller gave is over.
    DeadlineExceeded = 4,
    /// The thing named does not exist.
    NotFound = 5,
    /// The user may not do this.
    PermissionDenied = 7,
    /// A quota or size is exhausted.
    ResourceExhausted = 8,
    /// The state of the system forbids it.
    FailedPrecondition = 9,
    /// A revision or number is outside what exists.
    OutOfRange = 11,
    /// The method or option is not there.
    Unimplemented = 12,
    /// A defect or an unreadable message.
    Internal = 13,
    /// Try again.
    Unavailable = 14,
    /// Data is damaged.
    DataLoss = 15,
    /// Who asks is not known.
    Unauthenticated = 16,
}

/// The result that a client sees: a code and a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// gRPC code.
    pub code: Code,
    /// gRPC message, etcd's words.
    pub message: Cow<'static, str>,
}

/// Every refusal and failure of the server. The variants follow what the caller can do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Empty key in a request that needs one.
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    /// `ignore_value`/`ignore_lease` on an absent key, or an unset operation in a txn.
    #[error("etcdserver: key not found")]
    KeyNotFound,
    /// A value beside `ignore_value`.
    #[error("etcdserver: value is provided")]
    ValueProvided,
    /// A lease beside `ignore_lease`.
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    /// More operations than `max-txn-ops`.
    #[error("etcdserver: too many operations in txn request")]
    TooManyOps,
    /// Two writes of one key in one txn.
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    /// An unknown sort order or target.
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    /// Usage asked for too many prefixes at once.
    #[error("orlop: at most 1000 prefixes can be asked for at once")]
    TooManyPrefixes,
    /// Metadata that is not text.
    #[error("etcdserver: invalid client api version")]
    InvalidClientApiVersion,
    /// A revision below the compacted one.
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted,
    /// A revision that does not exist yet.
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    /// Unknown lease.
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    /// A lease id in use.
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    /// A lease time to live above 9,000,000,000 s.
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    /// A member is added with the id of one that is there.
    #[error("etcdserver: member ID already exist")]
    MemberExists,
    /// A member is added or changed with a peer URL of another one.
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    /// There is no member with this id.
    #[error("etcdserver: member not found")]
    MemberNotFound,
    /// The id is that of a former member, and never returns.
    #[error("etcdserver: member not found")]
    MemberRemoved,
    /// A member is added with no URLs, or with some that are none.
    #[error("etcdserver: given member URLs are invalid")]
    MemberBadUrls,
    /// A member is added or changed that could only be reached with TLS, which members do not speak yet.
    #[error("etcdserver: given member URLs need TLS between members, which this release does not have yet")]
    MemberUrlsNeedTls,
    /// A voter is promoted.
    #[error("etcdserver: can only promote a learner member")]
    MemberNotLearner,
    /// A learner is promoted that has not caught up.
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    /// More learners than `max-learners`.
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    /// Too few of the voters that would be there have started, or no voter would be left.
    #[error("etcdserver: re-configuration failed due to not enough started members")]
    NotEnoughStarted,
    /// This member has not been connected to enough voters for long enough.
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    /// A learner answers few calls.
    #[error("etcdserver: rpc not supported for learner")]
    NotForLearner,
    /// Leadership is to be handed over by a member that does not lead.
    #[error("etcdserver: not leader")]
    NotLeader,
    /// Leadership is to be handed to a learner, or to no member.
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    /// Leadership was not taken over in time.
    #[error("etcdserver: request timed out, leader transfer took too long")]
    LeaderTransferTimeout,
    /// A proposal above `max-request-bytes`.
    #[error("etcdserver: request is too large")]
    RequestTooLarge,
    /// Too many entries are between committed and applied, or a mailbox is full.
    #[error("etcdserver: too many requests")]
    TooManyRequests,
    /// As many long reads as may hold their revisions are under way.
    #[error("orlop: too many long reads are under way and hold their revisions: try again when some have ended")]
    TooManyHeld,
    /// The quota is exceeded, the NOSPACE alarm is active, or the disk is full.
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// No leader is known.
    #[error("etcdserver: no leader")]
    NoLeader,
    /// The question is one for the leader, and this member's leadership has ended or not begun meanwhile.
    #[error("not a primary lessor")]
    NotPrimary,
    /// What is committed is not applied in time.
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    TimeoutWaitApplied,
    /// The member stops.
    #[error("etcdserver: server stopped")]
    Stopped,
    /// No answer within etcd's proposal timeout.
    #[error("etcdserver: request timed out")]
    Timeout,
    /// As `Timeout`, and this member has become the leader meanwhile.
    #[error("etcdserver: request timed out, possibly due to previous leader failure")]
    TimeoutLeaderFailed,
    /// As `Timeout`, and this member was not connected to its leader, or as the leader to a quorum.
    #[error("etcdserver: request timed out, possibly due to connection lost")]
    TimeoutConnectionLost,
    /// The stream's client went away.
    #[error("etcdserver: watch canceled")]
    Canceled,
    /// RangeStream with an order.
    #[error("RangeStream does not support custom sort orders")]
    StreamSort,
    /// RangeStream with a revision filter.
    #[error("RangeStream does not support revision filters")]
    StreamFilter,
    /// The CORRUPT alarm is active, or the data is damaged.
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    /// A downgrade's target that is no version.
    #[error("etcdserver: wrong downgrade target version format")]
    DowngradeFormat,
    /// A downgrade's target that is not one minor below the cluster's version.
    #[error("etcdserver: invalid downgrade target version")]
    DowngradeTarget,
    /// A downgrade before the cluster has a version.
    #[error("etcdserver: cluster version not found during downgrade")]
    NoClusterVersion,
    /// A downgrade beside another one.
    #[error("etcdserver: cluster has a downgrade job in progress")]
    DowngradeInProgress,
    /// A downgrade is taken back, and there is none.
    #[error("etcdserver: no inflight downgrade job")]
    NoDowngrade,
    /// Authentication is enabled without the user root.
    #[error("etcdserver: root user does not exist")]
    RootUserMissing,
    /// Authentication is enabled, and the user root does not have the role root.
    #[error("etcdserver: root user does not have root role")]
    RootRoleMissing,
    /// A user of this name is there.
    #[error("etcdserver: user name already exists")]
    UserExists,
    /// Nobody says who asks, or a user without a name is added.
    #[error("etcdserver: user name is empty")]
    UserEmpty,
    /// There is no user of this name.
    #[error("etcdserver: user name not found")]
    UserNotFound,
    /// A role of this name is there.
    #[error("etcdserver: role name already exists")]
    RoleExists,
    /// There is no role of this name.
    #[error("etcdserver: role name not found")]
    RoleNotFound,
    /// A role without a name is added.
    #[error("etcdserver: role name is empty")]
    RoleEmpty,
    /// A login with a wrong name or password.
    #[error("etcdserver: authentication failed, invalid user ID or password")]
    AuthFailed,
    /// A user has no password, or what an entry has for one is none.
    #[error("auth: authentication failed, password was given for no password user")]
    NoPasswordUser,
    /// A permission is granted without saying which.
    #[error("etcdserver: permission not given")]
    PermissionNotGiven,
    /// The user may not do this.
    #[error("etcdserver: permission denied")]
    PermissionDenied,
    /// The user does not have the role that is taken from it.
    #[error("etcdserver: role is not granted to the user")]
    RoleNotGranted,
    /// The role does not have the permission that is taken from it.
    #[error("etcdserver: permission is not granted to the role")]
    PermissionNotGranted,
    /// A login while nobody needs one.
    #[error("etcdserver: authentication is not enabled")]
    AuthNotEnabled,
    /// A token that nobody was given, or that has expired.
    #[error("etcdserver: invalid auth token")]
    InvalidAuthToken,
    /// A change that would leave nobody to administer users, or a permission for no range.
    #[error("etcdserver: invalid auth management")]
    InvalidAuthManagement,
    /// Users were changed since this one was told apart.
    #[error("etcdserver: revision of auth store is old")]
    AuthOldRevision,
    /// An action that does not exist.
    #[error("etcdserver: unknown method")]
    UnknownAction,
    /// A health check of a service that is not tracked.
    #[error("unknown service")]
    UnknownService,
    /// A method that this release does not have.
    #[error("{0} is not implemented by this release of Orlop")]
    NotImplemented(&'static str),
    /// A method that no service has.
    #[error("{0}")]
    UnknownMethod(String),
    /// A message above the receive limit. **Units** bytes.
    #[error("grpc: received message larger than max ({len} vs. {max})")]
    MessageTooLarge {
        /// Announced length.
        len: usize,
        /// Limit.
        max: usize,
    },
    /// An answer that is longer than any client takes. **Units** bytes.
    #[error("trying to send message larger than max ({len} vs. {max})")]
    AnswerTooLarge {
        /// Its length.
        len: usize,
        /// Limit.
        max: usize,
    },
    /// A unary call's message that does not decode.
    #[error("grpc: error unmarshalling request: {0}")]
    Undecodable(&'static str),
    /// A stream's message that does not decode.
    #[error("grpc: failed to unmarshal the received message: {0}")]
    UndecodableInStream(&'static str),
    /// A unary call without a message.
    #[error("EOF")]
    NoMessage,
    /// A unary call's message that ends before its announced length.
    #[error("unexpected EOF")]
    CutShort,
    /// A stream's message that ends before its announced length.
    #[error("unexpected EOF")]
    CutShortInStream,
    /// No message in a call that must have one, and has a stream of answers.
    #[error("cardinality violation: received no request message from non-client-streaming RPC")]
    NoRequest,
    /// More than one message in a call that must have one, and has a stream of answers.
    #[error("cardinality violation: received multiple request messages for non-client-streaming RPC")]
    SeveralRequests,
    /// The time that the client gave for its call is over.
    #[error("context deadline exceeded")]
    DeadlineExceeded,
    /// A message that says that it is compressed, in a call that does not say how.
    #[error("grpc: compressed flag set with identity or empty encoding")]
    CompressedUnnamed,
    /// A message that is neither plain nor compressed.
    #[error("grpc: received unexpected payload format {0}")]
    PayloadFormat(u8),
    /// A message that should be gzip and does not begin so.
    #[error("grpc: failed to decompress the message: {0}")]
    NotGzip(&'static str),
    /// A message in gzip that is damaged.
    #[error("grpc: failed to read decompressed data: {0}")]
    DamagedGzip(&'static str),
    /// A message that is longer than this, once it is decompressed. **Units** bytes.
    #[error("grpc: received message after decompression larger than max {0}")]
    UnpackedTooLarge(usize),
    /// A compressed message without a decompressor for it.
    #[error("grpc: Decompressor is not installed for grpc-encoding \"{0}\"")]
    Compressed(String),
}

impl Error {
    /// What is refused because apply stands still: with other voters, another member can do it.
    pub fn of_standstill(has_other_voters: bool) -> Self {
        if has_other_voters { Self::Stopped } else { Self::Corrupt }
    }

    /// The gRPC code of this error.
    pub fn code(&self) -> Code {
        use Error as E;
        match self {
            E::EmptyKey
            | E::KeyNotFound
            | E::ValueProvided
            | E::LeaseProvided
            | E::TooManyOps
            | E::DuplicateKey
            | E::InvalidSortOption
            | E::TooManyPrefixes
            | E::MemberBadUrls
            | E::MemberUrlsNeedTls
            | E::InvalidClientApiVersion
            | E::DowngradeFormat
            | E::DowngradeTarget
            | E::RequestTooLarge => Code::InvalidArgument,
            E::Compacted | E::FutureRevision | E::LeaseTtlTooLarge => Code::OutOfRange,
            E::LeaseNotFound | E::UnknownService | E::MemberNotFound | E::MemberRemoved => Code::NotFound,
            E::LeaseExists
            | E::MemberExists
            | E::PeerUrlExists
            | E::MemberNotLearner
            | E::LearnerNotReady
            | E::TooManyLearners
            | E::NotForLearner
            | E::NotLeader
            | E::NoClusterVersion
            | E::DowngradeInProgress
            | E::NoDowngrade
            | E::BadLeaderTransferee => Code::FailedPrecondition,
            E::MessageTooLarge { .. } | E::AnswerTooLarge { .. } | E::UnpackedTooLarge(_) | E::NoSpace => {
                Code::ResourceExhausted
            }
            // etcd's table points the first two at values without a code, and lacks the others: Unknown goes over the
            // wire.
            E::TooManyRequests | E::NotEnoughStarted | E::LeaderTransferTimeout | E::NotPrimary | E::UnknownAction => {
                Code::Unknown
            }
            // grpc-go reads a unary call's message outside of what gives errors their codes.
            E::NoMessage | E::CutShort => Code::Unknown,
            E::NoLeader
            | E::Unhealthy
            | E::Stopped
            | E::Timeout
            | E::TimeoutLeaderFailed
            | E::TimeoutConnectionLost
            | E::TimeoutWaitApplied
            | E::TooManyHeld => Code::Unavailable,
            E::Canceled => Code::Canceled,
            E::DeadlineExceeded => Code::DeadlineExceeded,
            E::StreamSort | E::StreamFilter | E::NotImplemented(_) | E::UnknownMethod(_) | E::Compressed(_) => {
                Code::Unimplemented
            }
            E::Corrupt => Code::DataLoss,
            E::Undecodable(_)
            | E::UndecodableInStream(_)
            | E::CutShortInStream
            | E::NoRequest
            | E::SeveralRequests
            | E::CompressedUnnamed
            | E::PayloadFormat(_)
            | E::NotGzip(_)
            | E::DamagedGzip(_) => Code::Internal,
            of_users => of_users.code_of_users(),
        }
    }

    /// As [`Error::code`], for what is about users and roles. etcd's table lacks the others.
    fn code_of_users(&self) -> Code {
        use Error as E;
        match self {
            E::UserEmpty
            | E::RoleEmpty
            | E::AuthFailed
            | E::PermissionNotGiven
            | E::InvalidAuthManagement
            | E::AuthOldRevision => Code::InvalidArgument,
            E::RootUserMissing
            | E::RootRoleMissing
            | E::UserExists
            | E::UserNotFound
            | E::RoleExists
            | E::RoleNotFound
            | E::RoleNotGranted
            | E::PermissionNotGranted
            | E::AuthNotEnabled => Code::FailedPrecondition,
            E::PermissionDenied => Code::PermissionDenied,
            E::InvalidAuthToken => Code::Unauthenticated,
            _ => Code::Unknown,
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let code = error.code();
        Self { code, message: Cow::Owned(error.to_string()) }
    }
}
