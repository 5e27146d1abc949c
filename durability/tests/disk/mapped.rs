//! Files written through a shared mapping, by a program that can map files: this
//! crate has no unsafe code.

use crate::rig::{Rig, plain, skipped};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const PAGE: usize = 4096;

/// Maps a file, writes a byte into each page, calls msync for the first `argv[2]`
/// bytes, says so and sleeps until it is ended.
const WRITER: &str = r#"
import mmap, sys, time
file = open(sys.argv[1], "r+b")
mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED)
for at in range(0, len(mapped), 4096):
    mapped[at] = 0x6e
if int(sys.argv[2]):
    mapped.flush(0, int(sys.argv[2]))
print("written", flush=True)
time.sleep(600)
"#;

struct Writer(Child);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }
}

fn map_and_write(path: &Path, synced_bytes: usize) -> Option<Writer> {
    let command = Command::new("python3")
        .args(["-c", WRITER])
        .arg(path)
        .arg(synced_bytes.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut writer = match command {
        Ok(child) => Writer(child),
        Err(error) => {
            skipped(&format!("python3: {error}"));
            return None;
        }
    };
    let output = writer.0.stdout.take().expect("it is piped");
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line).expect("a line");
    assert_eq!(line, "written\n");
    Some(writer)
}

fn old() -> Vec<u8> {
    vec![b'o'; 4 * PAGE]
}

fn new(rig: &Rig) -> usize {
    let bytes = rig.read("file");
    assert_eq!(bytes.len(), 4 * PAGE);
    bytes.iter().filter(|byte| **byte == b'n').count()
}

#[test]
fn msync_makes_a_mapped_file_durable() {
    let Some(rig) = plain() else { return };
    rig.synced("file", &old());
    let Some(writer) = map_and_write(&rig.path("file"), 4 * PAGE) else {
        return;
    };
    drop(writer);
    rig.cut();
    assert_eq!(new(&rig), 4);
}

#[test]
fn a_mapped_file_without_msync_is_as_it_was() {
    let Some(rig) = plain() else { return };
    for killed_first in [true, false] {
        rig.synced("file", &old());
        let Some(writer) = map_and_write(&rig.path("file"), 0) else {
            return;
        };
        let mut writer = Some(writer);
        assert_eq!(new(&rig), 4, "others see what was written");
        if killed_first {
            writer = None;
        }
        rig.cut();
        assert_eq!(rig.read("file"), old());
        drop(writer);
        assert_eq!(rig.read("file"), old());
    }
}

#[test]
fn a_settled_disk_has_what_was_written_through_mappings() {
    let Some(rig) = plain() else { return };
    rig.synced("file", &old());
    let Some(writer) = map_and_write(&rig.path("file"), 0) else {
        return;
    };
    rig.disk.settle().expect("settled");
    rig.cut();
    assert_eq!(new(&rig), 4);
    drop(writer);
}
