//! Runs on: connection core.
//!
//! The message in front of the database: its length as eight bytes, the most significant first, and the message.
//!
//! Bounds: a longer message than [`MESSAGE_BYTES_MAX`] is refused before any memory is taken for it.

use bytes::{Buf, Bytes, BytesMut};
use consensus::{Message, MessageKind, peer::raftpb};

/// **Units** bytes. **Source** etcd v3.7.1 `server/etcdserver/api/rafthttp/http.go snapshotLimitByte`.
pub const MESSAGE_BYTES_MAX: u64 = 64 << 20;
const LENGTH_BYTES: usize = 8;

/// Why a body does not begin with the message of a snapshot. The texts are etcd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It is no message, or too long.
    Undecodable,
    /// It is another message.
    OtherKind,
}

/// Gathers the message from the pieces of a body.
#[derive(Debug, Default)]
pub struct Head {
    gathered: BytesMut,
}

impl Head {
    /// Takes a piece. The message, once it is whole, with what follows it.
    ///
    /// **Errors** see [`Refusal`].
    pub fn push(&mut self, piece: &Bytes) -> Result<Option<(Box<Message>, Bytes)>, Refusal> {
        self.gathered.extend_from_slice(piece);
        let Some(length) = self.gathered.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u64::from_be_bytes(*length);
        if length > MESSAGE_BYTES_MAX {
            return Err(Refusal::Undecodable);
        }
        let end = LENGTH_BYTES + usize::try_from(length).expect("it is bounded");
        if self.gathered.len() < end {
            return Ok(None);
        }
        let mut message = self.gathered.split_to(end);
        message.advance(LENGTH_BYTES);
        let decoded = raftpb::decode_message(message.freeze()).map_err(|_why| Refusal::Undecodable)?;
        let message = decoded.filter(|message| message.kind == MessageKind::Snapshot).ok_or(Refusal::OtherKind)?;
        Ok(Some((Box::new(message), self.gathered.split().freeze())))
    }
}

#[cfg(test)]
mod tests {
    use consensus::{ConfState, EntryId, Snapshot, peer::pieces::Pieces};

    use super::*;

    fn body(message: &[u8], database: &[u8]) -> Vec<u8> {
        [&(message.len() as u64).to_be_bytes(), message, database].concat()
    }

    #[test]
    fn the_message_is_gathered_from_any_pieces_and_nothing_of_the_database_is_lost() {
        let state = Snapshot {
            at: EntryId { index: 9, term: 2 },
            conf_state: ConfState { voters: vec![1, 2], learners: vec![] },
            ..Snapshot::default()
        };
        let sent = Message {
            kind: MessageKind::Snapshot,
            to: 1,
            from: 2,
            term: 2,
            snapshot: Some(Box::new(state)),
            ..Message::default()
        };
        let mut out = Pieces::default();
        raftpb::encode_message(&sent, &mut out);
        let encoded = out.take().concat();
        let body = body(&encoded, b"database");
        for size in [1, 3, 8, 9, body.len()] {
            let (mut head, mut rest, mut message) = (Head::default(), Vec::new(), None);
            for piece in body.chunks(size) {
                match message {
                    Some(_) => rest.extend_from_slice(piece),
                    None => {
                        if let Some((found, behind)) = head.push(&Bytes::copy_from_slice(piece)).unwrap() {
                            message = Some(*found);
                            rest.extend_from_slice(&behind);
                        }
                    }
                }
            }
            assert_eq!((message.as_ref(), &rest[..]), (Some(&sent), &b"database"[..]), "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_snapshot_is_refused_before_it_is_taken() {
        let push = |body: Vec<u8>| Head::default().push(&body.into()).map(|taken| taken.is_some());
        assert_eq!(push(u64::MAX.to_be_bytes().to_vec()), Err(Refusal::Undecodable));
        assert_eq!(push((MESSAGE_BYTES_MAX + 1).to_be_bytes().to_vec()), Err(Refusal::Undecodable));
        assert_eq!(push(MESSAGE_BYTES_MAX.to_be_bytes().to_vec()), Ok(false));
        assert_eq!(push(body(&[0xff, 0xff], b"")), Err(Refusal::Undecodable));
        assert_eq!(push(body(&[8, 8], b"")), Err(Refusal::OtherKind), "a heartbeat");
    }
}
