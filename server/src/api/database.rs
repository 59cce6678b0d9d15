//! Runs on: connection core.
//!
//! This member's newest state as the database that etcd would have: captured, measured, and made piece by piece.
//!
//! The first pages of such a file name what comes last. So there are two walks over the records: one for the layout,
//! one for the bytes. Between two steps only a revision is held ([`crate::floor`]) and about [`PIECE_BYTES`]: who takes
//! the bytes slowly costs no more than who takes them at once.
//!
//! Most clients write the file to a disk of this host and sync it at the end, and so does a member that is tried out
//! beside this one. If that is the log's disk, puts would wait until all of the file is written. So the log's file
//! system is written back as the file grows ([`WriteBack`]), and the stream waits for that, but not long.

use std::time::Duration;

use engine::ReadView;
use tokio::task::JoinHandle;

use super::desk::{Consistency, Desk};
use crate::{
    apply::restore::Restore,
    error::Error,
    etcd_files::{
        bolt::writer::{FileWriter, Layout, PAGE_SIZE},
        content::Walk,
        state::State,
    },
    floor::Floor,
};

/// Bytes of the file that are made before they are taken. A single node or record may be longer.
const PIECE_BYTES: usize = 64 << 10;
/// Records that one step looks at. Each may take a search in the key tree, and other requests wait until the step ends.
const STEP_RECORDS: usize = 256;
/// How long the end of a long entry is waited for, between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How long a write-back is waited for. Whoever is sent a state gives up a connection on which nothing comes for 5 s,
/// and what others have made dirty may take longer than that.
const WRITE_BACK_MAX: Duration = Duration::from_secs(1);

/// See the head of this file. One write-back at a time; the bytes go on if it takes long.
#[derive(Debug, Default)]
pub struct WriteBack {
    /// Bytes that were taken since a write-back began.
    taken: u64,
    under_way: Option<JoinHandle<Result<(), engine::Error>>>,
}

impl WriteBack {
    /// Takes in that so many bytes were taken, and waits until what others have written to the log's file system is on
    /// its medium, if that is due.
    pub async fn taken(&mut self, desk: &Desk, bytes: usize) {
        let every = desk.shared.limits.snapshot_write_back_bytes;
        self.taken += bytes as u64;
        let is_busy = self.under_way.as_ref().is_some_and(|under_way| !under_way.is_finished());
        if every == 0 || self.taken < every || is_busy {
            return;
        }
        self.taken = 0;
        let file_system = desk.shared.log_file_system.clone();
        self.wait_for(move || file_system.write_back()).await;
    }

    async fn wait_for(&mut self, write_back: impl FnOnce() -> Result<(), engine::Error> + Send + 'static) {
        let mut under_way = tokio::task::spawn_blocking(write_back);
        self.under_way = match tokio::time::timeout(WRITE_BACK_MAX, &mut under_way).await {
            Ok(Ok(Err(error))) => {
                tracing::debug!(%error, "what others wrote beside the log was not written back");
                None
            }
            Ok(_) => None,
            Err(_late) => Some(under_way),
        };
    }
}

/// Takes the newest state that stands between two entries, and a floor that keeps it readable.
///
/// **Errors** damaged data; too many revisions are held.
pub async fn capture(desk: &Desk) -> Result<(State, Floor), Error> {
    loop {
        let view = desk.view(Consistency::Serializable).await?;
        if view.is_unfinished() {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        match desk.hold(view.compact_revision().max(0)) {
            Ok(floor) => return Ok((read_state(desk, &view).await?, floor)),
            // A compaction came between the two. The newest state has changed.
            Err(Error::Compacted) => tokio::task::yield_now().await,
            Err(error) => return Err(error),
        }
    }
}

async fn read_state(desk: &Desk, view: &ReadView) -> Result<State, Error> {
    let mut restore = Restore::new(view);
    let tables = desk.step_through(view, |_, budget| restore.step(budget)).await?;
    Ok(State::of(view, tables.map_err(|_damaged| Error::Corrupt)?))
}

/// The layout of the file.
///
/// **Errors** damaged data; the revision was held for too long.
pub async fn measure(desk: &Desk, state: &State, floor: &Floor) -> Result<Layout, Error> {
    let mut walk = Walk::new(state, FileWriter::measuring(PAGE_SIZE));
    while !step(desk, floor, &mut walk).await? {}
    let (_, layout) = walk.finish().finish().expect("nothing was announced");
    Ok(layout)
}

/// Makes one step on the newest view. Returns whether it was the last one.
///
/// **Errors** as [`measure`].
pub async fn step(desk: &Desk, floor: &Floor, walk: &mut Walk<'_>) -> Result<bool, Error> {
    let piece = |view: &ReadView, _| match walk.step(view, STEP_RECORDS, PIECE_BYTES) {
        Ok(done) => Ok(Some(done.is_some())),
        Err(fault) => Err([fault]),
    };
    let is_done = desk.step_along(floor, piece).await?;
    // A client that takes everything at once gives the core no other pause.
    tokio::task::yield_now().await;
    Ok(is_done)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_write_back_that_takes_long_is_not_waited_for_and_stays_the_only_one() {
        let (end, ended) = mpsc::channel::<()>();
        let mut write_back = WriteBack::default();
        write_back.wait_for(move || ended.recv().map(drop).map_err(|_gone| engine::Error::Stopped)).await;
        assert!(write_back.under_way.as_ref().is_some_and(|under_way| !under_way.is_finished()));
        end.send(()).unwrap();
        write_back.under_way.take().unwrap().await.unwrap().unwrap();
        write_back.wait_for(|| Ok(())).await;
        assert!(write_back.under_way.is_none());
    }
}
