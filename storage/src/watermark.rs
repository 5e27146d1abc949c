//! The durable watermark: the newest RocksDB sequence number known to be synced,
//! and the manifest that went with it.
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
use crate::manifest::Manifest;

/// Version of the format included. Version 1 ends after the sequence number, with its checksum.
const MAGIC: [u8; 8] = *b"DRAVEWM2";
const MAGIC_1: [u8; 8] = *b"DRAVEWM1";
const SLOT_BYTES: u64 = 4096;
/// Magic, sequence number; number, bytes and checksum of the manifest; CRC-32C of all that.
const RECORD_BYTES: usize = 40;
const RECORD_1_BYTES: usize = 20;

/// What is known to be on disk. A newer one is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Watermark {
    /// The newest sequence number that is synced.
    pub(crate) sequence: u64,
    /// What the database consists of.
    pub(crate) manifest: Manifest,
}

fn encode(mark: Watermark) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    record[..8].copy_from_slice(&MAGIC);
    record[8..16].copy_from_slice(&mark.sequence.to_be_bytes());
    record[16..24].copy_from_slice(&mark.manifest.number.to_be_bytes());
    record[24..32].copy_from_slice(&mark.manifest.bytes.to_be_bytes());
    record[32..36].copy_from_slice(&mark.manifest.checksum.to_be_bytes());
    let checksum = crc32c::crc32c(&record[..36]);
    record[36..].copy_from_slice(&checksum.to_be_bytes());
    record
}

fn decode(record: &[u8; RECORD_BYTES]) -> Option<Watermark> {
    let number = |at: usize| Some(u64::from_be_bytes(record[at..at + 8].try_into().ok()?));
    let sum = |at: usize| Some(u32::from_be_bytes(record[at..at + 4].try_into().ok()?));
    if record[..8] == MAGIC_1 {
        let sound = crc32c::crc32c(&record[..16]) == sum(RECORD_1_BYTES - 4)?;
        return sound.then_some(Watermark {
            sequence: number(8)?,
            ..Watermark::default()
        });
    }
    let mark = Watermark {
        sequence: number(8)?,
        manifest: Manifest {
            number: number(16)?,
            bytes: number(24)?,
            checksum: sum(32)?,
        },
    };
    (encode(mark) == *record).then_some(mark)
}

fn read_record(file: &File, slot: u64) -> io::Result<[u8; RECORD_BYTES]> {
    let mut record = [0; RECORD_BYTES];
    file.read_exact_at(&mut record, slot * SLOT_BYTES)?;
    Ok(record)
}

fn read_slot(file: &File, slot: u64) -> io::Result<Option<Watermark>> {
    Ok(decode(&read_record(file, slot)?))
}

/// Writes the watermark; durable when this returns.
pub(crate) fn write(path: &Path, mark: Watermark) -> io::Result<()> {
    let file = match File::options().read(true).write(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
        Err(error) => return Err(error),
    };
    let older = u64::from(read_slot(&file, 0)? > read_slot(&file, 1)?);
    file.write_all_at(&encode(mark), older * SLOT_BYTES)?;
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
pub(crate) fn read(path: &Path) -> io::Result<Option<Watermark>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let records = [read_record(&file, 0)?, read_record(&file, 1)?];
    match records.iter().filter_map(decode).max() {
        Some(newest) => Ok(Some(newest)),
        // As it is made; a torn first write leaves it half so.
        None if records.contains(&[0; RECORD_BYTES]) => Ok(None),
        None => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "both copies are damaged",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(sequence: u64) -> Watermark {
        Watermark {
            sequence,
            manifest: Manifest {
                number: 13,
                bytes: 632,
                checksum: 0x0102_0304,
            },
        }
    }

    #[test]
    fn a_record_keeps_its_bytes() {
        let record = encode(mark(258));
        assert_eq!(record[..16], *b"DRAVEWM2\0\0\0\0\0\0\x01\x02");
        assert_eq!(
            record[16..32],
            [0, 0, 0, 0, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 2, 120]
        );
        assert_eq!(record[32..], [1, 2, 3, 4, 153, 144, 145, 40]);
        assert_eq!(decode(&record), Some(mark(258)));
    }

    #[test]
    fn a_record_of_the_first_version_is_read() {
        let mut record = [0; RECORD_BYTES];
        record[..16].copy_from_slice(b"DRAVEWM1\0\0\0\0\0\0\x01\x02");
        let checksum = crc32c::crc32c(&record[..16]);
        record[16..20].copy_from_slice(&checksum.to_be_bytes());
        let expected = Watermark {
            sequence: 258,
            ..Watermark::default()
        };
        assert_eq!(decode(&record), Some(expected));
        record[15] ^= 1;
        assert_eq!(decode(&record), None);
    }

    #[test]
    fn the_newest_watermark_is_read_and_a_torn_one_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("synced");
        assert_eq!(read(&path).unwrap(), None);
        for sequence in [7, 9, 12] {
            write(&path, mark(sequence)).unwrap();
            assert_eq!(read(&path).unwrap(), Some(mark(sequence)));
        }
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"torn", 10).unwrap();
        assert_eq!(read(&path).unwrap(), Some(mark(9)));
        assert_eq!(file.metadata().unwrap().len(), 2 * SLOT_BYTES);
        file.write_all_at(b"torn", SLOT_BYTES + 10).unwrap();
        assert!(read(&path).is_err(), "nobody knows what was synced");
    }

    #[test]
    fn a_first_write_that_was_torn_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("synced");
        create(&path).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(b"DRAVEWM2", 0).unwrap();
        assert_eq!(read(&path).unwrap(), None);
    }
}
