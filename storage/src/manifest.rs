//! The database's manifest, which says which files it consists of.
//!
//! RocksDB takes a manifest that is cut, or whose last record looks cut, for one
//! whose last change was never made: it then opens an older state without a
//! word, and may lack files or bring deleted ones back. So how long it was known
//! to be, and the checksum of that much, are kept beside the watermark. Only its
//! end may be new.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// As much of a manifest as is known to be on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Manifest {
    /// The number in its name; the newest has the highest.
    pub(crate) number: u64,
    /// How long it is at least.
    pub(crate) bytes: u64,
    /// CRC-32C of so many bytes.
    pub(crate) checksum: u32,
}

/// The number of the manifest in use.
fn current(database: &Path) -> io::Result<u64> {
    let name = fs::read_to_string(database.join("CURRENT"))?;
    let number = name.trim_end().strip_prefix("MANIFEST-");
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "CURRENT names no manifest"))
}

fn open(database: &Path, number: u64) -> io::Result<File> {
    File::open(database.join(format!("MANIFEST-{number:06}")))
}

/// CRC-32C of what `file` still has, added to `checksum`, and how much it was.
fn sum(mut file: impl Read, mut checksum: u32) -> io::Result<(u64, u32)> {
    let (mut bytes, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((bytes, checksum)),
            count => {
                checksum = crc32c::crc32c_append(checksum, &buffer[..count]);
                bytes += count as u64;
            }
        }
    }
}

/// The manifest as it is now, on disk when this returns. Reads only what is new
/// since `known`.
pub(crate) fn follow(database: &Path, known: Manifest) -> io::Result<Manifest> {
    let number = current(database)?;
    let from = match number == known.number {
        true => known,
        false => Manifest {
            number,
            ..Manifest::default()
        },
    };
    let mut file = open(database, number)?;
    file.seek(SeekFrom::Start(from.bytes))?;
    let (bytes, checksum) = sum(&file, from.checksum)?;
    if bytes > 0 {
        file.sync_data()?;
    }
    Ok(Manifest {
        number,
        bytes: from.bytes + bytes,
        checksum,
    })
}

/// Whether the manifest in use has everything that it is known to have. One that
/// can't be found or read is left to RocksDB to complain about.
pub(crate) fn check(database: &Path, known: Manifest) -> Result<(), String> {
    let Ok(number) = current(database) else {
        return Ok(());
    };
    if number < known.number {
        return Err(format!(
            "CURRENT names manifest {number}, but {} was in use",
            known.number
        ));
    }
    if number > known.number {
        return Ok(());
    }
    let Ok(found) = open(database, number).and_then(|file| sum(file.take(known.bytes), 0)) else {
        return Ok(());
    };
    match found == (known.bytes, known.checksum) {
        true => Ok(()),
        false => Err(format!(
            "MANIFEST-{number:06} is not what it was when it had {} bytes",
            known.bytes
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_end_of_a_manifest_may_be_new() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let write = |name: &str, bytes: &[u8]| fs::write(path.join(name), bytes).unwrap();
        write("CURRENT", b"MANIFEST-000012\n");
        write("MANIFEST-000012", b"first");
        let first = follow(path, Manifest::default()).unwrap();
        assert_eq!((first.number, first.bytes), (12, 5));
        assert_eq!(first.checksum, crc32c::crc32c(b"first"));
        write("MANIFEST-000012", b"first, second");
        assert_eq!(check(path, first), Ok(()));
        let second = follow(path, first).unwrap();
        assert_eq!(second.checksum, crc32c::crc32c(b"first, second"));
        assert_eq!(check(path, second), Ok(()));
        for damaged in [&b"first, secon"[..], b"fIrst, second", b""] {
            write("MANIFEST-000012", damaged);
            assert!(check(path, second).is_err(), "{damaged:?}");
        }
        write("CURRENT", b"MANIFEST-000013\n");
        write("MANIFEST-000013", b"new");
        assert_eq!(check(path, second), Ok(()));
        let third = follow(path, second).unwrap();
        assert_eq!((third.number, third.bytes), (13, 3));
        write("CURRENT", b"MANIFEST-000012\n");
        assert!(check(path, third).is_err());
    }
}
