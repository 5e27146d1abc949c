//! Damage to the files of a broker that does not run, and reading with the patience that it asks for.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::batch::{self, Record};
use super::kafka::{self, Kafka, code};

/// Text that no other seed gives, of so many bytes.
pub fn noise(seed: u64, bytes: usize) -> String {
    let mut state = seed | 1;
    let next = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(33 + (state >> 58) as u8)
    };
    let mut text = format!("{seed}:");
    text.extend((text.len()..bytes).map(next));
    text
}

/// Every file below a folder, in the order of their paths.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of a broker") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}

/// The files that hold payloads for good.
pub fn blob_files(data: &Path) -> Vec<PathBuf> {
    let mut found = files(data);
    found.retain(|path| path.extension().is_some_and(|kind| kind == "blob"));
    found
}

/// Flips one bit.
pub fn flip(path: &Path, at: u64) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .expect("a file to damage");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte to flip");
    file.write_all_at(&[byte[0] ^ 0x10], at)
        .expect("a flipped byte");
}

/// Flips a bit behind the first place in the blob files that has `text`; the file's name.
pub fn flip_payload(data: &Path, text: &str) -> String {
    for path in blob_files(data) {
        let bytes = fs::read(&path).expect("a blob file");
        let text = text.as_bytes();
        let place = bytes.windows(text.len()).position(|window| window == text);
        if let Some(at) = place {
            flip(&path, (at + text.len() + 100) as u64);
            return path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
        }
    }
    panic!("no blob file has {text:?}");
}

/// Cuts a file.
pub fn cut(path: &Path, bytes: u64) {
    let file = File::options()
        .write(true)
        .open(path)
        .expect("a file to damage");
    file.set_len(bytes).expect("a shorter file");
}

/// Reads a partition from its start, asking again where the broker says that it can't read now. Says what was read, and
/// which errors were met.
pub fn read_patiently(
    kafka: &Kafka,
    topic: &str,
    partition: i32,
    end: i64,
) -> (Vec<Record>, Vec<i16>) {
    let mut records: Vec<Record> = Vec::new();
    let mut errors = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(60);
    while (records.len() as i64) < end {
        let next = records.len() as i64;
        assert!(
            Instant::now() < deadline,
            "{topic} {partition}: stuck at offset {next}, errors {errors:?}"
        );
        let fetched = kafka
            .leader(topic, partition)
            .and_then(|mut wire| kafka::fetch(&mut wire, topic, partition, next, 4 << 20));
        let Ok(data) = fetched else {
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        if data.error_code != code::NONE {
            assert!(
                code::RETRIABLE.contains(&data.error_code),
                "Fetch at {next}: error {}",
                data.error_code
            );
            errors.push(data.error_code);
            std::thread::sleep(Duration::from_millis(50));
            continue;
        }
        // The checksum of each batch is checked in here.
        for record in batch::records(data.records.as_deref().unwrap_or_default()) {
            if record.offset >= next {
                assert_eq!(
                    record.offset,
                    records.len() as i64,
                    "{topic} {partition}: a gap in the offsets"
                );
                records.push(record);
            }
        }
    }
    (records, errors)
}
