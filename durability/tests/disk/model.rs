//! Random uses of a disk, against a model of what is durable.

use crate::rig::{Rig, plain, rig};
use drave_durability::disk::{NamesPolicy, Options, Torn};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const BYTES_MAX: u64 = 20_000;
const PAGE: usize = 4096;

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u64, usize, u8),
    Truncate(usize, u64),
    Sync(usize),
    FailSync(usize),
    Create(usize),
    Rename(usize, usize),
    Link(usize, usize),
    Unlink(usize),
    SyncFolder,
    Cut,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    let write = (name(), 0..BYTES_MAX, 1..6000_usize, any::<u8>());
    prop_oneof![
        6 => write.prop_map(|(name, at, length, byte)| Step::Write(name, at, length, byte)),
        2 => (name(), 0..BYTES_MAX).prop_map(|(name, size)| Step::Truncate(name, size)),
        3 => name().prop_map(Step::Sync),
        3 => name().prop_map(Step::Create),
        2 => (name(), name()).prop_map(|(from, to)| Step::Rename(from, to)),
        1 => (name(), name()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => name().prop_map(Step::Unlink),
        1 => Just(Step::SyncFolder),
        1 => Just(Step::Cut),
    ]
}

/// As [`step`], with failing syncs.
fn step_or_failure() -> impl Strategy<Value = Step> {
    prop_oneof![8 => step(), 1 => (0..NAMES.len()).prop_map(Step::FailSync)]
}

/// A file: what readers see, what was synced, and the pages that a failed sync
/// has marked clean.
#[derive(Clone, Debug, Default)]
struct Bytes {
    now: Vec<u8>,
    synced: Vec<u8>,
    lost: BTreeSet<usize>,
}

/// `length` bytes from `at`, zeros where there are none.
fn part(bytes: &[u8], at: usize, length: usize) -> Vec<u8> {
    let end = bytes.len().min(at + length);
    let mut part = bytes.get(at..end).unwrap_or_default().to_vec();
    part.resize(length, 0);
    part
}

impl Bytes {
    fn resize(&mut self, size: usize) {
        if size < self.now.len() {
            self.touch(size, self.now.len());
        }
        self.now.resize(size, 0);
    }

    fn write(&mut self, at: usize, length: usize, byte: u8) {
        let end = at + length;
        self.touch(at, end);
        self.now.resize(self.now.len().max(end), 0);
        self.now[at..end].fill(byte);
    }

    fn touch(&mut self, start: usize, end: usize) {
        let pages = start / PAGE..end.div_ceil(PAGE);
        self.lost.retain(|page| !pages.contains(page));
    }

    fn pages(&self) -> Range<usize> {
        0..self.now.len().max(self.synced.len()).div_ceil(PAGE)
    }

    fn sync(&mut self) {
        let mut synced = self.now.clone();
        self.lost.retain(|page| page * PAGE < synced.len());
        for page in &self.lost {
            let end = synced.len().min((page + 1) * PAGE);
            let old = part(&self.synced, page * PAGE, end - page * PAGE);
            synced[page * PAGE..end].copy_from_slice(&old);
        }
        self.synced = synced;
    }

    fn fail_sync(&mut self) {
        let page = |bytes: &[u8], page: usize| part(bytes, page * PAGE, PAGE);
        let differ = |number: &usize| page(&self.now, *number) != page(&self.synced, *number);
        let lost: Vec<usize> = self.pages().filter(differ).collect();
        self.lost.extend(lost);
    }

    fn cut(&mut self, found: Vec<u8>) {
        self.now.clone_from(&found);
        self.synced = found;
        self.lost.clear();
    }
}

#[derive(Debug, Default)]
struct Model {
    strict: bool,
    files: Vec<Bytes>,
    names: BTreeMap<usize, usize>,
    synced_names: BTreeMap<usize, usize>,
}

impl Model {
    fn file(&mut self, name: usize) -> Option<&mut Bytes> {
        let id = *self.names.get(&name)?;
        self.files.get_mut(id)
    }

    /// Takes a step on the disk and in the model: both must agree on whether it works.
    fn take(&mut self, rig: &Rig, step: &Step) {
        let path = |name: usize| rig.path(NAMES[name]);
        let open = |name: usize| File::options().write(true).open(path(name));
        match *step {
            Step::Write(name, at, length, byte) => match self.file(name) {
                Some(file) => {
                    file.write(at as usize, length, byte);
                    let data = vec![byte; length];
                    let backing = open(name).expect("a file");
                    backing.write_all_at(&data, at).expect("written");
                }
                None => drop(open(name).expect_err("no file")),
            },
            Step::Truncate(name, size) => {
                if let Some(file) = self.file(name) {
                    file.resize(size as usize);
                    open(name).expect("a file").set_len(size).expect("resized");
                }
            }
            Step::Sync(name) => {
                if let Some(file) = self.file(name) {
                    file.sync();
                    open(name).expect("a file").sync_data().expect("synced");
                }
            }
            Step::FailSync(name) => {
                if let Some(file) = self.file(name) {
                    file.fail_sync();
                    rig.disk.fail_syncs(true);
                    open(name).expect("a file").sync_data().expect_err("failed");
                    rig.disk.fail_syncs(false);
                }
            }
            Step::Create(name) => {
                let made = File::create_new(path(name));
                assert_eq!(made.is_ok(), !self.names.contains_key(&name));
                if made.is_ok() {
                    self.names.insert(name, self.files.len());
                    self.files.push(Bytes::default());
                }
            }
            Step::Rename(from, to) => {
                let moved = fs::rename(path(from), path(to));
                let id = self.names.get(&from).copied();
                assert_eq!(moved.is_ok(), id.is_some());
                if let Some(id) = id
                    && self.names.get(&to) != Some(&id)
                {
                    self.names.remove(&from);
                    self.names.insert(to, id);
                }
            }
            Step::Link(from, to) => {
                let linked = fs::hard_link(path(from), path(to)).is_ok();
                let id = self.names.get(&from).copied();
                assert_eq!(linked, id.is_some() && !self.names.contains_key(&to));
                if let Some(id) = id.filter(|_| linked) {
                    self.names.insert(to, id);
                }
            }
            Step::Unlink(name) => {
                let removed = fs::remove_file(path(name)).is_ok();
                assert_eq!(removed, self.names.remove(&name).is_some());
            }
            Step::SyncFolder => {
                rig.sync_folder("");
                self.synced_names.clone_from(&self.names);
            }
            Step::Cut => {
                rig.cut();
                if self.strict {
                    self.names.clone_from(&self.synced_names);
                }
            }
        }
    }

    /// The disk has the names and the sizes that it should, and `same` bytes.
    fn compare(&mut self, rig: &Rig, mut same: impl FnMut(&mut Bytes, Vec<u8>)) {
        let names: Vec<&str> = self.names.keys().map(|name| NAMES[*name]).collect();
        assert_eq!(rig.names(""), names);
        for (name, id) in &self.names {
            same(&mut self.files[*id], rig.read(NAMES[*name]));
        }
    }
}

/// Each part of a file is that of the last sync or of now; afterwards it is durable.
fn settle(file: &mut Bytes, found: Vec<u8>, unit: usize) {
    let (now, then) = (&file.now, &file.synced);
    let (least, most) = (now.len().min(then.len()), now.len().max(then.len()));
    assert!((least..=most).contains(&found.len()), "{}", found.len());
    for (number, chunk) in found.chunks(unit).enumerate() {
        let at = number * unit;
        let is = |bytes: &[u8]| part(bytes, at, chunk.len()) == chunk;
        // A file that was shortened and is not short has its old end.
        let old_end = now.len() < found.len().min(at + unit) && now.len() < then.len();
        let new = is(now) && !old_end;
        assert!(new || is(then), "neither old nor new at {at}");
    }
    file.cut(found);
}

/// A disk for one case, where disks can be mounted.
fn mounted(options: Options) -> Rig {
    rig(options).expect("a disk, as there was one just now")
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

#[test]
fn a_disk_keeps_exactly_what_is_durable() {
    if plain().is_none() {
        return;
    }
    let steps = prop::collection::vec(step_or_failure(), 1..60);
    proptest!(config(), |(steps in steps, strict: bool)| {
        let names = if strict { NamesPolicy::LostUnlessSynced } else { NamesPolicy::Durable };
        let rig = mounted(Options { names, ..Options::default() });
        let mut model = Model { strict, ..Model::default() };
        for step in steps.iter().chain([&Step::Cut]) {
            model.take(&rig, step);
            if matches!(step, Step::Cut) {
                model.files.iter_mut().for_each(|file| file.cut(file.synced.clone()));
            }
            model.compare(&rig, |file, found| assert!(file.now == found, "after {step:?}"));
        }
    });
}

#[test]
fn a_torn_disk_keeps_a_mixture_of_old_and_new() {
    if plain().is_none() {
        return;
    }
    let steps = prop::collection::vec(step(), 1..60);
    proptest!(config(), |(steps in steps, seed: u64, sectors: bool)| {
        let (torn, unit) = if sectors { (Torn::Sectors, 512) } else { (Torn::Pages, PAGE) };
        let rig = mounted(Options { seed, torn, ..Options::default() });
        let mut model = Model::default();
        for step in steps.iter().chain([&Step::Cut]) {
            model.take(&rig, step);
            if matches!(step, Step::Cut) {
                model.compare(&rig, |file, found| settle(file, found, unit));
            } else {
                model.compare(&rig, |file, found| assert!(file.now == found, "after {step:?}"));
            }
        }
    });
}
