//! What many groups cost: memory, opening them again, and an idle engine's CPU.
//!
//! `cargo bench -p drave-storage --bench scale`

#![allow(clippy::unwrap_used, reason = "a benchmark that can't go on stops")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use drave_storage::{Engine, EngineOptions, Entry, GroupId, LogStore, Write};

const GROUPS: u64 = 10_000;
const ENTRIES: u64 = 4;

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::open(directory.path(), EngineOptions::default()).unwrap();
    let resident = status("VmRSS:");
    let started = Instant::now();
    let payload = Bytes::from(vec![7; 1 << 10]);
    for index in 0..ENTRIES {
        for group in 0..GROUPS {
            let entry = Entry {
                index,
                term: 1,
                tag: 1,
                stamp: 0,
                checksum: crc32c::crc32c(&payload),
                payload: payload.clone(),
            };
            engine.submit(GroupId(group), Write::Append(vec![entry]), None);
            if index == 0 {
                engine.submit(GroupId(group), Write::Vote(payload.slice(..32)), None);
            }
        }
    }
    engine.flush().unwrap();
    println!(
        "{GROUPS} groups, {ENTRIES} entries of 1 KiB and a vote each: written in {:.2} s, {} KiB more resident",
        started.elapsed().as_secs_f64(),
        status("VmRSS:") - resident,
    );
    std::thread::sleep(Duration::from_secs(3));
    let ticks = cpu_ticks();
    std::thread::sleep(Duration::from_secs(10));
    println!("idle: {} ms of CPU in 10 s", (cpu_ticks() - ticks) * 10);

    drop(engine);
    let started = Instant::now();
    let engine = Engine::open(directory.path(), EngineOptions::default()).unwrap();
    println!("opened in {:.3} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    let groups = engine.groups().unwrap();
    println!(
        "listed {} groups in {:.3} s",
        groups.len(),
        started.elapsed().as_secs_f64()
    );
    let resident = status("VmRSS:");
    let started = Instant::now();
    for group in groups {
        let state = engine.open_group(group).unwrap();
        assert_eq!(state.last, Some((ENTRIES - 1, 1)));
    }
    println!(
        "loaded them all in {:.3} s, {} KiB more resident",
        started.elapsed().as_secs_f64(),
        status("VmRSS:").saturating_sub(resident),
    );
}

fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time of this process, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
