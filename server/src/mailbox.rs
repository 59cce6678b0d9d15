//! Runs on: every core.
//!
//! Messages from one core to another, many at a time.
//!
//! A core posts messages one by one into its [`Post`]. They leave together at the end of the core's turn: the first
//! message wakes the receiver, which then runs after all tasks that were ready before. A receiver on the same thread
//! takes the messages out of the post itself ([`Inbox::own`]). For a receiver on another thread, [`carry`] moves each
//! turn's messages as one. So a turn costs one wake-up and one message between threads, however many requests it
//! proposed.
//!
//! Invariants:
//! - The messages of one sender arrive in the order in which they were posted.
//! - A post holds at most `messages_max`. It refuses one more, and the sender tells its client. A channel between
//!   threads holds at most [`TURNS_MAX`] turns. While it is full, messages gather in the post.

use std::{cell::RefCell, rc::Rc};

use tokio::sync::{Notify, mpsc};

/// Turns of all senders that may wait between two threads.
pub const TURNS_MAX: usize = 1024;

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many messages wait as are allowed.
    Full,
    /// The receiver is gone.
    Closed,
}

#[derive(Debug)]
struct Waiting<T> {
    messages: Vec<T>,
    is_closed: bool,
}

/// The messages of one core for another core, until they are taken.
#[derive(Debug)]
pub struct Post<T> {
    waiting: RefCell<Waiting<T>>,
    messages_max: usize,
    wake: Notify,
}

impl<T> Post<T> {
    /// An empty post for at most `messages_max` messages.
    pub fn new(messages_max: usize) -> Rc<Self> {
        let waiting = RefCell::new(Waiting { messages: Vec::new(), is_closed: false });
        Rc::new(Self { waiting, messages_max, wake: Notify::new() })
    }

    /// Posts a message.
    ///
    /// **Errors** the message was not taken.
    pub fn send(&self, message: T) -> Result<(), Refused> {
        self.give(message).map_err(|(refused, _)| refused)
    }

    /// Posts a message, which comes back if it is not taken.
    ///
    /// **Errors** as [`Post::send`].
    pub fn give(&self, message: T) -> Result<(), (Refused, T)> {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_closed {
            return Err((Refused::Closed, message));
        }
        if waiting.messages.len() >= self.messages_max {
            return Err((Refused::Full, message));
        }
        waiting.messages.push(message);
        if waiting.messages.len() == 1 {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Moves the waiting messages to the end of `taken`. Returns whether there were any.
    pub fn take(&self, taken: &mut Vec<T>) -> bool {
        let messages = &mut self.waiting.borrow_mut().messages;
        let has_any = !messages.is_empty();
        if has_any && taken.is_empty() {
            // Both vectors keep their memory for the next turns.
            std::mem::swap(messages, taken);
        } else {
            taken.append(messages);
        }
        has_any
    }

    /// Resolves when a message was posted since the last take. It may resolve once more without one.
    pub async fn posted(&self) {
        self.wake.notified().await;
    }

    /// Refuses everything from now on.
    pub fn close(&self) {
        self.waiting.borrow_mut().is_closed = true;
    }
}

/// A channel to a core on another thread, for the turns of all senders.
pub fn turns<T>() -> (mpsc::Sender<Vec<T>>, mpsc::Receiver<Vec<T>>) {
    mpsc::channel(TURNS_MAX)
}

/// Carries posted messages to a receiver on another thread, until the receiver is gone.
pub async fn carry<T>(post: Rc<Post<T>>, to: mpsc::Sender<Vec<T>>) {
    loop {
        post.posted().await;
        let mut turn = Vec::new();
        if post.take(&mut turn) && to.send(turn).await.is_err() {
            return post.close();
        }
    }
}

/// The inputs of a core: from other threads, and from the core that runs on its own thread, if there is one.
#[derive(Debug)]
pub struct Inbox<T> {
    own: Option<Rc<Post<T>>>,
    others: mpsc::Receiver<Vec<T>>,
}

impl<T> Inbox<T> {
    /// An inbox for the messages that other threads send to `others`. It stays on the thread where it is made.
    pub fn new(others: mpsc::Receiver<Vec<T>>) -> Self {
        Self { own: None, others }
    }

    /// Also takes messages from `post`, which belongs to a core on this thread.
    pub fn own(&mut self, post: Rc<Post<T>>) {
        assert!(self.own.replace(post).is_none(), "one core runs on a thread");
    }

    /// Waits for messages and moves all of them to the end of `taken`. Returns `false` when no more can come.
    ///
    /// Dropping the future loses nothing.
    pub async fn receive(&mut self, taken: &mut Vec<T>) -> bool {
        loop {
            if self.take(taken) {
                return true;
            }
            let Some(own) = &self.own else {
                let Some(turn) = self.others.recv().await else { return false };
                taken.extend(turn);
                return true;
            };
            tokio::select! {
                biased;
                () = own.posted() => {}
                turn = self.others.recv(), if !self.others.is_closed() => if let Some(turn) = turn {
                    taken.extend(turn);
                    return true;
                },
            }
        }
    }

    /// Moves the messages that are there to the end of `taken`, without waiting. Returns whether there were any.
    pub fn take(&mut self, taken: &mut Vec<T>) -> bool {
        let before = taken.len();
        if let Some(own) = &self.own {
            own.take(taken);
        }
        while let Ok(turn) = self.others.try_recv() {
            taken.extend(turn);
        }
        taken.len() > before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn received(inbox: &mut Inbox<u32>) -> Vec<u32> {
        let mut taken = Vec::new();
        assert!(inbox.receive(&mut taken).await);
        taken
    }

    #[tokio::test]
    async fn what_one_turn_posts_arrives_together_and_in_order() {
        let local = tokio::task::LocalSet::new();
        let (sender, others) = turns();
        let mut inbox = Inbox::new(others);
        let (own, other) = (Post::new(8), Post::new(8));
        inbox.own(Rc::clone(&own));
        let run = async {
            tokio::task::spawn_local(carry(Rc::clone(&other), sender));
            (1..4).for_each(|number| other.send(number).unwrap());
            assert_eq!(received(&mut inbox).await, [1, 2, 3]);
            (4..6).for_each(|number| own.send(number).unwrap());
            assert_eq!(received(&mut inbox).await, [4, 5]);
        };
        local.run_until(run).await;
    }

    #[tokio::test]
    async fn a_full_post_refuses_and_one_without_a_receiver_is_closed() {
        let local = tokio::task::LocalSet::new();
        let (sender, inbox) = turns::<u32>();
        let post = Post::new(2);
        post.send(1).unwrap();
        post.send(2).unwrap();
        assert_eq!(post.send(3), Err(Refused::Full));
        drop(inbox);
        local.run_until(carry(Rc::clone(&post), sender)).await;
        assert_eq!(post.send(4), Err(Refused::Closed));
    }

    #[tokio::test]
    async fn an_inbox_ends_when_nobody_can_send_any_more() {
        let (sender, others) = turns();
        let mut inbox = Inbox::new(others);
        sender.send(vec![1]).await.unwrap();
        drop(sender);
        assert_eq!(received(&mut inbox).await, [1]);
        assert!(!inbox.receive(&mut Vec::new()).await);
    }
}
