//! A state of another member is installed in a running store, and power is lost at every single write of it: of the
//! state that is built, of the superblock's copies, of the log that starts again behind it, and of what is applied
//! then. In every legal image the store opens, with the old state and a log that leads on from it or with the new one;
//! once the log was told to start again, with the new one.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

#[cfg(test)]
#[expect(dead_code, reason = "the member of this test has a log of its own")]
mod replay;

use std::path::Path;

use engine::{
    Checkpoint, CheckpointDone, Error, Fault, Mvcc, Progress, ReadView, Revision, Store,
    disk::{
        Disk, Owner,
        sim::{Order, SimDisk, SimStorage},
    },
    wal::{Entry, Known, Wal},
};

use replay::{DIR, Operation, apply, load_patiently, model, model_shown, operations, options, shown, term};

/// Entries that the member has of its own, the one at which the other's state stands, and the last one of all.
const OWN: u64 = 40;
const INSTALLED: u64 = 80;
const LAST: u64 = 100;
/// Images looked at for each step at most.
const IMAGES_MAX: usize = 6;

fn entry(index: u64) -> Entry {
    Entry { index, term: term(index), kind: 1, data: index.to_le_bytes().to_vec().into() }
}

/// A member: a store, and the log beside it.
struct Member {
    disk: SimDisk,
    wal: Wal,
    store: Store,
    ticket: u64,
    /// What is durable in the log, or installed, and may have been promised to others.
    acknowledged: u64,
}

impl Member {
    /// Opens both, as a start does.
    fn open(storage: &SimStorage) -> Result<Self, Error> {
        let mut disk = storage.disk();
        let dir = Path::new(DIR);
        let store = Store::open(&mut disk, dir, options(2))?;
        let (applied, applied_term) = store.applied();
        let known = Known { applied, trimmable: store.trimmable().0 };
        let options = engine::wal::Options { segment_bytes: 64 << 10, group_bytes_max: 4096, ..Default::default() };
        let (mut wal, _) = Wal::open(&mut disk, &dir.join("wal"), options, known)?;
        assert!(wal.mark().0 <= applied, "the log begins where the state ends, or before");
        if applied > 0 && wal.term(applied) != Some(applied_term) {
            let known = (wal.mark(), wal.last_index());
            assert!(store.is_installed(), "the log {known:?} leads to every other state, {applied}");
            wal.restart_after(applied, applied_term)?;
        }
        let acknowledged = wal.last_index();
        let mut member = Self { disk, wal, store, ticket: 0, acknowledged };
        // No checkpoint is made before the log starts there durably.
        member.append(&[])?;
        Ok(member)
    }

    fn load(&mut self, fault: &Fault) -> Result<(), Error> {
        load_patiently(&mut self.disk, Path::new(DIR), fault)
    }

    /// Appends `entries`, and waits until the log is durable up to its end.
    fn append(&mut self, entries: &[Entry]) -> Result<(), Error> {
        self.ticket += 1;
        self.wal.append(entries, None, self.ticket)?;
        self.wal.step(&mut self.disk)?;
        while self.wal.durable() < self.ticket {
            self.disk.wait()?;
            let mut completions = Vec::new();
            self.disk.completions(&mut completions);
            for completion in completions {
                self.wal.on_completion(completion, &mut self.disk)?;
            }
        }
        self.acknowledged = self.wal.last_index();
        Ok(())
    }

    /// Appends and applies the entries up to `last`.
    fn go_on(&mut self, operations: &[Operation], last: u64) -> Result<(), Error> {
        while self.store.mvcc().view().applied_index() < last {
            let index = self.store.mvcc().view().applied_index() + 1;
            if index > self.wal.last_index() {
                self.append(&[entry(index)])?;
            }
            let disk = &mut self.disk;
            let operation = &operations[usize::try_from(index - 1).unwrap()];
            let read = |fault| load_patiently(disk, Path::new(DIR), &fault);
            apply(self.store.mvcc_mut(), index, operation, read)?;
        }
        Ok(())
    }

    fn run(&mut self, job: &mut Checkpoint) -> Result<CheckpointDone, Error> {
        loop {
            match job.step(&mut self.disk)? {
                Progress::Done(done) => return Ok(*done),
                Progress::Working => self.disk.kick()?,
                Progress::Waiting => self.disk.wait()?,
            }
            let mut completions = Vec::new();
            self.disk.completions(&mut completions);
            for completion in completions {
                match Owner::of(completion.token) {
                    // The log prepares its next segment.
                    Owner::Wal => self.wal.on_completion(completion, &mut self.disk)?,
                    _ => job.on_completion(completion)?,
                }
            }
        }
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let mut job = self.store.checkpoint_begin();
        let done = self.run(&mut job)?;
        self.store.checkpoint_end(done);
        let (index, at) = self.store.trimmable();
        self.wal.trim(index, at)
    }

    fn change(
        &mut self,
        incoming: &mut Store,
        mut change: impl FnMut(&mut Mvcc) -> Result<(), Fault>,
    ) -> Result<(), Error> {
        while let Err(fault) = change(incoming.mvcc_mut()) {
            self.load(&fault)?;
        }
        if incoming.mvcc().recent_bytes() > 16 << 10 {
            drop(incoming.mvcc_mut().publish(0, 0));
            let done = self.run(&mut incoming.checkpoint_begin())?;
            incoming.checkpoint_end(done);
            drop(incoming.mvcc_mut().publish(0, 0));
            while incoming.evict(64) {}
        }
        Ok(())
    }

    /// Builds the state that `origin` shows, beside the live one. What is `between` happens meanwhile.
    fn build(
        &mut self,
        origin: &ReadView,
        mut between: impl FnMut(&mut Self) -> Result<(), Error>,
    ) -> Result<Store, Error> {
        let mut incoming = self.store.incoming(4096);
        let mut records = origin.records_from(Revision::MIN);
        while let Some(record) = records.next().unwrap() {
            if origin.is_kept(&record, origin.compact_revision()).unwrap() {
                self.change(&mut incoming, |mvcc| mvcc.load(record.clone()).map(drop))?;
                between(self)?;
            }
        }
        let mut rows = origin.meta_cursor(b"");
        while let Some((key, value)) = rows.next().unwrap() {
            self.change(&mut incoming, |mvcc| {
                let mut write = mvcc.begin();
                write.meta_put(&key, &value)?;
                drop(write.finish());
                Ok(())
            })?;
        }
        incoming.mvcc_mut().load_end(origin.revision(), origin.compact_revision());
        drop(incoming.mvcc_mut().publish(origin.applied_index(), origin.applied_term()));
        let done = self.run(&mut incoming.checkpoint_begin())?;
        incoming.checkpoint_end(done);
        Ok(incoming)
    }

    /// Installs what `origin` shows, while traffic goes on.
    fn install(&mut self, operations: &[Operation], origin: &ReadView) -> Result<(), Error> {
        let mut turns = 0;
        let incoming = self.build(origin, |member| {
            turns += 1;
            if turns % 20 != 0 {
                return Ok(());
            }
            let next = (member.store.mvcc().view().applied_index() + 1).min(OWN + 10);
            member.go_on(operations, next)?;
            if turns % 40 == 0 { member.checkpoint() } else { Ok(()) }
        })?;
        let held = self.store.mvcc().view();
        let before = shown(&held, &mut self.disk)?;
        let mut job = self.store.install_begin(incoming);
        let done = self.run(&mut job)?;
        assert!(done.is_install());
        self.store.checkpoint_end(done);
        drop(self.store.mvcc_mut().publish(origin.applied_index(), origin.applied_term()));
        let (index, term) = self.store.trimmable();
        assert_eq!((index, term), (origin.applied_index(), origin.applied_term()), "both copies name the new state");
        self.wal.restart_after(index, term)?;
        self.append(&[])?;
        assert_eq!(self.store.mvcc().view().state(), held.state() + 1, "it is told apart from the one before");
        assert_eq!(shown(&held, &mut self.disk)?, before, "a view of the old state is valid as long as it is held");
        Ok(())
    }
}

/// The whole course. Returns how far the member got, and what it may have promised.
fn run(storage: &SimStorage, operations: &[Operation], origin: &ReadView) -> (u64, Result<(), Error>) {
    let mut member = match Member::open(storage) {
        Ok(member) => member,
        Err(error) => return (0, Err(error)),
    };
    let result = (|| {
        member.go_on(operations, OWN)?;
        member.checkpoint()?;
        member.install(operations, origin)?;
        member.go_on(operations, LAST)?;
        member.checkpoint()?;
        assert!(!member.store.is_installed(), "the next checkpoint is one of this member's own");
        member.checkpoint()?;
        member.store.verify(&mut member.disk)
    })();
    (member.acknowledged, result)
}

#[test]
fn an_installed_state_survives_power_loss_at_every_write() {
    let operations = operations(5, usize::try_from(LAST).unwrap(), 40);
    let origin = model(&operations[..usize::try_from(INSTALLED).unwrap()]).view();
    let whole = SimStorage::new(5);
    whole.set_order(Order::Seeded);
    let (acknowledged, result) = run(&whole, &operations, &origin);
    result.unwrap();
    assert_eq!(acknowledged, LAST);
    let (mut old, mut new) = (0, 0);
    for steps in 0..=whole.steps() {
        let storage = SimStorage::new(5);
        storage.set_order(Order::Seeded);
        storage.stop_after(steps);
        let (acknowledged, result) = run(&storage, &operations, &origin);
        assert_eq!(result.is_err(), steps < whole.steps(), "stops after step {steps}");
        for (number, image) in storage.crash_images(IMAGES_MAX).iter().enumerate() {
            println!("stopped after step {steps} of {}, image {number}, {acknowledged} acknowledged", whole.steps());
            let mut member = Member::open(image).unwrap();
            let (applied, last) = (member.store.applied().0, member.wal.last_index());
            assert!(last >= acknowledged, "what was acknowledged is there");
            assert!(applied != INSTALLED || !member.store.is_installed() || member.store.trimmable().0 == INSTALLED);
            *(if applied < INSTALLED { &mut old } else { &mut new }) += 1;
            // On with what the log has, and with more; and once more after another power loss.
            member.go_on_from_log(&operations, last).unwrap();
            let expected = model_shown(&operations[..usize::try_from(last.max(applied)).unwrap()]);
            assert_eq!(shown(&member.store.mvcc().view(), &mut member.disk).unwrap(), expected);
            member.checkpoint().unwrap();
            member.store.verify(&mut member.disk).unwrap();
            drop(member);
            let mut member = Member::open(&image.crash()).unwrap();
            assert_eq!(shown(&member.store.mvcc().view(), &mut member.disk).unwrap(), expected);
        }
    }
    assert!(old > 100 && new > 100, "{old} with the old state, {new} with the new one");
}

/// Numbers of the segment files that are there.
fn segments(disk: &mut SimDisk) -> Vec<String> {
    disk.list(&Path::new(DIR).join("pages")).unwrap()
}

#[test]
fn a_state_that_is_given_up_takes_no_file_of_another_one_with_it() {
    let operations = operations(6, usize::try_from(LAST).unwrap(), 40);
    let origin = model(&operations[..usize::try_from(INSTALLED).unwrap()]).view();
    let storage = SimStorage::new(6);
    storage.set_order(Order::Seeded);
    let mut member = Member::open(&storage).unwrap();
    member.go_on(&operations, OWN).unwrap();
    member.checkpoint().unwrap();
    let before = segments(&mut member.disk);
    let second = member.build(&origin, |_| Ok(())).unwrap();
    let of_second = segments(&mut member.disk);
    let first = member.build(&origin, |_| Ok(())).unwrap();
    assert!(before.len() < of_second.len() && of_second.len() < segments(&mut member.disk).len());
    member.store.discard(first);
    assert!(!member.store.wants_checkpoint(), "a checkpoint could not remove anything");
    for applied in [OWN + 1, OWN + 2, OWN + 3] {
        member.go_on(&operations, applied).unwrap();
        member.checkpoint().unwrap();
    }
    let mut job = member.store.install_begin(second);
    let done = member.run(&mut job).unwrap();
    member.store.checkpoint_end(done);
    drop(member.store.mvcc_mut().publish(origin.applied_index(), origin.applied_term()));
    member.wal.restart_after(origin.applied_index(), origin.applied_term()).unwrap();
    member.append(&[]).unwrap();
    assert!(member.store.wants_checkpoint(), "the files of the first state can go now");
    member.go_on(&operations, LAST).unwrap();
    member.checkpoint().unwrap();
    member.store.verify(&mut member.disk).unwrap();
    let expected = model_shown(&operations);
    assert_eq!(shown(&member.store.mvcc().view(), &mut member.disk).unwrap(), expected);
    member.checkpoint().unwrap();
    member.checkpoint().unwrap();
    let left = segments(&mut member.disk);
    assert!(left.iter().all(|file| !before.contains(file)), "what the state took the place of is gone: {left:?}");
    assert!(left.len() < of_second.len(), "and so is what was given up: {left:?}");
}

impl Member {
    /// Applies what the log holds behind the state, up to `last`.
    fn go_on_from_log(&mut self, operations: &[Operation], last: u64) -> Result<(), Error> {
        while self.store.mvcc().view().applied_index() < last {
            let index = self.store.mvcc().view().applied_index() + 1;
            assert_eq!(self.wal.term(index), Some(term(index)), "the log leads on");
            let (disk, operation) = (&mut self.disk, &operations[usize::try_from(index - 1).unwrap()]);
            let read = |fault| load_patiently(disk, Path::new(DIR), &fault);
            apply(self.store.mvcc_mut(), index, operation, read)?;
        }
        Ok(())
    }
}
