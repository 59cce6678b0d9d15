//! Runs on: connection core.
//!
//! Bounds what the frames of one client may take: of a turn, and of memory for their answers.
//!
//! h2 reads as long as there is something to read, and answers each SETTINGS and PING. A client that does nothing but
//! send them would have a core for itself, and their answers would gather if it did not read. So a turn reads a bounded
//! number of frames, and the client's next frames come after the turns of all others. While many answers to such frames
//! wait to be written, nothing more is read: the client's own socket fills up, as with grpc-go.
//!
//! Frames of calls (HEADERS, DATA) are bounded by the windows and by the number of streams, and wait in `h2`. All
//! others are called control frames here.
//! **Source** grpc-go v1.82.1 `internal/transport/controlbuf.go maxQueuedTransportResponseFrames`.

use super::frames::{Head, kind};

/// Frames of calls that one turn reads. A client with a thousand calls under way is served in one turn.
const CALL_FRAMES_MAX: u32 = 4096;
/// Control frames that one turn reads.
const CONTROL_FRAMES_MAX: u32 = 128;
/// Bytes that one read takes from a client whose last turn was full of control frames: about fifty of the shortest.
/// **Units** bytes.
const WARY_READ_BYTES: usize = 512;
/// Control frames that wait to be written. At the bound, nothing is read. **Units** bytes.
const CONTROL_BYTES_MAX: usize = 16 * 1024;

/// See the head of this file.
#[derive(Debug)]
pub struct Ration {
    call_frames_left: u32,
    control_frames_left: u32,
    is_wary: bool,
    /// Bytes of written control frames, since nothing waited to be sent.
    control_bytes: usize,
}

impl Default for Ration {
    fn default() -> Self {
        let (call_frames_left, control_frames_left) = (CALL_FRAMES_MAX, CONTROL_FRAMES_MAX);
        Self { call_frames_left, control_frames_left, is_wary: false, control_bytes: 0 }
    }
}

impl Ration {
    /// Begins the next turn.
    pub fn renew(&mut self) {
        self.is_wary = self.control_frames_left == 0;
        (self.call_frames_left, self.control_frames_left) = (CALL_FRAMES_MAX, CONTROL_FRAMES_MAX);
    }

    /// Counts a frame that was read.
    pub fn received(&mut self, head: Head) {
        let left = if head.is_of_call() { &mut self.call_frames_left } else { &mut self.control_frames_left };
        *left = left.saturating_sub(1);
    }

    /// Whether this turn has read enough.
    pub fn is_used_up(&self) -> bool {
        self.call_frames_left == 0 || self.control_frames_left == 0
    }

    /// Bytes that the next read may take; `None` for any number.
    pub fn read_bytes_max(&self) -> Option<usize> {
        self.is_wary.then_some(WARY_READ_BYTES)
    }

    /// Counts a frame that was written.
    pub fn written(&mut self, head: Head) {
        if !head.is_of_call() {
            self.control_bytes += head.frame_bytes();
        }
    }

    /// Notes that everything that was written has been sent.
    pub fn sent(&mut self) {
        self.control_bytes = 0;
    }

    /// Whether so many control frames wait that nothing may be read until they are sent.
    pub fn is_unread(&self) -> bool {
        self.control_bytes >= CONTROL_BYTES_MAX
    }
}

impl Head {
    fn is_of_call(self) -> bool {
        matches!(self.kind, kind::DATA | kind::HEADERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: u8 = 4;

    fn head(kind: u8) -> Head {
        Head { kind, flags: 0, stream: 0, len: 0 }
    }

    #[test]
    fn a_turn_ends_after_its_frames_and_the_next_reads_less_of_a_flood() {
        let mut ration = Ration::default();
        for (kind, frames_max) in [(kind::DATA, CALL_FRAMES_MAX), (SETTINGS, CONTROL_FRAMES_MAX)] {
            for _ in 0..frames_max {
                assert!(!ration.is_used_up());
                ration.received(head(kind));
            }
            assert!(ration.is_used_up());
            ration.received(head(kind));
            ration.renew();
            assert_eq!(ration.read_bytes_max().is_some(), kind == SETTINGS);
        }
        ration.renew();
        assert_eq!(ration.read_bytes_max(), None, "the flood is over");
    }

    #[test]
    fn answers_that_nobody_reads_stop_the_reading_until_they_are_sent() {
        let mut ration = Ration::default();
        (0..CONTROL_BYTES_MAX / 9).for_each(|_| ration.written(head(kind::DATA)));
        (0..CONTROL_BYTES_MAX / 9).for_each(|_| ration.written(head(SETTINGS)));
        assert!(!ration.is_unread());
        ration.written(head(SETTINGS));
        assert!(ration.is_unread());
        ration.sent();
        assert!(!ration.is_unread());
    }
}
