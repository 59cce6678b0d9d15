//! Runs on: the checkpoint thread.
//!
//! Writes checkpoints, one at a time. One that finds no space on its disk waits for some.

use std::{
    sync::mpsc::{Receiver, RecvTimeoutError},
    time::Duration,
};

use engine::{Checkpoint, Error};
use tokio::sync::mpsc::Sender;

use crate::{
    apply::message::ToApply,
    metrics::timed::{CheckpointCommits, Timed},
};

/// Between two tries of a checkpoint that found no space.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(1);

/// Runs what comes as `jobs` until the process ends, and tells apply.
pub fn run(mut disk: Timed<CheckpointCommits>, jobs: &Receiver<Checkpoint>, apply: &Sender<Vec<ToApply>>) {
    while let Ok(mut checkpoint) = jobs.recv() {
        let mut is_waiting = false;
        let result = loop {
            match checkpoint.run(&mut disk) {
                Err(error @ Error::NoSpace { .. }) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        tracing::error!(%error, "a checkpoint waits for space");
                        if apply.blocking_send(vec![ToApply::CheckpointWaits]).is_err() {
                            return;
                        }
                    }
                    // Nothing else is sent while a checkpoint is under way: this is a pause, or the end.
                    if let Err(RecvTimeoutError::Disconnected) = jobs.recv_timeout(NO_SPACE_PAUSE) {
                        return;
                    }
                }
                result => break result,
            }
        };
        if apply.blocking_send(vec![ToApply::Checkpointed(result.map(Box::new))]).is_err() {
            return;
        }
    }
}
