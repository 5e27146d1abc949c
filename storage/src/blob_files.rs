//! Finding the blob file that holds a payload, for the message about a damaged
//! one: RocksDB does not name it.
//!
//! A blob file is a head, then records of a head, the key and the payload, which
//! can be hopped over. What is looked at is bounded, and files that are cut or
//! damaged on the way are left: no answer is an answer too.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Magic number, version, column family, flags, compression, times.
const FILE_HEAD_BYTES: u64 = 30;
/// Lengths of key and payload, time, two checksums.
const RECORD_HEAD_BYTES: usize = 32;
/// Records that are looked at before the search is given up.
const RECORDS_MAX: usize = 200_000;

/// The blob file below `database` with a record whose key starts with `key`.
pub(crate) fn holding(database: &Path, key: &[u8]) -> Option<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(database)
        .ok()?
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "blob"))
        .collect();
    files.sort();
    let mut left = RECORDS_MAX;
    files.into_iter().find(|path| holds(path, key, &mut left))
}

fn holds(path: &Path, key: &[u8], left: &mut usize) -> bool {
    let Ok(file) = File::open(path) else {
        return false;
    };
    let mut record = vec![0; RECORD_HEAD_BYTES + key.len()];
    let mut at = FILE_HEAD_BYTES;
    while *left > 0 && file.read_exact_at(&mut record, at).is_ok() {
        *left -= 1;
        let length = |from: usize| {
            let bytes = record[from..from + 8].try_into().unwrap_or_default();
            u64::from_le_bytes(bytes)
        };
        let next = (RECORD_HEAD_BYTES as u64)
            .checked_add(length(0))
            .and_then(|bytes| bytes.checked_add(length(8)))
            .and_then(|bytes| at.checked_add(bytes));
        if record[RECORD_HEAD_BYTES..] == *key {
            return true;
        }
        match next {
            Some(next) => at = next,
            None => return false,
        }
    }
    false
}
