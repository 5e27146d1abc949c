//! The disk: one RocksDB for all groups of a node.
//!
//! Three threads belong to an engine: the writer and the sync thread
//! ([`crate::writer`]) and the housekeeper ([`crate::housekeeper`]). All sleep
//! while there is nothing to do. Dropping the engine writes and syncs what is
//! queued, and ends them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock, mpsc};
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use rocksdb::DB;

use crate::blob_files;
use crate::housekeeper::{self, Housekeeper};
use crate::keys::{self, Kind};
use crate::log::{
    Checkpoint, Done, Entry, GroupId, GroupState, LogStore, StorageError, StoreActivity, Write,
};
use crate::manifest;
use crate::options;
pub use crate::options::EngineOptions;
use crate::reader::{Reader, io_error};
use crate::shared::{POISONED, Shared};
use crate::tail_cache::Evictor;
use crate::watermark;
use crate::writer::{Change, Writer, fatal};

/// Whether a store was ever made in `path`.
pub(crate) fn exists(path: &Path) -> io::Result<bool> {
    // Names the newest manifest; there is no database without it.
    path.join("rocksdb").join("CURRENT").try_exists()
}

/// A [`LogStore`] on disk.
pub struct Engine {
    shared: Arc<Shared>,
    on_damage: fn(&StorageError),
    writer: Option<JoinHandle<()>>,
    syncer: Option<JoinHandle<()>>,
    housekeeper: Option<JoinHandle<()>>,
}

impl Engine {
    /// Opens the store in `path`, or makes an empty one.
    pub fn open(path: &Path, engine_options: EngineOptions) -> Result<Arc<Engine>, StorageError> {
        let refused = |reason: String| StorageError::Directory {
            path: path.display().to_string(),
            reason,
        };
        let io = |doing| move |source: io::Error| StorageError::Io { doing, source };
        fs::create_dir_all(path).map_err(io("creating the store's directory"))?;
        let watermark_path = path.join("synced");
        let watermark = watermark::read(&watermark_path).map_err(|error| {
            refused(format!(
                "its record of what was synced, {}, can't be read ({error}), so nobody can say whether anything is \
                 missing; {WAY_OUT}",
                watermark_path.display()
            ))
        })?;
        let direct = options::supports_direct_io(path);
        if !direct {
            tracing::warn!(path = %path.display(), "no direct i/o here, flushes go through the page cache");
        }
        let database = path.join("rocksdb");
        if let Some(known) = watermark {
            manifest::check(&database, known.manifest).map_err(|reason| StorageError::Damaged {
                path: database.display().to_string(),
                reason,
            })?;
        }
        let mut db_options = options::database(&engine_options, direct);
        // Whoever has synced something has a database: another one would hide its loss.
        db_options.create_if_missing(watermark.is_none());
        let db =
            DB::open_cf_descriptors(&db_options, &database, options::families(&engine_options))
                .map_err(|error| opening_failed(&database, error))?;
        // The names of the directories made here must survive a power cut too.
        for directory in [Some(path), path.parent()].into_iter().flatten() {
            housekeeper::sync_directory(directory).map_err(io("syncing the store's directory"))?;
        }
        check_format(&db, &database).map_err(|error| match error {
            FormatError::Newer(found) => refused(format!(
                "its format is version {found}, this program writes version {}; use the program that wrote it",
                keys::FORMAT_VERSION
            )),
            FormatError::Database(error) => error,
        })?;
        let recovered = db.latest_sequence_number();
        let synced = watermark.map_or(0, |known| known.sequence);
        if recovered < synced {
            return Err(refused(format!(
                "synced data was lost: recovery ended at {recovered}, but {synced} had been synced; \
                 the disk can't be trusted; {WAY_OUT}"
            )));
        }
        let housekeeper = Housekeeper::new(watermark_path);
        // The manifest is another one with every start.
        housekeeper
            .mark(&db, synced)
            .map_err(io("writing the watermark"))?;
        Engine::start(db, housekeeper, &engine_options).map_err(io("starting the storage threads"))
    }

    fn start(
        db: DB,
        housekeeper: Housekeeper,
        engine_options: &EngineOptions,
    ) -> io::Result<Arc<Engine>> {
        let shared = Arc::new(Shared {
            db,
            groups: RwLock::default(),
            writer: Writer::new(engine_options.queue_bytes_max),
            housekeeper,
        });
        let evictor = Evictor::new(engine_options.tail_cache_bytes);
        let spawn = |name: &str, body: Box<dyn FnOnce(Arc<Shared>) + Send>| {
            let shared = shared.clone();
            let thread = thread::Builder::new().name(name.into());
            thread.spawn(move || body(shared))
        };
        let writer = spawn(
            "store-writer",
            Box::new(move |shared| {
                let gone = |change: &Change| shared.gone(change);
                shared.writer.run_writer(&shared.db, evictor, gone);
            }),
        )?;
        let syncer = spawn(
            "store-sync",
            Box::new(|shared| shared.writer.run_sync(&shared.db, &shared.housekeeper)),
        )?;
        let housekeeper = spawn(
            "store-housekeep",
            Box::new(|shared| shared.housekeeper.run(&shared.db)),
        )?;
        Ok(Arc::new(Engine {
            shared,
            on_damage: engine_options.on_damage,
            writer: Some(writer),
            syncer: Some(syncer),
            housekeeper: Some(housekeeper),
        }))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let join = |thread: Option<JoinHandle<()>>| {
            // A completion may hold the last reference; its thread ends by itself.
            if let Some(thread) = thread
                && thread.thread().id() != thread::current().id()
                && thread.join().is_err()
            {
                tracing::error!("a storage thread panicked");
            }
        };
        self.shared.writer.close_queue();
        join(self.writer.take());
        self.shared.writer.close_sync();
        join(self.syncer.take());
        let sequence = self.shared.db.latest_sequence_number();
        if let Err(error) = self.shared.db.flush_wal(true) {
            fatal("syncing the log at close", &error);
        }
        self.shared.housekeeper.synced(sequence);
        self.shared.housekeeper.close();
        join(self.housekeeper.take());
    }
}

/// What to do when a directory can't be used any more.
const WAY_OUT: &str = "remove the data directory of this broker and start it again: the other replicas fill a new one";

/// A database that is in use or can't be written is left for another try; any
/// other that does not open is damaged.
fn opening_failed(database: &Path, error: rocksdb::Error) -> StorageError {
    const DOING: &str = "opening the database";
    const OF_THE_MOMENT: [&str; 5] = [
        "lock ",
        "Permission denied",
        "No space left",
        "Read-only file system",
        "Too many open files",
    ];
    let text = error.clone().into_string();
    if OF_THE_MOMENT.iter().any(|reason| text.contains(reason)) {
        return io_error(database, DOING, error);
    }
    StorageError::Damaged {
        path: database.display().to_string(),
        reason: text,
    }
}

enum FormatError {
    Newer(u32),
    Database(StorageError),
}

/// Checks the version of the layouts; an empty database is given ours.
fn check_format(db: &DB, path: &Path) -> Result<(), FormatError> {
    let database = |doing| move |error| FormatError::Database(io_error(path, doing, error));
    let found = db
        .get(keys::FORMAT_KEY)
        .map_err(database("reading the format version"))?;
    let Some(found) = found else {
        return db
            .put(keys::FORMAT_KEY, keys::FORMAT_VERSION.to_be_bytes())
            .and_then(|()| db.flush_wal(true))
            .map_err(database("writing the format version"));
    };
    match found.as_slice().try_into().map(u32::from_be_bytes) {
        Ok(keys::FORMAT_VERSION) => Ok(()),
        Ok(version) => Err(FormatError::Newer(version)),
        Err(_) => Err(FormatError::Newer(u32::MAX)),
    }
}

impl Engine {
    /// Passes a result on, unless the database turned out to be damaged.
    fn judged<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(error @ StorageError::Damaged { .. }) = &result {
            (self.on_damage)(error);
        }
        result
    }

    fn state(&self, group: GroupId, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.shared.settle(group)?;
        Reader::new(&self.shared.db).state(key)
    }
}

impl LogStore for Engine {
    fn open_group(&self, group: GroupId) -> Result<GroupState, StorageError> {
        let group = self.judged(self.shared.group(group))?;
        Ok(group.lock().state.clone())
    }

    fn groups(&self) -> Result<Vec<GroupId>, StorageError> {
        let writer = &self.shared.writer;
        writer.wait_written(writer.last_ticket());
        self.judged(Reader::new(&self.shared.db).groups())
    }

    fn submit(&self, group: GroupId, write: Write, done: Option<Done>) {
        if let Err(error) = self.shared.submit(group, write, done) {
            fatal("reading what a write depends on", &error);
        }
    }

    fn read_tail(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Option<Vec<Entry>> {
        let group = self
            .shared
            .groups
            .read()
            .expect(POISONED)
            .get(&group)?
            .clone();
        let inner = group.lock();
        let mut out = Vec::new();
        if from >= to || from >= inner.state.next_index() {
            return Some(out);
        }
        let held = inner.tail.read(from, to, bytes_max, &mut 0, &mut out);
        held.then_some(out)
    }

    fn read(
        &self,
        group: GroupId,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, StorageError> {
        self.judged(self.shared.read(group, from, to, bytes_max))
    }

    fn checkpoint(&self, group: GroupId, index: u64) -> Result<Option<Checkpoint>, StorageError> {
        let key = keys::numbered(group, Kind::Checkpoint, index);
        let Some(value) = self.judged(self.state(group, &key))? else {
            return Ok(None);
        };
        let Some((term, _)) = keys::decode_checkpoint(&value) else {
            return Err(StorageError::Format {
                group,
                what: "checkpoint",
            });
        };
        Ok(Some(Checkpoint {
            index,
            term,
            bytes: value.slice(8..),
        }))
    }

    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        self.judged(self.state(group, &keys::own(group, key)))
    }

    fn get_at_or_before(
        &self,
        group: GroupId,
        prefix: &[u8],
        key: &[u8],
    ) -> Result<Option<(Bytes, Bytes)>, StorageError> {
        self.shared.settle(group)?;
        self.judged(Reader::new(&self.shared.db).own_at_or_before(group, prefix, key))
    }

    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: &[u8],
        count_max: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StorageError> {
        self.shared.settle(group)?;
        self.judged(Reader::new(&self.shared.db).own_scan(group, from, to, count_max))
    }

    fn file_of(&self, group: GroupId, index: u64) -> Option<PathBuf> {
        let key = keys::entry_bound(group, index);
        blob_files::holding(self.shared.db.path(), &key)
    }

    fn size_on_disk(&self, group: GroupId) -> u64 {
        let Ok(log) = self.shared.group(group) else {
            return 0;
        };
        let mut inner = log.lock();
        if inner.start.is_none() {
            let first = inner.state.first_index();
            match self.shared.position(group, &inner, first) {
                Ok((start, _)) => inner.start = Some(start),
                Err(error) => {
                    tracing::debug!(%group, %error, "can't tell the size of a log");
                    return 0;
                }
            }
        }
        let start = inner.start.unwrap_or(inner.end);
        inner.end.saturating_sub(start)
    }

    fn bytes_from(&self, group: GroupId, index: u64) -> Result<u64, StorageError> {
        let log = self.shared.group(group)?;
        let inner = log.lock();
        let index = index.max(inner.state.first_index());
        if index >= inner.state.next_index() {
            return Ok(0);
        }
        let (start, _) = self.judged(self.shared.position(group, &inner, index))?;
        Ok(inner.end.saturating_sub(start))
    }

    fn last_sync_age_ms(&self) -> u64 {
        self.shared.writer.last_sync_age_ms()
    }

    fn activity(&self) -> StoreActivity {
        StoreActivity {
            unflushed_bytes: Reader::new(&self.shared.db).unflushed_bytes(),
            ..self.shared.writer.activity()
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let done: Done = Box::new(move |result| {
            if sender.send(result).is_err() {
                tracing::debug!("nobody waits for a flush any more");
            }
        });
        self.shared.writer.reserve(0);
        self.shared.writer.push(None, Some(done), 0);
        receiver
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("the store is closed")))
            .map_err(|source| StorageError::Io {
                doing: "flushing",
                source,
            })
    }
}
