//! Runs on: tests.
//!
//! Other members, which the test plays: what they are asked waits until the test answers it.

use std::{cell::RefCell, collections::VecDeque, rc::Rc};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::api::others::{Answered, Asking, Awaited, Others};

/// A question that waits: who is asked, what, and the way back.
type Question = (String, Asking, oneshot::Sender<Answered>);

/// See the head of this file.
#[derive(Clone, Default)]
pub(super) struct Played(Rc<RefCell<VecDeque<Question>>>);

impl Others for Played {
    fn ask<'a>(&'a self, url: &'a str, asking: &'a Asking) -> Awaited<'a> {
        let (answers, answer) = oneshot::channel();
        self.0.borrow_mut().push_back((url.to_owned(), asking.clone(), answers));
        Box::pin(async move { answer.await.map_err(|_dropped| format!("{url}: nobody answers")) })
    }
}

impl Played {
    /// How many questions wait.
    pub(super) fn waiting(&self) -> usize {
        self.0.borrow().len()
    }

    /// The question that came first. It waits on.
    pub(super) fn first(&self) -> Asking {
        self.0.borrow().front().expect("somebody is asked").1.clone()
    }

    /// Answers the question that came first. Returns it, with the URL at which it was asked.
    pub(super) fn answer(&self, status: u16, body: impl Into<Bytes>) -> (String, Asking) {
        let (url, asking, answers) = self.0.borrow_mut().pop_front().expect("somebody is asked");
        drop(answers.send(Answered { status, body: body.into(), ..Answered::default() }));
        (url, asking)
    }

    /// Does not answer the question that came first: its connection breaks. Returns the URL at which it was asked.
    pub(super) fn break_off(&self) -> String {
        self.0.borrow_mut().pop_front().expect("somebody is asked").0
    }
}
