//! Runs on: checkpoint thread.
//!
//! Writes checkpoints, one at a time. A checkpoint that finds no space on its disk waits for space.

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

/// Pause between two tries of a checkpoint that found no space.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(1);

/// Runs the checkpoints that come as `jobs` until the process ends, and reports their ends to apply.
pub fn run(mut disk: Timed<CheckpointCommits>, jobs: &Receiver<Checkpoint>, apply: &Sender<Vec<ToApply>>) {
    while let Ok(mut checkpoint) = jobs.recv() {
        let mut is_waiting = false;
        disk.begin();
        let result = loop {
            match checkpoint.run(&mut disk) {
                Err(error @ Error::NoSpace { .. }) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        tracing::error!(%error, "a checkpoint waits for space");
                        if apply.blocking_send(vec![ToApply::CheckpointWaits]).is_err() {
                            return;
                        }
                    }
                    // Nothing else is sent while a checkpoint is under way. So this waits for the pause, or for the end
                    // of the sender.
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
