//! Runs on: a thread of its own.
//!
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
    send::{FORM, Position, is_sent},
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

impl Error {
    /// Whether this member's own disk is the reason, and not what was sent.
    pub fn is_of_storage(&self) -> bool {
        matches!(self, Self::Engine(_) | Self::Build(etcd_files::error::Error::Engine(_)))
    }
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
    rows: u64,
    records: u64,
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
            rows: 0,
            records: 0,
            next: Revision::MIN,
        }
    }

    /// What the sender need not send again if it goes on with the same state.
    pub fn position(&self) -> Option<Position> {
        let Self { has_rows, next, records, .. } = *self;
        self.head.map(|Head { index, term, .. }| Position { at: EntryId { index, term }, has_rows, next, records })
    }

    /// The stream broke; another one may follow.
    pub fn broken(&mut self) {
        self.frames.forget();
        self.is_begun = false;
    }

    /// Gives up. The caller hands the store to `Apply::discard`. `None` if the state has arrived.
    pub fn abandon(self) -> Option<Store> {
        self.builder.map(Builder::into_store)
    }

    /// Takes a piece of the stream. The state, once it has all arrived.
    ///
    /// **Errors** the transfer must be given up.
    pub fn push(&mut self, piece: &[u8]) -> Result<Option<Box<Arrived>>, Error> {
        self.frames.push(piece);
        while let Some((kind, body)) = self.frames.take()? {
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
        if !head.has_rows {
            self.rows = 0;
        }
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
            self.rows += 1;
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
            self.records += 1;
            self.builder()?.record(&record)?;
        }
        Ok(())
    }

    fn end(&mut self, body: &Bytes) -> Result<Box<Arrived>, Error> {
        let Ok(End { hash, rows, records }) = End::decode(body.clone()) else { return Ok(malformed("its end")?) };
        if (rows, records) != (self.rows, self.records) {
            return Ok(malformed("rows or records are missing")?);
        }
        let head = self.head.expect("the stream has begun");
        let at = EntryId { index: head.index, term: head.term };
        let (identity, revisions) = (self.identity, (head.revision, head.compact_revision));
        let (disk, store) = self.builder()?.finish_incoming(&identity, at, revisions)?;
        let view = store.mvcc().view();
        let dir = store.dir().to_path_buf();
        let mut load = |fault| engine::load(disk, &dir, fault).map_err(Error::from);
        let tables = restore(&view, &mut load)?;
        if tables.conf_state.voters.is_empty() {
            return Ok(malformed("a state without a configuration")?);
        }
        if hash_of(disk, &dir, &view)? != hash {
            return Ok(malformed("the state is not the sender's: their hashes differ")?);
        }
        let store = self.builder.take().expect("it has just ended the state").into_store();
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

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use consensus::ConfState;
    use engine::{
        Fault, Mvcc,
        disk::sim::{Random, SimStorage},
        store,
    };

    use super::{super::frame::encode, *};
    use crate::{
        apply::table,
        floor::Floors,
        lease,
        peer::state::send::{Sender, Step, Stop},
    };

    const IDENTITY: Identity = Identity { cluster_id: 7, member_id: 2 };
    const DIR: &str = "/data";

    /// The state of the other member: keys with and without leases, a compaction, tables.
    fn origin() -> Mvcc {
        let mut mvcc = Mvcc::in_memory();
        let mut write = mvcc.begin();
        let conf_state = ConfState { voters: vec![1, 2, 3], learners: vec![9] };
        write.meta_put(table::CONF_STATE, &table::encode_conf_state(&conf_state)).unwrap();
        write.meta_put(table::IDENTITY, &table::encode_identity(&Identity { member_id: 1, ..IDENTITY })).unwrap();
        (1..400).for_each(|id| write.meta_put(&lease::grant_key(id), &lease::encode_grant(60)).unwrap());
        drop(write.finish());
        for number in 0..3000_u32 {
            let key = format!("/registry/{}", number.wrapping_mul(2_654_435_761) % 1500);
            let mut write = mvcc.begin();
            write.put(key.clone().into(), vec![number.to_le_bytes()[0]; 300].into(), i64::from(number % 400)).unwrap();
            if number % 10 == 0 {
                write.delete(key.as_bytes()).unwrap();
            }
            drop(write.finish());
        }
        mvcc.compact(1200);
        drop(mvcc.publish(5000, 3));
        mvcc
    }

    fn records(disk: &mut dyn Disk, view: &ReadView) -> Vec<engine::Record> {
        let mut cursor = view.records_from(Revision::MIN);
        let mut records = Vec::new();
        while let Some(record) = load_for(disk, Path::new(DIR), || cursor.next()).unwrap() {
            if load_for(disk, Path::new(DIR), || view.is_kept(&record, view.compact_revision())).unwrap() {
                records.push(record);
            }
        }
        records
    }

    fn next(sender: &mut Sender, view: &ReadView) -> Option<Bytes> {
        loop {
            match sender.step(view) {
                Ok(Step::Frame(frame)) => return Some(frame),
                Ok(Step::Nothing) => {}
                Ok(Step::Done) => return None,
                Err(Stop::Fault(Fault { .. })) => panic!("all is in memory"),
                Err(Stop::Lost(error)) => panic!("{error:?}"),
            }
        }
    }

    /// Sends the state; of a hundred frames `breaks` are cut, and the stream goes on behind what has come.
    fn transfer(origin: &Mvcc, storage: &SimStorage, breaks: u64) -> Box<Arrived> {
        let mut random = Random::new(breaks);
        let view = origin.view();
        let floors = Floors::new(Arc::default(), 9, Duration::from_secs(600));
        let floor = floors.hold(view.compact_revision(), Duration::ZERO, || origin.view()).unwrap();
        let mut sender = Sender::new(Arc::clone(&view), floor, IDENTITY.cluster_id);
        let options = store::Options { cache_bytes: 1 << 20, ..store::Options::default() };
        let live = Store::open(&mut storage.disk(), Path::new(DIR), options).unwrap();
        let mut receiver = Receiver::new(Box::new(storage.disk()), live.incoming(64 << 10), IDENTITY, 1 << 20);
        for number in 0.. {
            let frame = next(&mut sender, &view).expect("the receiver takes the last frame for the last");
            if random.chance(breaks, 100) {
                assert!(receiver.push(&frame[..frame.len() - 1]).unwrap().is_none());
                receiver.broken();
                sender.resume(receiver.position());
            } else if let Some(arrived) = receiver.push(&frame).unwrap() {
                assert!(next(&mut sender, &view).is_none() && number > 3, "{number} frames");
                return arrived;
            }
        }
        unreachable!("a state has an end")
    }

    #[test]
    fn a_state_arrives_whole_however_often_its_stream_breaks() {
        let origin = origin();
        let expected = records(&mut SimStorage::new(0).disk(), &origin.view());
        for breaks in [0, 20, 60] {
            let storage = SimStorage::new(1);
            let arrived = transfer(&origin, &storage, breaks);
            let Arrived { store, at, tables } = *arrived;
            assert_eq!(at, EntryId { index: 5000, term: 3 });
            assert_eq!(tables.conf_state, ConfState { voters: vec![1, 2, 3], learners: vec![9] });
            assert_eq!(tables.leases.len(), 399);
            let (mut disk, view) = (storage.disk(), store.mvcc().view());
            assert_eq!(records(&mut disk, &view), expected);
            assert_eq!((view.revision(), view.compact_revision()), (3001, 1200));
            let identity = load_for(&mut disk, Path::new(DIR), || view.meta_get(table::IDENTITY)).unwrap().unwrap();
            assert_eq!(table::decode_identity(&identity), Some(IDENTITY), "it is this member's own");
            let with_lease = expected.iter().rev().find(|record| record.lease == 7).unwrap();
            let key = lease::attachment_key(7, &with_lease.key);
            assert!(load_for(&mut disk, Path::new(DIR), || view.meta_get(&key)).unwrap().is_some());
        }
    }

    #[test]
    fn what_is_not_the_senders_state_is_refused() {
        let origin = origin();
        let view = origin.view();
        let floors = Floors::new(Arc::default(), 9, Duration::from_secs(600));
        let floor = floors.hold(view.compact_revision(), Duration::ZERO, || origin.view()).unwrap();
        let mut sender = Sender::new(Arc::clone(&view), floor, IDENTITY.cluster_id);
        let frames: Vec<Bytes> = std::iter::from_fn(|| next(&mut sender, &view)).collect();
        let take = |frames: &[&Bytes], identity| {
            let storage = SimStorage::new(1);
            let live = Store::open(&mut storage.disk(), Path::new(DIR), store::Options::default()).unwrap();
            let mut receiver = Receiver::new(Box::new(storage.disk()), live.incoming(64 << 10), identity, 1 << 20);
            let mut taken = Ok(None);
            for frame in frames {
                taken = receiver.push(frame);
                if taken.is_err() {
                    break;
                }
            }
            taken.map(|arrived| arrived.is_some())
        };
        let all: Vec<&Bytes> = frames.iter().collect();
        assert!(take(&all, IDENTITY).unwrap());
        assert!(take(&all, Identity { cluster_id: 8, ..IDENTITY }).is_err(), "another cluster's");
        for missing in 0..all.len() - 1 {
            let mut some = all.clone();
            some.remove(missing);
            assert!(take(&some, IDENTITY).is_err(), "without frame {missing}");
            let mut doubled = all.clone();
            doubled.insert(missing, all[missing]);
            assert!(take(&doubled, IDENTITY).is_err(), "frame {missing} twice");
        }
    }

    /// A peer that lies makes checksums that are right, and knows the form.
    fn changed(random: &mut Random, (kind, body): &(Kind, Bytes)) -> (Kind, Vec<u8>) {
        let mut body = body.to_vec();
        let place = |random: &mut Random, len: usize| usize::try_from(random.below(len as u64 + 1)).unwrap();
        for _ in 0..=random.below(3) {
            let at = place(random, body.len());
            match random.below(5) {
                0 => body.truncate(at),
                1 if at < body.len() => body[at] ^= 1 << random.below(8),
                2 if at + 8 <= body.len() => body[at..at + 8].copy_from_slice(&random.bits().to_le_bytes()),
                3 => body.splice(at..at, [0xff; 9].into_iter().take(place(random, 9))).for_each(drop),
                _ => body.drain(at..(at + place(random, 40)).min(body.len())).for_each(drop),
            }
        }
        let kinds = [Kind::Head, Kind::Rows, Kind::Records, Kind::End];
        (if random.chance(1, 20) { kinds[place(random, 3)] } else { *kind }, body)
    }

    #[test]
    fn no_frame_of_a_lying_peer_ends_the_member() {
        const LIES: u64 = 100;
        let origin = origin();
        let view = origin.view();
        let floors = Floors::new(Arc::default(), 9, Duration::from_secs(600));
        let floor = floors.hold(view.compact_revision(), Duration::ZERO, || origin.view()).unwrap();
        let mut sender = Sender::new(Arc::clone(&view), floor, IDENTITY.cluster_id);
        let mut frames = Frames::new(1 << 20);
        std::iter::from_fn(|| next(&mut sender, &view)).for_each(|frame| frames.push(&frame));
        let honest: Vec<(Kind, Bytes)> = std::iter::from_fn(|| frames.take().unwrap()).collect();
        let mut refused = 0;
        for seed in 0..LIES {
            let mut random = Random::new(seed);
            let lie = usize::try_from(random.below(honest.len() as u64)).unwrap();
            let storage = SimStorage::new(seed);
            let live = Store::open(&mut storage.disk(), Path::new(DIR), store::Options::default()).unwrap();
            let mut receiver = Receiver::new(Box::new(storage.disk()), live.incoming(64 << 10), IDENTITY, 1 << 20);
            let taken = honest.iter().enumerate().try_for_each(|(number, frame)| {
                let (kind, body) =
                    if number == lie { changed(&mut random, frame) } else { (frame.0, frame.1.to_vec()) };
                receiver.push(&encode(kind, &body)).map(drop)
            });
            refused += u64::from(taken.is_err());
        }
        assert!(refused > LIES / 2, "{refused} of {LIES} lies were refused");
    }
}
