//! gRPC messages, cut out of the bytes of a stream's DATA frames.
//!
//! A message that lies in one frame is handed on as it lies there; others are gathered, up to [`MESSAGE_BYTES_MAX`].

use crate::error::Error;

const MESSAGE_BYTES_MAX: usize = 512 << 20;

/// Cuts the bytes of a stream's DATA frames into gRPC messages.
pub(crate) struct MessageReader {
    keeps_messages: bool,
    head: [u8; 5],
    head_bytes: u8,
    /// Of the current message; meaningful once `head` is complete.
    missing_bytes: usize,
    partial: Vec<u8>,
    messages: u32,
}

impl MessageReader {
    /// Without `keeps_messages`, messages are only counted, and taken as empty ones.
    pub(crate) fn new(keeps_messages: bool) -> MessageReader {
        MessageReader {
            keeps_messages,
            head: [0; 5],
            head_bytes: 0,
            missing_bytes: 0,
            partial: Vec::new(),
            messages: 0,
        }
    }

    pub(crate) fn is_between_messages(&self) -> bool {
        self.head_bytes == 0
    }

    /// Messages that are complete.
    pub(crate) fn messages(&self) -> u32 {
        self.messages
    }

    /// Takes the next bytes, and hands each message that they complete to `take`.
    ///
    /// **Errors**: a message that is compressed, or too large.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), Error> {
        while !bytes.is_empty() {
            if usize::from(self.head_bytes) < self.head.len() && !self.feed_head(&mut bytes)? {
                break;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(self.missing_bytes));
            bytes = rest;
            self.missing_bytes -= piece.len();
            let is_whole = self.missing_bytes == 0;
            if !self.keeps_messages {
                if is_whole {
                    take(&[]);
                }
            } else if is_whole && self.partial.is_empty() {
                take(piece);
            } else {
                self.partial.extend_from_slice(piece);
                if is_whole {
                    take(&self.partial);
                    self.partial.clear();
                }
            }
            if is_whole {
                self.head_bytes = 0;
                self.messages = self.messages.saturating_add(1);
            }
        }
        Ok(())
    }

    /// Answers whether the head is complete. An empty message is complete with its head.
    fn feed_head(&mut self, bytes: &mut &[u8]) -> Result<bool, Error> {
        let head_at = usize::from(self.head_bytes);
        let (piece, rest) = bytes.split_at(bytes.len().min(self.head.len() - head_at));
        *bytes = rest;
        self.head[head_at..head_at + piece.len()].copy_from_slice(piece);
        self.head_bytes += u8::try_from(piece.len()).expect("at most 5");
        if usize::from(self.head_bytes) < self.head.len() {
            return Ok(false);
        }
        let [is_compressed, a, b, c, d] = self.head;
        if is_compressed != 0 {
            return Err(Error::Grpc { reason: "compressed reply, which we did not offer to read" });
        }
        self.missing_bytes = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if self.missing_bytes > MESSAGE_BYTES_MAX {
            return Err(Error::Grpc { reason: "reply too large" });
        }
        Ok(true)
    }
}
