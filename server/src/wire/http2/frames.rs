//! Runs on: connection core.
//!
//! Follows the frames of one direction of an HTTP/2 connection, below h2. It finds where each frame begins and its
//! kind.
//!
//! It reads nine bytes of each frame and skips the rest. It checks nothing, because h2 does. If h2 closes a connection
//! for its frames, what this file says of them does not matter.
//! **Source** RFC 9113, 3.4 and 4.1.

/// **Units** bytes of a frame's head.
const HEAD_BYTES: usize = 9;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream.
    pub stream: u32,
    /// Length of what comes after the head. **Units** bytes.
    pub len: usize,
}

impl Head {
    /// Length of the whole frame. **Units** bytes.
    pub fn frame_bytes(self) -> usize {
        HEAD_BYTES + self.len
    }
}

/// Types of frames.
pub mod kind {
    /// DATA.
    pub const DATA: u8 = 0;
    /// HEADERS.
    pub const HEADERS: u8 = 1;
    /// PING.
    pub const PING: u8 = 6;
    /// GOAWAY.
    pub const GOAWAY: u8 = 7;
}

/// See the head of this file.
#[derive(Debug)]
pub struct Frames {
    /// Bytes before the next head.
    skip: usize,
    head: [u8; HEAD_BYTES],
    head_len: usize,
}

impl Frames {
    /// Frames that come after `preface` bytes.
    pub fn behind(preface: usize) -> Self {
        Self { skip: preface, head: [0; HEAD_BYTES], head_len: 0 }
    }

    /// Whether the bytes so far end at the end of a frame.
    pub fn is_between(&self) -> bool {
        self.skip == 0 && self.head_len == 0
    }

    /// Takes the next bytes, and hands on the head of each frame that begins in them.
    pub fn feed(&mut self, mut bytes: &[u8], mut on_head: impl FnMut(Head)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let taken = (HEAD_BYTES - self.head_len).min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len < HEAD_BYTES {
                return;
            }
            let [l0, l1, l2, kind, flags, s0, s1, s2, s3] = self.head;
            self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
            self.head_len = 0;
            on_head(Head { kind, flags, stream: u32::from_be_bytes([s0 & 0x7f, s1, s2, s3]), len: self.skip });
        }
    }
}

/// A GOAWAY frame.
pub fn go_away(last_stream: u32, code: u32, text: &[u8]) -> Vec<u8> {
    let len = u32::try_from(8 + text.len()).expect("a text of ours").to_be_bytes();
    let mut frame = vec![len[1], len[2], len[3], kind::GOAWAY, 0, 0, 0, 0, 0];
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&code.to_be_bytes());
    frame.extend_from_slice(text);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_wherever_the_bytes_are_cut() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let preface = bytes.len();
        bytes.extend_from_slice(&[0, 0, 0, 4, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(&[0, 0, 8, kind::PING, 1, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend_from_slice(&[0, 1, 0, kind::HEADERS, 5, 0x80, 0, 0, 3]);
        bytes.extend_from_slice(&[9; 256]);
        bytes.extend_from_slice(&go_away(3, 11, b"text"));
        let whole = [(4, 0, 0, 0), (kind::PING, 1, 0, 8), (kind::HEADERS, 5, 3, 256), (kind::GOAWAY, 0, 0, 12)];
        for step in 1..bytes.len() {
            let (mut frames, mut found) = (Frames::behind(preface), Vec::new());
            for piece in bytes.chunks(step) {
                frames.feed(piece, |head| found.push((head.kind, head.flags, head.stream, head.len)));
            }
            assert_eq!(found, whole, "in pieces of {step}");
            assert!(frames.is_between());
        }
    }
}
