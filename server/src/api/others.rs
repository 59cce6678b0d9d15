//! Runs on: connection core.
//!
//! The way to the peer ports of other members, for calls that only another member can answer: the leader knows how much
//! time leases have left, and how far learners have come.
//!
//! What is asked and what is answered is HTTP; who moves it is not known here (`peer` is).

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use consensus::peer::http1::Headers;

/// One request to the peer port of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asking {
    /// The method: `GET` or `POST`.
    pub method: &'static str,
    /// The path.
    pub path: String,
    /// Header lines beside those about its length and its host, each with its line end.
    pub lines: String,
    /// The body.
    pub body: Bytes,
    /// What the body of the answer may have. **Units** bytes.
    pub answer_bytes_max: usize,
    /// It may be asked twice: it goes over a connection that is kept, and once more if that turns out to be closed.
    pub is_repeatable: bool,
}

/// The answer to an [`Asking`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    /// Status code.
    pub status: u16,
    /// Header lines.
    pub headers: Headers,
    /// The body, all of it.
    pub body: Bytes,
}

/// An answer that is still to come. The error says why none came.
pub type Awaited<'a> = Pin<Box<dyn Future<Output = Result<Answered, String>> + 'a>>;

/// Asks other members. Whoever asks bounds how long it waits.
pub trait Others {
    /// Asks whoever is reached at the peer URL `url`.
    fn ask<'a>(&'a self, url: &'a str, asking: &'a Asking) -> Awaited<'a>;
}

/// Nobody can be asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

impl Others for Nobody {
    fn ask<'a>(&'a self, url: &'a str, _: &'a Asking) -> Awaited<'a> {
        Box::pin(async move { Err(format!("{url}: nobody is asked here")) })
    }
}
