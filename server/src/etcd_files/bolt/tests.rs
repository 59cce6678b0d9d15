//! Runs on: tests.
//!
//! Everything that is written is read back, at every size. Whatever a file holds, reading it ends without a panic.

use std::path::Path;

use engine::Error;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    page::{META_LEN, Meta},
    reader::BoltFile,
    writer::{FileWriter, Layout, PAGE_SIZE},
};
use crate::etcd_files::source::Source;

struct Memory(Vec<u8>);

impl Source for Memory {
    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let from = usize::try_from(offset).unwrap().min(self.0.len());
        Ok(self.0[from..(from + len).min(self.0.len())].to_vec())
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }
}

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;
type Content = Vec<(&'static str, Pairs)>;

fn fill(writer: &mut FileWriter, content: &Content) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, keys) in content {
        for (key, value) in keys {
            writer.push(key, value);
            bytes.extend(writer.take());
        }
        writer.end_bucket(name);
    }
    bytes
}

fn write(content: &Content, page_size: usize) -> Vec<u8> {
    let mut measure = FileWriter::measuring(page_size);
    assert!(fill(&mut measure, content).is_empty());
    let (rest, layout): (_, Layout) = measure.finish().unwrap();
    assert!(rest.is_empty());
    let mut writer = FileWriter::writing(layout);
    let mut bytes = fill(&mut writer, content);
    let (rest, again) = writer.finish().unwrap();
    bytes.extend(rest);
    assert_eq!((again, layout.bytes()), (layout, bytes.len() as u64));
    bytes
}

/// Reads everything, and checks what bbolt's check does.
fn read(bytes: Vec<u8>) -> Result<Vec<(Vec<u8>, Pairs)>, Error> {
    let mut file = BoltFile::open(Memory(bytes))?;
    file.note_reached();
    let mut content = Vec::new();
    for (name, bucket) in file.buckets()? {
        let mut keys = Vec::new();
        let mut cursor = file.cursor(&bucket);
        while let Some(entry) = cursor.next(&mut file)? {
            keys.push((entry.key.to_vec(), entry.value.to_vec()));
        }
        content.push((name.to_vec(), keys));
    }
    file.check_free()?;
    Ok(content)
}

fn keys(rng: &mut SmallRng, count: u64, value_max: usize) -> Pairs {
    (0..count)
        .map(|number| {
            let value = (0..rng.random_range(0..=value_max)).map(|_| rng.random()).collect();
            ((number * 3).to_be_bytes().to_vec(), value)
        })
        .collect()
}

#[test]
fn what_is_written_is_read_back_at_every_size() {
    let mut rng = SmallRng::seed_from_u64(7);
    let cases = [(0, 0), (1, 0), (1, 5000), (3, 100), (40, 20), (2000, 300), (20, 200_000), (60_000, 30), (70_000, 2)];
    for page_size in [1024, PAGE_SIZE, 64 << 10] {
        for (count, value_max) in cases {
            let content = vec![
                ("a", keys(&mut rng, 3, 10)),
                ("key", keys(&mut rng, count, value_max)),
                ("empty", Vec::new()),
                ("meta", keys(&mut rng, 9, 40)),
            ];
            let mut expected: Vec<_> =
                content.iter().map(|(name, keys)| (name.as_bytes().to_vec(), keys.clone())).collect();
            expected.sort();
            let mut bytes = write(&content, page_size);
            assert_eq!(read(bytes.clone()).unwrap(), expected, "{page_size} {count} {value_max}");
            bytes.extend([0xff; 700]);
            assert_eq!(read(bytes).unwrap(), expected, "what lies behind the file does not count");
        }
    }
}

#[test]
fn the_newer_of_two_valid_meta_pages_counts() {
    let content = vec![("key", vec![(vec![1], vec![2])])];
    let bytes = write(&content, PAGE_SIZE);
    let expected = read(bytes.clone()).unwrap();
    let meta = Meta::decode(&bytes).unwrap();
    // A newer meta page that leads nowhere is taken all the same, in either place.
    for (at, txid) in [(0, 9), (1, 9)] {
        let mut newer = bytes.clone();
        let wrong = Meta { txid, root: 1 << 40, high_water: (1 << 40) + 1, ..meta };
        newer[at * PAGE_SIZE..at * PAGE_SIZE + META_LEN].copy_from_slice(&wrong.encode(at as u64));
        assert!(read(newer.clone()).is_err());
        newer[at * PAGE_SIZE + META_LEN - 1] ^= 1;
        assert_eq!(read(newer).unwrap(), expected, "a damaged one is not");
    }
    let mut none = bytes;
    none[META_LEN - 1] ^= 1;
    none[PAGE_SIZE + META_LEN - 1] ^= 1;
    assert!(read(none).is_err());
}

#[test]
fn content_that_changed_between_the_two_passes_is_noticed() {
    let mut measure = FileWriter::measuring(PAGE_SIZE);
    fill(&mut measure, &vec![("key", vec![(vec![1], vec![0; 5000])])]);
    let (_, layout) = measure.finish().unwrap();
    let mut writer = FileWriter::writing(layout);
    fill(&mut writer, &vec![("key", vec![(vec![1], vec![0; 90_000])])]);
    assert!(writer.finish().is_none());
}

#[test]
fn no_damage_makes_the_reader_panic_or_run_for_ever() {
    let mut rng = SmallRng::seed_from_u64(8);
    let content =
        vec![("a", keys(&mut rng, 4, 10)), ("key", keys(&mut rng, 9000, 60)), ("meta", keys(&mut rng, 30, 200))];
    let bytes = write(&content, 1024);
    let mut refused = 0;
    for round in 0..3000 {
        let mut damaged = bytes.clone();
        for _ in 0..rng.random_range(1..4) {
            // Most of the damage is done to the structure: headers, elements, the meta pages.
            let page = rng.random_range(0..damaged.len() / 1024) * 1024;
            let at = page + rng.random_range(0..if round % 3 == 0 { 1024 } else { 48 });
            damaged[at] = if round % 2 == 0 { rng.random() } else { damaged[at].wrapping_add(1) };
        }
        if round % 10 == 0 {
            damaged.truncate(rng.random_range(0..damaged.len()));
        }
        refused += usize::from(read(damaged).is_err());
    }
    assert!(refused > 100, "most of structure is checked: {refused}");
}
