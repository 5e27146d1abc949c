//! How RocksDB is set up, and why.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DBCompressionType, DBRecoveryMode, Options,
};

use crate::keys;
use crate::log::StorageError;
use crate::writer::fatal;

/// Sizes of an engine. The defaults keep a broker's memory below 300 MB.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bytes of written entries kept in memory over all groups.
    pub tail_cache_bytes: usize,
    /// Bytes that may be queued, and written but unsynced, before `submit` waits.
    pub queue_bytes_max: usize,
    /// Bytes of one memtable of entries; there are up to three.
    pub write_buffer_bytes: usize,
    /// Bytes of the cache of blocks read from disk (keys, indexes, state).
    pub block_cache_bytes: usize,
    /// Called when the database turns out to be damaged beyond payloads. What
    /// else it says can't be trusted then, so by default the process ends.
    pub on_damage: fn(&StorageError),
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            tail_cache_bytes: 128 << 20,
            queue_bytes_max: 256 << 20,
            write_buffer_bytes: 64 << 20,
            block_cache_bytes: 16 << 20,
            on_damage: |error| fatal("reading", error),
        }
    }
}

/// Options of the whole database.
pub(crate) fn database(options: &EngineOptions, direct: bool) -> Options {
    let mut db = Options::default();
    db.create_missing_column_families(true);
    db.set_paranoid_checks(true);
    // One sync covers what all groups wrote; our writer decides when.
    db.set_manual_wal_flush(false);
    // Recovery stops at the first damaged record; the watermark tells whether
    // that lost anything that was synced.
    db.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    // A recycled WAL file does not grow, so its sync writes no metadata.
    db.set_recycle_log_file_num(2);
    // Bounds how long the rarely written families hold old WAL files back.
    db.set_max_total_wal_size(2 * options.write_buffer_bytes as u64);
    // Flushes through the page cache cost twice the CPU; recent data is read
    // from our own cache anyway.
    db.set_use_direct_io_for_flush_and_compaction(direct);
    // The manifest is read at every start, twice.
    db.set_max_manifest_file_size(64 << 20);
    db.set_max_open_files(-1);
    db.set_advise_random_on_open(false);
    db.set_skip_stats_update_on_db_open(true);
    db.set_avoid_unnecessary_blocking_io(true);
    // There is one writing thread.
    db.set_allow_concurrent_memtable_write(false);
    db.set_enable_write_thread_adaptive_yield(false);
    db.set_max_background_jobs(2);
    db.set_stats_dump_period_sec(0);
    db.set_stats_persist_period_sec(0);
    db.set_keep_log_file_num(3);
    db.set_max_log_file_size(8 << 20);
    // Each log says where the one before it ended: one that lost its end, with
    // others behind it, ends recovery too. The bindings have no setter.
    db.get_options_from_string("track_and_verify_wals=true")
        .expect("an option of RocksDB 10 and later")
}

/// The column families that hold data.
pub(crate) fn families(options: &EngineOptions) -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(options.block_cache_bytes);
    let mut log = family(&cache, None);
    log.set_write_buffer_size(options.write_buffer_bytes);
    log.set_max_write_buffer_number(3);
    // Payloads go to blob files once and stay: compaction rewrites keys only.
    log.set_enable_blob_files(true);
    log.set_min_blob_size(512);
    // A flush writes in the order of keys, so a small file has entries of few
    // groups, and is free as soon as those are purged.
    log.set_blob_file_size(16 << 20);
    log.set_blob_compression_type(DBCompressionType::None);
    log.set_enable_blob_gc(false);
    let mut state = family(&cache, Some(10.0));
    state.set_write_buffer_size(8 << 20);
    state.set_max_write_buffer_number(2);
    vec![
        ColumnFamilyDescriptor::new(keys::LOG, log),
        ColumnFamilyDescriptor::new(keys::STATE, state),
        ColumnFamilyDescriptor::new("default", family(&cache, None)),
    ]
}

fn family(cache: &Cache, bloom_bits: Option<f64>) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(16 << 10);
    if let Some(bits) = bloom_bits {
        table.set_bloom_filter(bits, false);
    }
    let mut family = Options::default();
    family.set_block_based_table_factory(&table);
    family.set_compression_type(DBCompressionType::None);
    family
}

/// Whether the file system takes `O_DIRECT`; memory file systems don't.
pub(crate) fn supports_direct_io(directory: &Path) -> bool {
    let probe = directory.join("direct-io-probe");
    let opened = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(&probe);
    let supported = opened.is_ok();
    if let Err(error) = fs::remove_file(&probe)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, "can't remove the probe for direct i/o");
    }
    supported
}
