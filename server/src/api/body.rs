//! Runs on: connection core.
//!
//! The answer to a unary call: a message, or the means to write a long one.

use bytes::Bytes;

use super::range::large::Large;
use crate::protobuf::PREFIX_BYTES;

/// The answer to a unary call.
#[derive(Debug)]
pub(super) enum Body {
    /// A message, framed.
    Whole(Bytes),
    /// A message that is written piece by piece.
    Large(Box<Large>),
}

impl Body {
    /// Length of the message, without its prefix. **Units** bytes.
    pub(super) fn message_len(&self) -> usize {
        match self {
            Self::Whole(message) => message.len().saturating_sub(PREFIX_BYTES),
            Self::Large(large) => large.message_len(),
        }
    }
}
