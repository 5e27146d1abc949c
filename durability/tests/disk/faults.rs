//! Slow and failing syncs, a full disk, and owners that end badly.

use crate::rig::{plain, rig, strict};
use drave_durability::disk::{Disk, Loss, Options};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

#[test]
fn a_failed_sync_loses_what_it_should_have_kept() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", &[1; 3 * PAGE as usize + 10]);
    file.write_all_at(&[2; 5], 0).expect("written");
    file.write_all_at(&[2; 5], 2 * PAGE).expect("written");
    file.write_all_at(&[2; 9000], 3 * PAGE + 10)
        .expect("written");
    rig.disk.fail_syncs(true);
    let error = file.sync_data().expect_err("a failed sync");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    rig.disk.fail_syncs(false);
    // One of the pages is written once more: it alone is dirty.
    file.write_all_at(&[3; 5], 2 * PAGE + 5).expect("written");
    file.sync_data().expect("this one succeeds");
    let mut seen = vec![1; 3 * PAGE as usize + 10];
    seen.extend([2; 9000]);
    seen[..5].fill(2);
    let again = 2 * PAGE as usize;
    seen[again..again + 5].fill(2);
    seen[again + 5..again + 10].fill(3);
    assert_eq!(rig.read("file"), seen, "readers see the cache");
    drop(file);
    rig.cut();
    seen[..5].fill(1);
    seen[3 * PAGE as usize + 10..].fill(0);
    assert_eq!(rig.read("file"), seen);
}

#[test]
fn what_a_failed_sync_lost_does_not_come_back_beyond_a_shorter_file() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", &[1; PAGE as usize]);
    file.set_len(100).expect("shortened");
    rig.disk.fail_syncs(true);
    file.sync_data().expect_err("a failed sync");
    rig.disk.fail_syncs(false);
    file.sync_data().expect("the size at least");
    file.write_all_at(&[2; 10], PAGE).expect("written");
    file.sync_data().expect("synced");
    drop(file);
    rig.cut();
    let mut left = vec![1; 100];
    left.resize(PAGE as usize, 0);
    left.extend([2; 10]);
    assert_eq!(rig.read("file"), left);
}

#[test]
fn a_failed_sync_of_a_folder_keeps_no_names() {
    let Some(rig) = strict() else { return };
    rig.synced("file", b"bytes");
    rig.disk.fail_syncs(true);
    let folder = File::open(rig.disk.path()).expect("a folder");
    folder.sync_all().expect_err("a failed sync");
    drop(folder);
    rig.cut();
    assert!(rig.names("").is_empty());
}

#[test]
fn a_settled_disk_loses_nothing() {
    let Some(rig) = strict() else { return };
    fs::create_dir(rig.path("folder")).expect("a folder");
    fs::write(rig.path("folder/file"), b"bytes").expect("written");
    fs::write(rig.path("gone"), b"bytes").expect("written");
    fs::remove_file(rig.path("gone")).expect("removed");
    rig.disk.settle().expect("settled");
    assert_eq!(rig.disk.stats().bytes_not_durable, 0);
    assert_eq!(rig.cut(), Loss::default());
    assert_eq!(rig.names(""), ["folder"]);
    assert_eq!(rig.read("folder/file"), b"bytes");
    rig.disk.power_cut().expect("a power cut");
    rig.disk.settle().expect_err("no power");
}

#[test]
fn a_slow_sync_keeps_nobody_else_waiting() {
    let Some(rig) = plain() else { return };
    let delay = Duration::from_secs(1);
    let syncs = rig.disk.stats().syncs;
    rig.disk.set_sync_delay(delay);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..8)
            .map(|number| {
                let rig = &rig;
                scope.spawn(move || rig.synced(&format!("file-{number}"), b"bytes"))
            })
            .collect();
        let mut others = 0;
        while !slow.iter().all(|thread| thread.is_finished()) {
            fs::write(rig.path("other"), b"quick").expect("written");
            others += 1;
        }
        assert!(others > 1, "{others} writes meanwhile");
    });
    assert!(begun.elapsed() >= delay);
    assert!(begun.elapsed() < 8 * delay, "{:?}", begun.elapsed());
    assert_eq!(rig.disk.stats().syncs, syncs + 8);
}

#[test]
fn a_sync_that_waits_when_the_power_goes_keeps_nothing() {
    let Some(rig) = plain() else { return };
    rig.disk.set_sync_delay(Duration::from_secs(2));
    let mut file = File::create(rig.path("file")).expect("a file");
    file.write_all(b"bytes").expect("written");
    std::thread::scope(|scope| {
        let sync = scope.spawn(|| file.sync_all());
        std::thread::sleep(Duration::from_millis(100));
        rig.disk.power_cut().expect("a power cut");
        let synced = sync.join().expect("no panic");
        synced.expect_err("the power was off before the sync was done");
    });
    rig.disk.power_on().expect("power");
    assert_eq!(rig.read("file"), b"");
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", &[1; 8 * PAGE as usize]);
    rig.disk.set_capacity(Some(10 * PAGE + 100));
    let free = || {
        let room = rustix::fs::statvfs(rig.disk.path()).expect("room");
        (room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)
    };
    assert_eq!(free(), (10 * PAGE, 2 * PAGE));
    // As much is written as there is room for, and then nothing.
    let written = file.write_at(&[2; 4 * PAGE as usize], 8 * PAGE - 10);
    assert_eq!(written.expect("some of it"), 2 * PAGE as usize + 10);
    assert_eq!(free().1, 0);
    let full = |result: std::io::Result<()>| {
        assert_eq!(result.expect_err("full").kind(), ErrorKind::StorageFull);
    };
    full(file.write_all_at(&[2; 10], 10 * PAGE));
    full(fs::write(rig.path("other"), b"bytes"));
    file.write_all_at(&[3; 100], 0)
        .expect("there is room already");
    file.sync_all().expect("synced");
    full(
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, 20 * PAGE)
            .map_err(Into::into),
    );

    file.set_len(9 * PAGE).expect("shortened");
    assert_eq!(free().1, PAGE);
    fs::write(rig.path("other"), b"bytes").expect("there is room now");
    full(file.write_all_at(&[2; 10], 9 * PAGE));
    fs::remove_file(rig.path("other")).expect("removed");
    file.write_all_at(&[2; 10], 9 * PAGE)
        .expect("there is room again");
    rig.disk.set_capacity(None);
    file.write_all_at(&[2; 100_000], 10 * PAGE)
        .expect("no limit");
    assert!(free().1 > 10 * PAGE);

    // The power cut takes the space of what was not durable with it.
    drop(file);
    rig.cut();
    rig.disk.set_capacity(Some(11 * PAGE));
    assert_eq!(free().1, PAGE);
}

#[test]
fn removed_files_take_no_room_even_while_they_may_come_back() {
    let Some(rig) = strict() else { return };
    let file = rig.synced("file", &[1; 8 * PAGE as usize]);
    rig.sync_folder("");
    rig.disk.set_capacity(Some(8 * PAGE));
    fs::remove_file(rig.path("file")).expect("removed");
    let full = fs::write(rig.path("other"), b"bytes").expect_err("it is open still");
    assert_eq!(full.kind(), ErrorKind::StorageFull);
    drop(file);
    let begun = Instant::now();
    while fs::write(rig.path("other"), b"bytes").is_err() {
        assert!(begun.elapsed() < Duration::from_secs(10), "no room");
    }
    rig.cut();
    assert_eq!(rig.read("file"), [1; 8 * PAGE as usize]);
    assert_eq!(rig.names(""), ["file"]);
}

#[test]
fn a_drop_keeps_what_was_written_and_ends_a_busy_disk() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", b"synced");
    file.write_all_at(b" and written", 6).expect("written");
    let at = rig.disk.path().to_owned();
    drop(rig.disk);
    file.write_all_at(b"late", 0).expect_err("it is unmounted");
    assert_eq!(fs::read_dir(&at).expect("a folder").count(), 0);
    let kept = fs::read(rig.backing.path().join("file")).expect("a file");
    assert_eq!(kept, b"synced and written");
    assert_eq!(
        fs::read_dir(rig.backing.path()).expect("a folder").count(),
        1
    );
}

#[test]
fn a_drop_without_power_leaves_what_was_durable() {
    let Some(rig) = plain() else { return };
    let file = rig.synced("file", b"synced");
    file.write_all_at(b" and written", 6).expect("written");
    let at = rig.disk.path().to_owned();
    rig.disk.power_cut().expect("a power cut");
    drop(rig.disk);
    file.sync_all().expect_err("it is unmounted");
    assert_eq!(fs::read_dir(&at).expect("a folder").count(), 0);
    let kept = fs::read(rig.backing.path().join("file")).expect("a file");
    assert_eq!(kept, b"synced");
}

#[test]
fn a_panic_of_the_owner_unmounts_the_disk() {
    let Some(rig) = plain() else { return };
    let at = rig.disk.path().to_owned();
    let owner = std::thread::spawn(move || {
        let rig = rig;
        let file = rig.synced("file", b"bytes");
        // The folders go with the rig: only an empty mount point can be removed.
        drop(file);
        assert!(rig.names("").is_empty(), "this is the panic");
    });
    owner.join().expect_err("a panic");
    assert!(!at.exists(), "the mount point is removed with its folder");
}

/// Mounts a disk and aborts, in a process of its own.
#[test]
fn a_mount_point_can_be_used_again_when_its_owner_was_killed() {
    const OWNER: &str = "DRAVE_TEST_DISK_OWNER";
    if let Ok(folders) = std::env::var(OWNER) {
        let (backing, at) = folders.split_once(':').expect("two folders");
        let disk = Disk::mount(backing.as_ref(), at.as_ref(), Options::default());
        let disk = disk.expect("a disk");
        fs::write(disk.path().join("file"), b"bytes").expect("written");
        std::process::abort();
    }
    let Some(probe) = rig(Options::default()) else {
        return;
    };
    drop(probe);
    let folder = || tempfile::tempdir().expect("a folder");
    let (backing, at) = (folder(), folder());
    let folders = format!("{}:{}", backing.path().display(), at.path().display());
    let ended = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args([
            "--exact",
            "faults::a_mount_point_can_be_used_again_when_its_owner_was_killed",
        ])
        .env(OWNER, folders)
        .output()
        .expect("run to its end");
    assert!(!ended.status.success(), "it aborts");
    let disk = Disk::mount(backing.path(), at.path(), Options::default()).expect("a disk");
    let bytes = fs::read(disk.path().join("file")).expect("a file");
    assert_eq!(bytes, b"bytes");
}

#[test]
fn folders_that_can_not_be_used_are_refused() {
    let Some(rig) = plain() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir(folder.path().join("inside")).expect("a folder");
    let inside = folder.path().join("inside");
    let mount = |backing, at| Disk::mount(backing, at, Options::default());
    for (backing, at) in [
        (folder.path(), inside.as_path()),
        (rig.backing.path(), folder.path()),
        (folder.path(), rig.disk.path()),
        (folder.path(), std::path::Path::new("/nowhere")),
    ] {
        mount(backing, at).expect_err("refused");
    }
}
