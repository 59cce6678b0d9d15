//! Runs on: tests.
//!
//! One flipped bit in one file of a member, anywhere, at rest or under load. What it damages is served around, refused
//! or repaired. Nothing is ever read wrongly, and nothing else is lost, but for the very last group of the log, which
//! looks torn.
//!
//! `ORLOP_FLIPS` sets how many bits are flipped, `ORLOP_FLIPS_SEED` the first seed; each flip is a seed of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::PathBuf,
};

use bytes::Bytes;
use engine::{
    KeyRange, Store,
    disk::{
        Disk,
        sim::{Random, SimStorage},
    },
    salvage::{Loss, Salvage},
    store,
};
use proto::{etcdserverpb as pb, internal::Kind};

use super::member::{Member, dir};

/// Flips of a run, unless the environment says otherwise. A hundred thousand pass, too.
const FLIPS: u64 = 2000;
/// Flips that begin with the same files.
const FLIPS_PER_BASE: u64 = 25;
const KEYS: u64 = 150;
const REQUESTS_BEFORE: usize = 400;
const REQUESTS: usize = 20;

type State = BTreeMap<Bytes, Bytes>;

fn key(number: u64) -> Bytes {
    format!("/registry/pods/{:0>90}", number * 7919 % 10_007).into()
}

/// What the member must hold: the keys after each of its requests.
#[derive(Clone)]
struct Model {
    /// Index of the last entry before the requests.
    base: u64,
    states: Vec<State>,
}

impl Model {
    fn at(&self, index: u64) -> &State {
        let number = usize::try_from(index.saturating_sub(self.base)).unwrap();
        &self.states[number.min(self.states.len() - 1)]
    }

    /// Forgets the last group if it was cut, as a torn one. A start appends `own` entries before the log's last index
    /// is known, which is `opened_at` now. Returns how many entries were cut.
    fn cut(&mut self, own: u64, opened_at: u64) -> u64 {
        let cut = self.base + self.states.len() as u64 - 1 + own - opened_at;
        assert!(cut <= 4, "a group has few entries here");
        self.states.truncate(self.states.len() - usize::try_from(cut).unwrap());
        cut
    }

    fn last(&self) -> &State {
        self.states.last().unwrap()
    }
}

/// Makes a random request, and notes what it does.
fn ask(member: &mut Member, model: &mut Model, random: &mut Random) {
    let mut state = model.last().clone();
    match random.below(12) {
        0 => {
            let revision = member.apply.store.mvcc().view().revision();
            let revision = revision.saturating_sub(random.below(30).cast_signed()).max(1);
            member.propose(Kind::Compaction, &pb::CompactionRequest { revision, physical: false });
        }
        1 => {
            let (from, to) = (key(random.below(KEYS)), key(random.below(KEYS)));
            let (from, to) = (from.clone().min(to.clone()), from.max(to));
            if random.chance(1, 3) {
                state.retain(|key, _| *key < from || *key >= to);
                let request = pb::DeleteRangeRequest { key: from, range_end: to, prev_kv: false };
                member.propose(Kind::DeleteRange, &request);
            } else {
                state.remove(&from);
                member.propose(Kind::DeleteRange, &pb::DeleteRangeRequest { key: from, ..Default::default() });
            }
        }
        _ => {
            let key = key(random.below(KEYS));
            let letter = b'a' + u8::try_from(random.below(26)).unwrap();
            let value = Bytes::from(vec![letter; usize::try_from(random.below(300)).unwrap()]);
            state.insert(key.clone(), value.clone());
            member.propose(Kind::Put, &pb::PutRequest { key, value, ..Default::default() });
        }
    }
    model.states.push(state);
}

fn checkpoint(member: &mut Member) {
    member.settle();
    if member.checkpoint.is_none() && !member.apply.store.is_checkpointing() && !member.apply.store.mvcc().is_ahead() {
        member.checkpoint = Some(member.apply.store.checkpoint_begin());
    }
    member.run_checkpoints();
}

fn upkeep(member: &mut Member, random: &mut Random) {
    match random.below(8) {
        0 => checkpoint(member),
        1 => member.apply.store.defragment(),
        2 => {
            member.apply.store.evict(1000);
            tick(member);
        }
        _ => {}
    }
    member.settle();
}

fn tick(member: &mut Member) {
    member.raft.tick(member.now);
    member.apply.tick(member.now);
    member.settle();
}

/// Lets a member that has started propose what it proposes by itself.
fn begin(member: &mut Member) {
    member.settle();
    tick(member);
    tick(member);
}

/// The files of a member with some history, what it holds, and the entries that a start appends when it opens the log.
type Base = (SimStorage, Model, u64);

fn base(seed: u64) -> Base {
    let mut random = Random::new(seed);
    let mut member = Member::on(SimStorage::new(seed), 1 << 30, 1 << 20);
    begin(&mut member);
    let mut model = Model { base: member.applied(), states: vec![State::new()] };
    for _ in 0..REQUESTS_BEFORE {
        ask(&mut member, &mut model, &mut random);
        upkeep(&mut member, &mut random);
    }
    checkpoint(&mut member);
    for _ in 0..random.below(30) {
        ask(&mut member, &mut model, &mut random);
        member.settle();
    }
    let storage = member.storage.kill();
    let opened_at = Member::on(storage.kill(), 1 << 30, 1 << 20).opened_at;
    let own = opened_at - (model.base + model.states.len() as u64 - 1);
    (storage, model, own)
}

/// Flips a bit of a file, mostly where something is. Returns the file and the place.
fn flip(storage: &SimStorage, random: &mut Random) -> (PathBuf, u64) {
    let paths: Vec<_> = storage.paths().into_iter().filter(|path| storage.content(path).is_some()).collect();
    loop {
        let path = &paths[usize::try_from(random.below(paths.len() as u64)).unwrap()];
        let content = storage.content(path).unwrap();
        if content.is_empty() {
            continue;
        }
        let mut offset = random.below(content.len() as u64);
        if random.chance(9, 10) {
            let Some(used) = content.iter().rposition(|byte| *byte != 0) else { continue };
            offset = random.below(used as u64 + 1);
        }
        let (at, bit) = (usize::try_from(offset % 512).unwrap(), random.below(8));
        storage.damage(path, offset, |sector| sector[at] ^= 1 << bit);
        return (path.clone(), offset);
    }
}

/// Reads every key as clients do. Whatever is read is right. Returns how many keys cannot be read.
fn unreadable(member: &Member, model: &Model) -> usize {
    let view = member.shared.view.load();
    let mut disk = member.storage.disk();
    let state = model.at(view.applied_index());
    let mut lost = 0;
    for number in 0..KEYS {
        let key = key(number);
        match engine::load_for(&mut disk, dir(), || view.get(&key, view.revision())) {
            Ok(found) => assert_eq!(found.map(|record| record.value).as_ref(), state.get(&key), "{key:?}"),
            Err(_) => lost += 1,
        }
    }
    let counted = engine::load_for(&mut disk, dir(), || view.count(&KeyRange::all(), view.revision()));
    assert!(counted.map_or(lost > 0 || member.shared.view.unreadable().count() > 0, |n| n == state.len() as u64));
    lost
}

/// What a repair would keep of the files is right, and what it would not is named.
fn is_repairable(storage: &SimStorage, model: &Model) -> bool {
    let mut disk = storage.disk();
    let lock = disk.lock(dir()).unwrap();
    let (mut lost, mut ranges) = (BTreeSet::new(), Vec::new());
    let salvage = Salvage::open(&mut disk, dir(), &lock, &mut |loss| match loss {
        Loss::Key { key, .. } => drop(lost.insert(key.clone())),
        Loss::Keys { from, to, .. } => ranges.push((from.clone(), to.clone())),
        Loss::Page { .. } | Loss::History { .. } | Loss::Rows { .. } => {}
    });
    let mut salvage = match salvage {
        Ok(salvage) => salvage,
        Err(error) => {
            println!("not repairable: {error}");
            return false;
        }
    };
    let mut state = State::new();
    let records = salvage.records(&mut disk, &mut |record| -> Result<(), engine::Error> {
        if record.is_tombstone {
            state.remove(&record.key);
        } else {
            state.insert(record.key, record.value);
        }
        Ok(())
    });
    records.unwrap();
    let expected = model.at(salvage.applied().0);
    for number in 0..KEYS {
        let key = key(number);
        let is_named = lost.contains(&key)
            || ranges.iter().any(|(from, to)| *from <= key && to.as_ref().is_none_or(|to| key < *to));
        let (found, wanted) = (state.get(&key), expected.get(&key));
        assert!(found == wanted || (is_named && found.is_none()), "{key:?}: {found:?}, not {wanted:?}");
    }
    true
}

/// What became of a flip.
#[derive(Debug, Default)]
struct Outcome {
    whole: u64,
    served_around: u64,
    standstills: u64,
    refused: u64,
    repairable: u64,
    cut: u64,
}

fn one_flip(seed: u64, (storage, model, own): &Base, outcome: &mut Outcome) {
    let mut random = Random::new(seed);
    let (storage, mut model) = (storage.kill(), model.clone());
    let at = usize::try_from(random.below(2 * REQUESTS as u64)).unwrap().saturating_sub(REQUESTS / 2);
    let mut flipped = (at == 0).then(|| flip(&storage, &mut random));
    let mut opened = Member::try_on(storage.kill(), 1 << 30, 1 << 20).ok();
    let mut image = storage;
    let mut before = model.base;
    if let Some(member) = &mut opened {
        model.cut(*own, member.opened_at);
        begin(member);
        // The start has proposed something of its own.
        let proposed = member.committed() - (model.base + model.states.len() as u64 - 1);
        let last = model.last().clone();
        model.states.extend((0..proposed).map(|_| last.clone()));
        for number in 1..=REQUESTS {
            if number == at {
                flipped = Some(flip(&member.storage, &mut random));
            }
            if member.shared.standstill.load().is_some() {
                break;
            }
            ask(member, &mut model, &mut random);
            upkeep(member, &mut random);
        }
        outcome.standstills += u64::from(member.shared.standstill.load().is_some());
        unreadable(member, &model);
        before = member.applied();
        if flipped.is_none() {
            flipped = Some(flip(&member.storage, &mut random));
        }
        image = member.storage.kill();
    }
    drop(opened);
    let (path, offset) = flipped.expect("a bit was flipped");
    let is_in_log = path.starts_with(dir().join("wal"));
    println!("seed {seed}: {} at {offset}", path.display());
    match Member::try_on(image.kill(), 1 << 30, 1 << 20) {
        Ok(mut member) => {
            let is_cut = model.cut(*own, member.opened_at) > 0;
            assert!(!is_cut || is_in_log, "nothing else cuts the log");
            outcome.cut += u64::from(is_cut);
            member.settle();
            let lost = unreadable(&member, &model);
            let stands_still = member.shared.standstill.load().is_some();
            assert!(stands_still || is_cut || member.applied() >= before, "{} of {before}", member.applied());
            match lost + usize::from(stands_still) {
                0 => outcome.whole += 1,
                _ => outcome.served_around += 1,
            }
            assert!(lost == 0 || !is_in_log);
        }
        Err(error) => {
            assert!(!path.starts_with(dir().join("pages")), "damage of a page keeps no member from starting: {error}");
            outcome.refused += 1;
        }
    }
    let is_repairable = is_repairable(&image.kill(), &model);
    assert!(is_repairable || !is_in_log, "the store is whole");
    outcome.repairable += u64::from(is_repairable);
    // Without the log, the store alone is right, too.
    let options = store::Options::default();
    if let Ok(store) = Store::open(&mut image.kill().disk(), dir(), options) {
        assert!(store.applied().0 <= before.max(model.base + model.states.len() as u64));
    }
}

#[test]
fn one_flipped_bit_is_served_around_refused_or_repaired() {
    let number = |name: &str, default| env::var(name).map_or(default, |text| text.parse().expect("a number"));
    let (flips, first) = (number("ORLOP_FLIPS", FLIPS), number("ORLOP_FLIPS_SEED", 1));
    let mut outcome = Outcome::default();
    let mut files = base(first);
    for seed in first..first + flips {
        if (seed - first) % FLIPS_PER_BASE == 0 {
            files = base(seed);
        }
        one_flip(seed, &files, &mut outcome);
    }
    eprintln!("{flips} flips from seed {first} on: {outcome:?}");
    let Outcome { whole, served_around, refused, repairable, .. } = outcome;
    assert!(flips < FLIPS || (whole > 0 && served_around > 0 && refused > 0 && repairable > flips / 2));
}
