//! What appending costs: three engines on one disk, as three brokers on one
//! machine. Prints throughput, CPU and bytes to the device for each load.
//!
//! `cargo bench -p drave-storage [-- DIRECTORY]`

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on stops")]

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use drave_storage::{Engine, EngineOptions, Entry, GroupId, LogStore, Write};

const ENGINES: usize = 3;
const GROUPS: u64 = 6;
const SECONDS: u64 = 8;

struct Load {
    entry_bytes: usize,
    /// Bytes appended to an engine and not yet completed.
    window_bytes: usize,
}

fn main() {
    let directory = match std::env::args().skip(1).find(|word| !word.starts_with('-')) {
        Some(path) => tempfile::tempdir_in(path).unwrap(),
        None => tempfile::tempdir().unwrap(),
    };
    println!("{ENGINES} engines, {GROUPS} groups each, {SECONDS} s, one thread of appends each");
    for (entry_bytes, window_bytes) in [
        (64 << 10, 4 << 20),
        (16 << 10, 1 << 20),
        (1 << 10, 256 << 10),
        (1 << 10, 1 << 10),
    ] {
        let load = Load {
            entry_bytes,
            window_bytes,
        };
        run(directory.path(), &load);
    }
}

fn run(directory: &Path, load: &Load) {
    let engines: Vec<_> = (0..ENGINES)
        .map(|engine| {
            let path = directory.join(format!("{}-{engine}", load.entry_bytes));
            Engine::open(&path, EngineOptions::default()).unwrap()
        })
        .collect();
    let before = usage();
    let started = Instant::now();
    let (entries, mut waits) = std::thread::scope(|scope| {
        let threads: Vec<_> = engines
            .iter()
            .map(|engine| scope.spawn(|| append(engine, load)))
            .collect();
        let mut all = (0, Vec::new());
        for thread in threads {
            let (entries, waits) = thread.join().unwrap();
            all.0 += entries;
            all.1.extend(waits);
        }
        all
    });
    let seconds = started.elapsed().as_secs_f64();
    let after = usage();
    waits.sort_unstable();
    let at = |part: usize| waits[(waits.len() - 1) * part / 1_000].as_secs_f64() * 1e3;
    let bytes = (entries * load.entry_bytes) as f64;
    println!(
        "{:>6} B entries, {:>5} KiB in flight: {:>6.0} MB/s {:>8.0} entries/s, {:>5.2} CPU-s/GB, \
         {:.2} bytes written per byte, ack p50 {:.2} ms p99 {:.2} ms, {} MB resident",
        load.entry_bytes,
        load.window_bytes >> 10,
        bytes / seconds / 1e6,
        entries as f64 / seconds,
        (after.cpu_seconds - before.cpu_seconds) / (bytes / 1e9),
        (after.written - before.written) as f64 / bytes,
        at(500),
        at(990),
        after.resident >> 20,
    );
    drop(engines);
    std::fs::remove_dir_all(directory).unwrap();
    std::fs::create_dir_all(directory).unwrap();
}

struct Window {
    bytes: Mutex<(usize, Vec<Duration>)>,
    less: Condvar,
}

/// Appends until time is up; returns the number of entries and every wait.
fn append(engine: &Arc<Engine>, load: &Load) -> (usize, Vec<Duration>) {
    let payload = Bytes::from(noise(load.entry_bytes));
    let checksum = crc32c::crc32c(&payload);
    let window = Arc::new(Window {
        bytes: Mutex::default(),
        less: Condvar::new(),
    });
    let until = Instant::now() + Duration::from_secs(SECONDS);
    let mut entries = 0;
    while Instant::now() < until {
        {
            let mut held = window.bytes.lock().unwrap();
            while held.0 + load.entry_bytes > load.window_bytes {
                held = window.less.wait(held).unwrap();
            }
            held.0 += load.entry_bytes;
        }
        let entry = Entry {
            index: entries as u64 / GROUPS,
            term: 1,
            tag: 1,
            stamp: 0,
            checksum,
            payload: payload.clone(),
        };
        let (window, bytes, at) = (window.clone(), load.entry_bytes, Instant::now());
        let done = Box::new(move |result: std::io::Result<()>| {
            result.unwrap();
            let mut held = window.bytes.lock().unwrap();
            held.0 -= bytes;
            held.1.push(at.elapsed());
            window.less.notify_one();
        });
        let group = GroupId(entries as u64 % GROUPS);
        engine.submit(group, Write::Append(vec![entry]), Some(done));
        entries += 1;
    }
    engine.flush().unwrap();
    let waits = std::mem::take(&mut window.bytes.lock().unwrap().1);
    (entries, waits)
}

/// Bytes that don't compress.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

struct Usage {
    cpu_seconds: f64,
    written: u64,
    resident: u64,
}

/// What this process used, as Linux tells it.
fn usage() -> Usage {
    let number = |file: &str, name: &str| -> u64 {
        let text = std::fs::read_to_string(file).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    Usage {
        cpu_seconds: ticks / 100.0,
        written: number("/proc/self/io", "write_bytes:"),
        resident: number("/proc/self/status", "VmRSS:") << 10,
    }
}
