//! Runs on: a thread of its own.
//!
//! Builds a state from what arrives, and blocks on the disk meanwhile.
//!
//! Invariant: the store comes back, in the state or without one, as the last that is told.

use bytes::Bytes;
use engine::Store;
use tokio::sync::{mpsc, oneshot};

use crate::{
    apply::arrived::Arrived,
    cores::STACK_BYTES,
    peer::{
        snapshot,
        state::{receive::Receiver, send::Position},
    },
};

/// Pieces that wait for the disk. A piece is what is read from a socket at once.
const PIECES_MAX: usize = 16;

/// What the thread is given.
pub(super) enum Piece {
    /// The next bytes of the stream.
    Bytes(Bytes),
    /// The stream broke. The answer is how far it has come.
    Broken,
}

/// What the thread tells.
pub(super) enum Told {
    /// How far the state has come.
    Position(Option<Position>),
    /// All of it is here.
    Arrived(Box<Arrived>),
    /// It cannot be taken, or there is no more to come of it.
    Left(Option<Box<Store>>, String),
}

/// The ways to the thread, for pieces, and from it.
pub(super) type Ways<P> = (mpsc::Sender<P>, mpsc::Receiver<Told>);

/// What a thread does with a receiver, and with the pieces that come for it.
type Run<R, P> = fn(R, mpsc::Receiver<P>, &mpsc::Sender<Told>);

/// Starts the thread. It ends when it has told of an end, or when no piece can come any more.
///
/// **Errors** the system's; what the receiver holds is given back then.
pub(super) fn start<R: Send + 'static, P: Send + 'static>(
    receiver: R,
    run: Run<R, P>,
) -> Result<Ways<P>, (std::io::Error, Box<R>)> {
    let (pieces, inbox) = mpsc::channel(PIECES_MAX);
    let (outbox, told) = mpsc::channel(2);
    // A thread that cannot be started would take along what it is given.
    let (give, given) = oneshot::channel();
    let main = move || {
        if let Ok(receiver) = given.blocking_recv() {
            run(receiver, inbox, &outbox);
        }
    };
    match std::thread::Builder::new().name("state".into()).stack_size(STACK_BYTES).spawn(main) {
        Ok(_thread) => drop(give.send(receiver)),
        Err(error) => return Err((error, Box::new(receiver))),
    }
    Ok((pieces, told))
}

/// Builds from a stream of frames.
pub(super) fn run(mut receiver: Receiver, mut inbox: mpsc::Receiver<Piece>, outbox: &mpsc::Sender<Told>) {
    // Whoever reads what is told stays until it has heard of an end.
    let tell = |told| outbox.blocking_send(told).unwrap_or_default();
    let why = loop {
        match inbox.blocking_recv() {
            None => break "it is not wanted any more".to_owned(),
            Some(Piece::Broken) => {
                receiver.broken();
                tell(Told::Position(receiver.position()));
            }
            Some(Piece::Bytes(bytes)) => match receiver.push(&bytes) {
                Ok(None) => {}
                Ok(Some(arrived)) => return tell(Told::Arrived(arrived)),
                Err(error) => break error.to_string(),
            },
        }
    };
    tell(Told::Left(receiver.abandon().map(Box::new), why));
}

/// Builds from the bytes of a database, behind which `None` says that these are all.
pub(super) fn run_database(
    mut database: snapshot::receive::Receiver,
    mut inbox: mpsc::Receiver<Option<Bytes>>,
    outbox: &mpsc::Sender<Told>,
) {
    // Whoever reads what is told stays until it has heard of an end.
    let tell = |told| outbox.blocking_send(told).unwrap_or_default();
    let why = loop {
        match inbox.blocking_recv() {
            None => break "it is not wanted any more".to_owned(),
            Some(Some(bytes)) => {
                if let Err(error) = database.push(&bytes) {
                    break error.to_string();
                }
            }
            Some(None) => {
                return tell(match database.end() {
                    Ok(arrived) => Told::Arrived(arrived),
                    Err((error, store)) => Told::Left(Some(store), error.to_string()),
                });
            }
        }
    };
    tell(Told::Left(Some(database.abandon()), why));
}
