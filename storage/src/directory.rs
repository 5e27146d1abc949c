//! The identity of a data directory, and the lock that keeps it to one process.
//!
//! A directory is formatted once, for one broker; it then carries an id of its
//! own for life. A broker whose disk was wiped comes back with another
//! directory id and is a new replica: an empty disk never votes as its
//! predecessor. Whatever does not match is refused before anything is written.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::engine;
use crate::housekeeper::{replace_file, sync_directory};
use crate::log::StorageError;

/// Version 2 has a checksum; version 1 is still read.
const FORMAT_VERSION: u32 = 2;
const IDENTITY: &str = "identity.json";
const LOCK: &str = "lock";
const STORE: &str = "store";

/// The file. Persisted: fields are only ever added, with a new version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Identity {
    format_version: u32,
    broker_id: u32,
    directory_id: Uuid,
    cluster_id: Option<Uuid>,
    /// CRC-32C of the other fields: a flipped bit must not make another replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<u32>,
}

impl Identity {
    /// The same in the newest version, with its checksum.
    fn sealed(mut self) -> Identity {
        self.format_version = FORMAT_VERSION;
        self.checksum = Some(self.sum());
        self
    }

    fn sum(&self) -> u32 {
        let cluster_id = self.cluster_id.unwrap_or_default();
        let fields = [
            &self.format_version.to_be_bytes()[..],
            &self.broker_id.to_be_bytes(),
            self.directory_id.as_bytes(),
            &[u8::from(self.cluster_id.is_some())],
            cluster_id.as_bytes(),
        ];
        crc32c::crc32c(&fields.concat())
    }

    fn is_sound(&self) -> bool {
        match self.format_version {
            1 => self.checksum.is_none(),
            FORMAT_VERSION => self.checksum == Some(self.sum()),
            _ => false,
        }
    }
}

/// Only the version, to tell a newer file from a damaged one.
#[derive(Deserialize)]
struct Version {
    format_version: u32,
}

/// An opened and locked data directory. The lock is held until this is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    identity: Mutex<Identity>,
    _lock: File,
}

impl DataDirectory {
    /// Opens the directory of this broker; formats it if it is missing or empty.
    pub fn open_or_format(path: &Path, broker_id: u32) -> Result<DataDirectory, StorageError> {
        let existed = path.exists();
        if existed {
            refuse_foreign(path)?;
        } else {
            fs::create_dir_all(path)
                .map_err(|error| refused(path, format!("can't be created: {error}")))?;
        }
        let lock = lock(path)?;
        let identity = match read_identity(path)? {
            Some(identity) if identity.broker_id != broker_id => {
                return Err(refused(
                    path,
                    format!(
                        "belongs to broker {}, this is broker {broker_id}; check the node id and the data path",
                        identity.broker_id
                    ),
                ));
            }
            Some(identity) => identity,
            None => {
                let identity = Identity {
                    format_version: FORMAT_VERSION,
                    broker_id,
                    directory_id: Uuid::new_v4(),
                    cluster_id: None,
                    checksum: None,
                }
                .sealed();
                write_identity(path, &identity)?;
                sync_parent(path)?;
                identity
            }
        };
        Ok(DataDirectory {
            path: path.to_owned(),
            identity: Mutex::new(identity),
            _lock: lock,
        })
    }

    /// Where the directory is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the store lies in it; see [`crate::Engine::open`].
    pub fn store_path(&self) -> PathBuf {
        self.path.join(STORE)
    }

    /// Refuses to go on with the id of a directory that was part of a cluster
    /// and has lost its store: it would vote as what it was, and know nothing.
    pub fn check_store(&self) -> Result<(), StorageError> {
        if self.cluster_id().is_none() {
            return Ok(());
        }
        let reason = match engine::exists(&self.store_path()) {
            Ok(true) => return Ok(()),
            Ok(false) => {
                "has lost its store; if all of its file systems are mounted, remove the data directory \
                 of this broker and start it again: the other replicas fill a new one"
                    .to_owned()
            }
            Err(error) => format!("has a store that can't be read: {error}"),
        };
        Err(refused(&self.path, reason))
    }

    /// The broker that it belongs to.
    pub fn broker_id(&self) -> u32 {
        self.identity().broker_id
    }

    /// Its own id, for life.
    pub fn directory_id(&self) -> u128 {
        self.identity().directory_id.as_u128()
    }

    /// The cluster that it belongs to, once it was part of one.
    pub fn cluster_id(&self) -> Option<u128> {
        self.identity().cluster_id.map(|id| id.as_u128())
    }

    /// Binds it to a cluster, for life; durable when this returns. Another
    /// cluster than before is refused.
    pub fn set_cluster_id(&self, cluster_id: u128) -> Result<(), StorageError> {
        let cluster_id = Uuid::from_u128(cluster_id);
        let mut identity = self.identity();
        match identity.cluster_id {
            Some(found) if found == cluster_id => Ok(()),
            Some(found) => Err(refused(
                &self.path,
                format!("belongs to cluster {found}, this is cluster {cluster_id}"),
            )),
            None => {
                let bound = Identity {
                    cluster_id: Some(cluster_id),
                    ..identity.clone()
                }
                .sealed();
                write_identity(&self.path, &bound)?;
                *identity = bound;
                Ok(())
            }
        }
    }

    fn identity(&self) -> std::sync::MutexGuard<'_, Identity> {
        self.identity.lock().expect("changed only as a whole")
    }
}

fn refused(path: &Path, reason: String) -> StorageError {
    StorageError::Directory {
        path: path.display().to_string(),
        reason,
    }
}

/// A directory with files in it, but not ours, is left alone. A format that was
/// cut off before the identity was written leaves the lock file only.
fn refuse_foreign(path: &Path) -> Result<(), StorageError> {
    let unreadable = |error: io::Error| refused(path, format!("can't be read: {error}"));
    let names: Vec<_> = fs::read_dir(path)
        .map_err(unreadable)?
        .map(|file| file.map(|file| file.file_name()))
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    let ours = names.iter().any(|name| name == IDENTITY);
    let foreign = names
        .iter()
        .find(|name| *name != LOCK && *name != "identity.new" && *name != "lost+found");
    match foreign {
        Some(name) if !ours => Err(refused(
            path,
            format!(
                "is not a data directory and is not empty (it holds {}); give an empty or a new one",
                name.display()
            ),
        )),
        _ => Ok(()),
    }
}

fn lock(path: &Path) -> Result<File, StorageError> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK))
        .map_err(|error| refused(path, format!("can't be written: {error}")))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(refused(path, "is in use by a running process".to_owned()))
        }
        Err(TryLockError::Error(error)) => Err(refused(path, format!("can't be locked: {error}"))),
    }
}

fn read_identity(path: &Path) -> Result<Option<Identity>, StorageError> {
    let bytes = match fs::read(path.join(IDENTITY)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(path, format!("{IDENTITY} can't be read: {error}"))),
    };
    let damaged = |reason: String| {
        refused(
            path,
            format!(
                "{IDENTITY} is damaged ({reason}); restore it, or remove the data directory of this broker and start it \
                 again: the other replicas fill a new one"
            ),
        )
    };
    let unreadable = |error: serde_json::Error| damaged(error.to_string());
    let Version { format_version } = serde_json::from_slice(&bytes).map_err(unreadable)?;
    if format_version > FORMAT_VERSION {
        return Err(refused(
            path,
            format!(
                "was written in format {format_version}, this program knows up to {FORMAT_VERSION}; use the newer program"
            ),
        ));
    }
    let identity: Identity = serde_json::from_slice(&bytes).map_err(unreadable)?;
    match identity.is_sound() {
        true => Ok(Some(identity)),
        false => Err(damaged("its checksum is wrong".to_owned())),
    }
}

fn write_identity(path: &Path, identity: &Identity) -> Result<(), StorageError> {
    let io = |source| StorageError::Io {
        doing: "writing the identity of the data directory",
        source,
    };
    let mut bytes = serde_json::to_vec_pretty(identity).map_err(|error| io(error.into()))?;
    bytes.push(b'\n');
    replace_file(&path.join(IDENTITY), &bytes).map_err(io)
}

/// The name of a directory just made must survive a power cut.
fn sync_parent(path: &Path) -> Result<(), StorageError> {
    let parent = path.parent().unwrap_or(path);
    sync_directory(parent).map_err(|source| StorageError::Io {
        doing: "syncing the parent of the data directory",
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(result: Result<DataDirectory, StorageError>) -> String {
        match result {
            Err(StorageError::Directory { reason, .. }) => reason,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn a_directory_without_its_store_does_not_go_on_as_what_it_was() {
        let path = tempfile::tempdir().unwrap();
        let directory = DataDirectory::open_or_format(path.path(), 3).unwrap();
        directory.check_store().expect("it is new");
        let options = crate::EngineOptions::default();
        drop(crate::Engine::open(&directory.store_path(), options).unwrap());
        directory.set_cluster_id(77).unwrap();
        directory.check_store().expect("it has one");
        for gone in [path.path().join("store/rocksdb"), path.path().join("store")] {
            fs::remove_dir_all(gone).unwrap();
            let refused = directory.check_store().expect_err("it has none");
            assert!(
                refused.to_string().contains("has lost its store"),
                "{refused}"
            );
        }
    }

    #[test]
    fn a_directory_keeps_its_id_and_binds_to_one_cluster() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = DataDirectory::open_or_format(&path, 3).unwrap();
        let id = first.directory_id();
        assert_eq!((first.broker_id(), first.cluster_id()), (3, None));
        first.set_cluster_id(77).unwrap();
        drop(first);
        let again = DataDirectory::open_or_format(&path, 3).unwrap();
        assert_eq!(again.directory_id(), id);
        assert_eq!(again.cluster_id(), Some(77));
        again.set_cluster_id(77).unwrap();
        assert!(again.set_cluster_id(78).is_err());
        assert_eq!(again.cluster_id(), Some(77));

        fs::remove_dir_all(&path).unwrap();
        drop(again);
        let wiped = DataDirectory::open_or_format(&path, 3).unwrap();
        assert_ne!(wiped.directory_id(), id);
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_as_it_was() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path();
        fs::write(path.join("photo.jpg"), b"x").unwrap();
        assert!(reason(DataDirectory::open_or_format(path, 1)).contains("photo.jpg"));
        assert_eq!(fs::read_dir(path).unwrap().count(), 1);

        let path = &parent.path().join("data");
        drop(DataDirectory::open_or_format(path, 1).unwrap());
        let identity = fs::read(path.join(IDENTITY)).unwrap();
        let other = reason(DataDirectory::open_or_format(path, 2));
        assert!(
            other.contains("belongs to broker 1, this is broker 2"),
            "{other}"
        );
        assert_eq!(fs::read(path.join(IDENTITY)).unwrap(), identity);

        let newer = String::from_utf8(identity.clone())
            .unwrap()
            .replace("\"format_version\": 2", "\"format_version\": 9, \"new\": 1");
        for (text, expected) in [
            (newer.as_str(), "format 9"),
            ("", "damaged"),
            ("{\"format_version\": 1}", "damaged"),
        ] {
            fs::write(path.join(IDENTITY), text).unwrap();
            let found = reason(DataDirectory::open_or_format(path, 1));
            assert!(found.contains(expected), "{found}");
            assert_eq!(fs::read_to_string(path.join(IDENTITY)).unwrap(), text);
        }
    }

    #[test]
    fn a_directory_in_use_is_refused() {
        let path = tempfile::tempdir().unwrap();
        let _held = DataDirectory::open_or_format(path.path(), 1).unwrap();
        let found = reason(DataDirectory::open_or_format(path.path(), 1));
        assert!(found.contains("in use"), "{found}");
    }

    #[test]
    fn the_identity_file_is_golden() {
        let identity = Identity {
            format_version: 1,
            broker_id: 7,
            directory_id: Uuid::from_u128(1),
            cluster_id: Some(Uuid::from_u128(2)),
            checksum: None,
        };
        let first = "{\"format_version\":1,\"broker_id\":7,\
             \"directory_id\":\"00000000-0000-0000-0000-000000000001\",\
             \"cluster_id\":\"00000000-0000-0000-0000-000000000002\"}";
        assert_eq!(serde_json::to_string(&identity).unwrap(), first);
        assert!(identity.is_sound(), "version 1 is still read");
        assert_eq!(
            serde_json::to_string(&identity.sealed()).unwrap(),
            "{\"format_version\":2,\"broker_id\":7,\
             \"directory_id\":\"00000000-0000-0000-0000-000000000001\",\
             \"cluster_id\":\"00000000-0000-0000-0000-000000000002\",\"checksum\":1968540315}"
        );
    }

    #[test]
    fn an_identity_of_the_first_version_is_read_and_sealed_when_it_changes() {
        let path = tempfile::tempdir().unwrap();
        let text = "{\"format_version\":1,\"broker_id\":7,\
             \"directory_id\":\"00000000-0000-0000-0000-000000000001\",\"cluster_id\":null}";
        fs::write(path.path().join(IDENTITY), text).unwrap();
        let first = DataDirectory::open_or_format(path.path(), 7).unwrap();
        assert_eq!((first.directory_id(), first.cluster_id()), (1, None));
        first.set_cluster_id(9).unwrap();
        drop(first);
        let again = DataDirectory::open_or_format(path.path(), 7).unwrap();
        assert_eq!((again.directory_id(), again.cluster_id()), (1, Some(9)));
        assert_eq!(again.identity().format_version, 2);
    }

    #[test]
    fn no_flipped_bit_makes_another_identity() {
        let path = tempfile::tempdir().unwrap();
        let made = DataDirectory::open_or_format(path.path(), 3).unwrap();
        made.set_cluster_id(77).unwrap();
        let identity = made.identity().clone();
        let file = path.path().join(IDENTITY);
        let bytes = fs::read(&file).unwrap();
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&file, flipped).unwrap();
            if let Ok(found) = read_identity(path.path()) {
                assert_eq!(found.as_ref(), Some(&identity), "bit {bit}");
            }
        }
    }
}
