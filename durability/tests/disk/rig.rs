//! A disk in temporary folders, for one test.

use drave_durability::disk::{Disk, Loss, NamesPolicy, Options, Torn};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use tempfile::TempDir;

/// A disk, and the folders it lives in. The disk is dropped before them.
pub(crate) struct Rig {
    pub(crate) disk: Disk,
    pub(crate) backing: TempDir,
    _at: TempDir,
}

/// Mounts a disk, or says why it can't be done here.
pub(crate) fn rig(options: Options) -> Option<Rig> {
    let folder = || tempfile::tempdir().expect("a temporary folder");
    let (backing, at) = (folder(), folder());
    match Disk::mount(backing.path(), at.path(), options) {
        Ok(disk) => Some(Rig {
            disk,
            backing,
            _at: at,
        }),
        Err(error) => {
            let usable = File::options().read(true).write(true).open("/dev/fuse");
            let forbidden = error.kind() == ErrorKind::PermissionDenied;
            assert!(usable.is_err() || forbidden, "mount: {error}");
            skipped(&error.to_string());
            None
        }
    }
}

/// Says on stderr, past what the test harness captures, why a test did not run.
pub(crate) fn skipped(why: &str) {
    let line = format!("\nskipped test: a disk that loses power: {why}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("stderr can be written to");
}

/// A disk that loses all that is not synced, names apart.
pub(crate) fn plain() -> Option<Rig> {
    rig(Options::default())
}

/// A disk that loses names, too.
pub(crate) fn strict() -> Option<Rig> {
    rig(Options {
        names: NamesPolicy::LostUnlessSynced,
        ..Options::default()
    })
}

/// A disk that tears writes.
pub(crate) fn torn(torn: Torn, seed: u64) -> Option<Rig> {
    rig(Options {
        seed,
        torn,
        ..Options::default()
    })
}

impl Rig {
    /// Where a file is on the disk.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    /// Cuts the power and turns it on again.
    pub(crate) fn cut(&self) -> Loss {
        let loss = self.disk.power_cut().expect("a power cut");
        self.disk.power_on().expect("power");
        loss
    }

    /// Makes a file of these bytes, all durable but its name.
    pub(crate) fn synced(&self, name: &str, bytes: &[u8]) -> File {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.path(name))
            .expect("a new file");
        file.write_all(bytes).expect("written");
        file.sync_all().expect("synced");
        file
    }

    /// Makes the names in a folder durable.
    pub(crate) fn sync_folder(&self, name: &str) {
        let folder = File::open(self.path(name)).expect("a folder");
        folder.sync_all().expect("synced");
    }

    pub(crate) fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).expect("a file that can be read")
    }

    /// The names in a folder, in order.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(folder))
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name())
            .map(|name| name.into_string().expect("a name in UTF-8"))
            .collect();
        names.sort();
        names
    }
}
