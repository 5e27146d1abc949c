//! What a power cut leaves of the bytes of files.

use crate::rig::{plain, torn};
use drave_durability::disk::{Loss, Torn};
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

const PAGE: usize = 4096;

#[test]
fn what_was_synced_survives_and_what_was_only_written_is_gone() {
    let Some(rig) = plain() else { return };
    rig.synced("synced", b"stays");
    fs::write(rig.path("written"), b"goes").expect("written");
    assert_eq!(rig.read("written"), b"goes");
    assert_eq!(rig.disk.stats().bytes_not_durable, 4);
    let lost = Loss {
        files: 1,
        bytes: 4,
        names: 0,
    };
    assert_eq!(rig.cut(), lost);
    assert_eq!(rig.read("synced"), b"stays");
    assert_eq!(rig.read("written"), b"");
    assert_eq!(rig.cut(), Loss::default());
}

#[test]
fn an_overwritten_file_returns_to_its_synced_bytes() {
    let Some(rig) = plain() else { return };
    let bytes: Vec<u8> = (0..3 * PAGE + 100).map(|at| (at % 251) as u8).collect();
    let file = rig.synced("file", &bytes);
    file.write_all_at(&[7; 2 * PAGE], 1000).expect("written");
    file.write_all_at(&[8; 200], 3 * PAGE as u64)
        .expect("written");
    file.sync_data().expect("synced");
    let synced = rig.read("file");
    assert_ne!(synced, bytes);
    file.write_all_at(&[9; 5000], 500).expect("written");
    file.write_all_at(&[9; 50], 4 * PAGE as u64)
        .expect("written");
    drop(file);
    rig.cut();
    assert_eq!(rig.read("file"), synced);
}

#[test]
fn a_size_is_durable_with_fdatasync() {
    let Some(rig) = plain() else { return };
    let mut bytes = vec![5; 3 * PAGE];
    let mut file = rig.synced("file", &bytes);
    file.set_len(100).expect("shortened");
    file.set_len(2 * PAGE as u64).expect("lengthened");
    let mut shortened = vec![5; 100];
    shortened.resize(2 * PAGE, 0);
    assert_eq!(rig.read("file"), shortened);
    rig.cut();
    assert_eq!(rig.read("file"), bytes);

    file = File::options()
        .append(true)
        .open(rig.path("file"))
        .expect("a file");
    file.write_all(b"appended").expect("written");
    file.sync_data().expect("synced");
    file.write_all(b"and more").expect("written");
    rig.cut();
    bytes.extend(b"appended");
    assert_eq!(rig.read("file"), bytes);

    file = File::create(rig.path("file")).expect("truncated");
    file.write_all(b"new").expect("written");
    rig.cut();
    assert_eq!(rig.read("file"), bytes);
    file = File::create(rig.path("file")).expect("truncated");
    file.sync_data().expect("synced");
    rig.cut();
    assert_eq!(rig.read("file"), b"");
}

#[test]
fn synchronous_writes_survive() {
    let Some(rig) = plain() else { return };
    for (name, flags) in [("sync", OFlags::SYNC), ("dsync", OFlags::DSYNC)] {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flags.bits() as i32)
            .open(rig.path(name))
            .expect("a file");
        file.write_all(b"at once").expect("written");
    }
    assert_eq!(rig.cut(), Loss::default());
    assert_eq!(rig.read("sync"), b"at once");
    assert_eq!(rig.read("dsync"), b"at once");
}

#[test]
fn direct_writes_are_not_durable_by_themselves() {
    let Some(rig) = plain() else { return };
    let page = vec![3; 4 * PAGE];
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(rig.path("file"))
        .expect("a file");
    file.write_all_at(&page, 0).expect("written");
    file.sync_data().expect("synced");
    file.write_all_at(&[4; 2 * PAGE], 0).expect("written");
    let mut read = vec![0; 4 * PAGE];
    file.read_exact_at(&mut read, 0).expect("read");
    assert_eq!(read[..2 * PAGE], [4; 2 * PAGE]);
    rig.cut();
    assert_eq!(rig.read("file"), page);
}

#[test]
fn allocated_and_punched_space_follows_the_rules_of_sizes() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", &[6; 4 * PAGE]);
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).expect("allocated");
    assert_eq!(file.metadata().expect("attributes").len(), 4 * PAGE as u64);
    assert_eq!(
        file.metadata().expect("attributes").blocks(),
        (1 << 20) / 512
    );
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).expect("allocated");
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 10, 2 * PAGE as u64).expect("punched");
    fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * PAGE as u64, 9).expect("zeroed");
    let read = rig.read("file");
    assert_eq!(read.len(), 1 << 20);
    assert_eq!(read[..10], [6; 10]);
    assert_eq!(read[10..10 + 2 * PAGE], [0; 2 * PAGE]);
    assert_eq!(read[3 * PAGE..3 * PAGE + 9], [0; 9]);
    rig.cut();
    assert_eq!(rig.read("file"), [6; 4 * PAGE]);
}

#[test]
fn a_file_unlinked_while_open_is_used_to_its_end() {
    let Some(rig) = plain() else { return };
    let mut file = rig.synced("file", b"first ");
    fs::remove_file(rig.path("file")).expect("removed");
    file.write_all(b"second").expect("written");
    file.seek(SeekFrom::Start(0)).expect("at the start");
    let mut read = String::new();
    file.read_to_string(&mut read).expect("read");
    assert_eq!(read, "first second");
    assert_eq!(file.metadata().expect("attributes").nlink(), 0);
    let other = rig.synced("file", b"other");
    file.sync_all().expect("synced");
    drop((file, other));
    rig.cut();
    assert_eq!(rig.names(""), ["file"]);
    assert_eq!(rig.read("file"), b"other");
}

#[test]
fn handles_fail_from_the_cut_on_and_the_disk_comes_back() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", b"old");
    file.write_all_at(b"new", 0).expect("written");
    rig.disk.power_cut().expect("a power cut");
    let is_eio = |error: std::io::Error| {
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    };
    is_eio(file.write_all_at(b"late", 0).expect_err("no power"));
    is_eio(file.sync_all().expect_err("no power"));
    is_eio(File::create(rig.path("late")).expect_err("no power"));
    is_eio(fs::read_dir(rig.disk.path()).expect_err("no power"));
    rig.disk.power_cut().expect_err("it is off already");
    // What is changed while the power is off is there when it is on again.
    fs::write(rig.backing.path().join("repaired"), b"by hand").expect("written");
    rig.disk.power_on().expect("power");
    rig.disk.power_on().expect_err("it is on already");
    let gone = file.sync_all().expect_err("a handle from before the cut");
    assert_eq!(gone.kind(), ErrorKind::NotConnected, "{gone}");
    assert_eq!(rig.read("file"), b"old");
    assert_eq!(rig.read("repaired"), b"by hand");
}

#[test]
fn torn_writes_leave_whole_pages_of_old_or_new() {
    for (kind, unit) in [(Torn::Pages, PAGE), (Torn::Sectors, 512)] {
        let mut results = Vec::new();
        for seed in [1, 2, 1] {
            let Some(rig) = torn(kind, seed) else { return };
            let file = rig.synced("file", &[1; 40 * PAGE]);
            file.write_all_at(&[2; 40 * PAGE], 8 * PAGE as u64)
                .expect("written");
            drop(file);
            rig.cut();
            let bytes = rig.read("file");
            assert!((40 * PAGE..=48 * PAGE).contains(&bytes.len()));
            assert_eq!(bytes[..8 * PAGE], [1; 8 * PAGE], "nobody wrote there");
            let (mut old, mut new) = (0, 0);
            for (number, chunk) in bytes.chunks(unit).enumerate().skip(8 * PAGE / unit) {
                let before = if number * unit < 40 * PAGE { 1 } else { 0 };
                assert!(chunk.iter().all(|byte| *byte == chunk[0]), "{number}");
                assert!([before, 2].contains(&chunk[0]), "{number}: {}", chunk[0]);
                *(if chunk[0] == 2 { &mut new } else { &mut old }) += 1;
            }
            assert!(old > 0 && new > 0, "{old} old, {new} new");
            results.push(bytes);
        }
        assert_eq!(results[0], results[2], "the same seed");
        assert_ne!(results[0], results[1], "another seed");
    }
}
