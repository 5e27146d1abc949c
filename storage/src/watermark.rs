//! The durable watermark: the newest RocksDB sequence number known to be synced.
//!
//! A file of two slots, one page each, written in turn and in place. The file
//! never grows or moves, so that a write syncs one page of data and leaves the
//! file system's journal alone: on ext4 replacing a small file every second
//! stalled the write-ahead log's own syncs for over 100 ms. A torn write leaves
//! the other slot.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::housekeeper::sync_directory;

/// Version of the format included.
const MAGIC: [u8; 8] = *b"DRAVEWM1";
const SLOT_BYTES: u64 = 4096;
/// Magic, sequence number, CRC-32C of both.
const RECORD_BYTES: usize = 20;

fn encode(sequence: u64) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&MAGIC);
    record[8..16].copy_from_slice(&sequence.to_be_bytes());
    let checksum = crc32c::crc32c(&record[..16]);
    record[16..].copy_from_slice(&checksum.to_be_bytes());
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<u64> {
    let sequence = u64::from_be_bytes(record[8..16].try_into().ok()?);
    (encode(sequence) == *record).then_some(sequence)
}

fn read_record(file: &File, slot: u64) -> io::Result<[u8; RECORD_BYTES]> {
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, slot * SLOT_BYTES)?;
    Ok(record)
}

fn read_slot(file: &File, slot: u64) -> io::Result<Option<u64>> {
    Ok(decode(&read_record(file, slot)?))
}

/// Writes the watermark; durable when this returns.
pub(crate) fn write(path: &Path, sequence: u64) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
        Err(error) => return Err(error),
    };
    let older = u64::from(read_slot(&file, 0)? > read_slot(&file, 1)?);
    file.write_all_at(&encode(sequence), older * SLOT_BYTES)?;
    file.sync_data()
}

fn create(path: &Path) -> io::Result<File> {
    let next = path.with_extension("new");
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&next)?;
    file.write_all_at(&vec![0; 2 * SLOT_BYTES as usize], 0)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    sync_directory(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    Ok(file)
}

/// The watermark, if one was ever written. Damage to both slots is an error; a
/// first write that was torn is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<u64>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let records = [read_record(&file, 0)?, read_record(&file, 1)?];
    match records.iter().filter_map(decode).max() {
        Some(newest) => Ok(Some(newest)),
        // As it is made; a torn first write leaves it half so.
        None if records.iter().any(|record| *record == [0; RECORD_BYTES]) => Ok(None),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "both copies are damaged",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_keeps_its_bytes() {
        let record = encode(258);
        assert_eq!(record[..16], *b"DRAVEWM1\0\0\0\0\0\0\x01\x02");
        assert_eq!(decode(&record), Some(258));
    }

    #[test]
    fn the_newest_watermark_is_read_and_a_torn_one_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("synced");
        assert_eq!(read(&path).unwrap(), None);
        for sequence in [7, 9, 12] {
            write(&path, sequence).unwrap();
            assert_eq!(read(&path).unwrap(), Some(sequence));
        }
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", 10).unwrap();
        assert_eq!(read(&path).unwrap(), Some(9));
        assert_eq!(file.metadata().unwrap().len(), 2 * SLOT_BYTES);
    }
}
