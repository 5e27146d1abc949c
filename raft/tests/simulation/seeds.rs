//! Runs seeds, each in a process of its own: tokio, hash tables and the random
//! source keep state for as long as their process lives, and a run has to begin
//! from nothing to be the same again.

use std::io::{Read, Seek};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::disk::Breakage;

/// The longest that one run may take on a busy machine.
const RUN_POLLS_MAX: u32 = 30_000;
const POLL: Duration = Duration::from_millis(4);
/// The test that runs one seed.
const ONE_SEED: &str = "one_seed";

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) seed: u64,
    pub(crate) passed: bool,
    pub(crate) output: String,
}

impl Ended {
    /// The line that sums the run up; two runs of a seed have the same.
    pub(crate) fn outcome(&self) -> &str {
        self.line("outcome: ")
    }

    /// What was wrong.
    pub(crate) fn violation(&self) -> &str {
        self.line("violation: ")
    }

    fn line(&self, start: &str) -> &str {
        let mut lines = self.output.lines();
        lines
            .find_map(|line| line.strip_prefix(start))
            .unwrap_or_default()
    }
}

/// What replays a seed.
pub(crate) fn replay(seed: u64, breakage: Breakage) -> String {
    let broken = match breakage {
        Breakage::None => String::new(),
        _ => format!("SIM_BREAK={} ", breakage.name()),
    };
    format!(
        "SIM_SEED={seed} {broken}SIM_LOG=simulation=info cargo test --release -p drave-raft \
         --features simulation --test simulation {ONE_SEED} -- --exact --nocapture"
    )
}

/// Runs one seed in another process; `filter` says what its trace is made of.
pub(crate) fn run_apart(seed: u64, breakage: Breakage, filter: Option<&str>) -> Ended {
    let mut file = tempfile::tempfile().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([ONE_SEED, "--exact", "--nocapture"])
        .env("SIM_SEED", seed.to_string())
        .env("SIM_BREAK", breakage.name())
        .env_remove("SIM_LOG")
        .env_remove("SIM_TRACE")
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file.try_clone().unwrap());
    if let Some(filter) = filter {
        command.env("SIM_TRACE", filter);
    }
    let mut process = command.spawn().unwrap();
    let mut status = None;
    for _ in 0..RUN_POLLS_MAX {
        status = process.try_wait().unwrap();
        if status.is_some() {
            break;
        }
        std::thread::sleep(POLL);
    }
    if status.is_none() {
        process.kill().unwrap();
        process.wait().unwrap();
    }
    let mut output = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut output).unwrap();
    if status.is_none() {
        output.push_str("\nviolation: the run did not end\n");
    }
    Ended {
        seed,
        passed: status.is_some_and(|status| status.success()),
        output,
    }
}

/// Runs the seeds from `first` on, `count` of them or until one ends as it is
/// `wanted`, on all cores; returns how many passed, and that one.
pub(crate) fn run_until(
    first: u64,
    count: u64,
    breakage: Breakage,
    wanted: impl Fn(&Ended) -> bool + Sync,
) -> (u64, Option<Ended>) {
    let next = AtomicU64::new(first);
    let passed = AtomicU64::new(0);
    let found: Mutex<Option<Ended>> = Mutex::new(None);
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|threads| {
        for _ in 0..workers {
            threads.spawn(|| {
                while found.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let ended = run_apart(seed, breakage, None);
                    passed.fetch_add(u64::from(ended.passed), Ordering::Relaxed);
                    if !wanted(&ended) {
                        continue;
                    }
                    let mut found = found.lock().unwrap();
                    if found.as_ref().is_none_or(|known| seed < known.seed) {
                        *found = Some(ended);
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    (passed.into_inner(), found)
}
