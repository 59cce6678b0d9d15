//! From frames to a state beside the live one.
//!
//! Invariants: `next` is above every record that was taken. A frame that was taken is never asked for again. What has
//! arrived becomes a state only at its end, and only if it has the HashKV that the sender has.

use std::path::Path;

use bytes::Bytes;
use consensus::{EntryId, Identity};
use engine::{ReadView, Revision, Store, disk::Disk, load_for};
use prost::Message;

use super::{
    frame::{End, Frames, Head, Kind, Malformed, malformed, take_pair},
    send::{FORM, is_sent},
};
use crate::{
    apply::{arrived::Arrived, restore::restore},
    etcd_files::{self, build::Builder, schema},
};

/// Why a state cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The sender errs, or bytes were damaged on their way.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The state cannot be built.
    #[error(transparent)]
    Build(#[from] etcd_files::error::Error),
    /// The storage failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// A table of the state does not decode.
    #[error(transparent)]
    Table(#[from] crate::apply::restore::Damaged),
}

/// Receives one state. Blocks on its disk.
pub struct Receiver {
    builder: Option<Builder>,
    identity: Identity,
    frames: Frames,
    head: Option<Head>,
    /// A head of the present stream has come.
    is_begun: bool,
    has_rows: bool,
    next: Revision,
}

impl Receiver {
    /// Builds the state in `store`, a state beside the live one (`Store::incoming`), for the member `identity`. No
    /// frame is longer than `frame_bytes_max` unpacked.
    pub fn new(disk: Box<dyn Disk>, store: Store, identity: Identity, frame_bytes_max: usize) -> Self {
        Self {
            builder: Some(Builder::incoming(disk, store)),
            identity,
            frames: Frames::new(frame_bytes_max),
            head: None,
            is_begun: false,
            has_rows: false,
            next: Revision::MIN,
        }
    }

    /// What the sender need not send again if it goes on with the same state: that state's last entry, whether all rows
    /// have come, and the revision behind the last record.
    pub fn position(&self) -> Option<(EntryId, bool, Revision)> {
        self.head.map(|head| (EntryId { index: head.index, term: head.term }, self.has_rows, self.next))
    }

    /// The stream broke; another one may follow.
    pub fn broken(&mut self) {
        self.frames.forget();
        self.is_begun = false;
    }

    /// Gives up. The caller hands the store to `Store::discard`.
    pub fn abandon(self) -> Option<Store> {
        self.builder.map(Builder::into_store)
    }

    /// Takes a piece of the stream. The state, once it has all arrived.
    ///
    /// **Errors** the transfer must be given up.
    pub fn push(&mut self, piece: &[u8]) -> Result<Option<Box<Arrived>>, Error> {
        self.frames.push(piece);
        while let Some((kind, body)) = self.frames.next()? {
            match kind {
                Kind::Head => self.begin(&body)?,
                _ if !self.is_begun => return Ok(malformed("a stream begins with its head")?),
                Kind::Rows => self.rows(body)?,
                Kind::Records => self.records(body)?,
                Kind::End => return self.end(&body).map(Some),
            }
        }
        Ok(None)
    }

    fn builder(&mut self) -> Result<&mut Builder, Malformed> {
        self.builder.as_mut().ok_or(Malformed { what: "something comes behind the end" })
    }

    fn begin(&mut self, body: &Bytes) -> Result<(), Malformed> {
        let Ok(head) = Head::decode(body.clone()) else { return malformed("its head") };
        let is_sound = head.form == FORM && head.cluster_id == self.identity.cluster_id && head.index > 0;
        let fits = head.revision >= 1 && (-1..=head.revision).contains(&head.compact_revision);
        if !is_sound || !fits || self.is_begun {
            return malformed("its head");
        }
        let known = self.head.get_or_insert(head);
        let is_same = (head.index, head.term, head.revision, head.compact_revision)
            == (known.index, known.term, known.revision, known.compact_revision);
        let goes_on = (head.has_rows, Revision::new(head.from_main, head.from_sub)) == (self.has_rows, self.next);
        if !is_same || !goes_on {
            return malformed("a stream does not go on where the last one broke");
        }
        self.is_begun = true;
        Ok(())
    }

    fn rows(&mut self, mut body: Bytes) -> Result<(), Error> {
        if self.has_rows {
            return Ok(malformed("rows behind records")?);
        }
        while let Some((key, value)) = take_pair(&mut body)? {
            if key.is_empty() || !is_sent(&key) {
                return Ok(malformed("a row that is not replicated")?);
            }
            self.builder()?.row(&key, &value)?;
        }
        Ok(())
    }

    fn records(&mut self, mut body: Bytes) -> Result<(), Error> {
        self.has_rows = true;
        let last = self.head.map_or(0, |head| head.revision);
        while let Some((key, value)) = take_pair(&mut body)? {
            let record = schema::read_record(&key, &value).ok_or(Malformed { what: "a record" })?;
            if record.revision < self.next || record.revision.main > last {
                return Ok(malformed("records do not ascend")?);
            }
            self.next = Revision::new(record.revision.main, record.revision.sub + 1);
            self.builder()?.record(&record)?;
        }
        Ok(())
    }

    fn end(&mut self, body: &Bytes) -> Result<Box<Arrived>, Error> {
        let Ok(End { hash }) = End::decode(body.clone()) else { return Ok(malformed("its end")?) };
        let head = self.head.expect("the stream has begun");
        let Some(builder) = self.builder.take() else { return Ok(malformed("something comes behind the end")?) };
        let at = EntryId { index: head.index, term: head.term };
        let (mut disk, store) = builder.finish_incoming(&self.identity, at, (head.revision, head.compact_revision))?;
        let view = store.mvcc().view();
        let dir = store.dir().to_path_buf();
        let mut load = |fault| engine::load(disk.as_mut(), &dir, fault).map_err(Error::from);
        let tables = restore(&view, &mut load)?;
        if tables.conf_state.voters.is_empty() {
            return Ok(malformed("a state without a configuration")?);
        }
        if hash_of(disk.as_mut(), &dir, &view)? != hash {
            return Ok(malformed("the state is not the sender's: their hashes differ")?);
        }
        Ok(Box::new(Arrived { store, at, tables }))
    }
}

fn hash_of(disk: &mut dyn Disk, dir: &Path, view: &ReadView) -> Result<u32, engine::Error> {
    const RECORDS: usize = 4096;
    let mut hash = view.hash_kv(view.revision());
    loop {
        if let Some((hash, _)) = load_for(disk, dir, || hash.step(view, RECORDS))? {
            return Ok(hash);
        }
    }
}
