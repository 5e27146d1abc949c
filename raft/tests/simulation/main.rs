//! Deterministic simulation: nodes on a simulated network, over disks that lose
//! what was not synced, with faults chosen by a seed. An oracle knows everything
//! that was acknowledged. The same seed gives the same run, to the last byte sent.
//!
//! ```text
//! SIM_SEEDS=10000 cargo test --release -p drave-raft --features simulation --test simulation hundreds
//! SIM_SEED=17 SIM_LOG=drave_raft=debug,simulation=info cargo test … one_seed -- --exact --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test program")]

mod cluster;
mod disk;
mod faults;
mod oracle;
mod run;
mod seeds;
mod trace;

use rand::SeedableRng;
use rand::rngs::StdRng;

use self::disk::Breakage;
use self::seeds::{Ended, replay, run_apart, run_until};

/// Seeds of an ordinary run; `SIM_SEEDS` asks for more, `SIM_FIRST` for others.
const SEEDS: u64 = 200;
/// A broken build has to be caught within this many.
const BROKEN_SEEDS: u64 = 100;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().expect("a number"))
}

#[test]
fn hundreds_of_seeds_lose_nothing_and_recover() {
    let count = number("SIM_SEEDS").unwrap_or(SEEDS);
    let first = number("SIM_FIRST").unwrap_or(1);
    let (passed, failed) = run_until(first, count, Breakage::None, |ended| !ended.passed);
    if let Some(failed) = failed {
        panic!(
            "seed {}: {}\nreplay: {}\n{}",
            failed.seed,
            failed.violation(),
            replay(failed.seed, Breakage::None),
            failed.output
        );
    }
    assert_eq!(passed, count);
}

#[test]
fn the_same_seed_twice_gives_the_same_trace() {
    for seed in 1..=4 {
        // Every line of every part, which includes every byte sent.
        let everything = Some("trace");
        let one = run_apart(seed, Breakage::None, everything);
        let two = run_apart(seed, Breakage::None, everything);
        assert!(one.outcome().contains("trace"), "{}", one.output);
        assert_eq!(one.outcome(), two.outcome());
    }
}

/// Other checks may see that a build is broken before the oracle does; these words are its own.
fn assert_caught(breakage: Breakage, words: &[&str]) {
    let caught = |ended: &Ended| words.iter().any(|word| ended.violation().contains(word));
    let (passed, caught) = run_until(1, BROKEN_SEEDS, breakage, caught);
    let caught = caught.unwrap_or_else(|| panic!("the oracle saw nothing, {passed} seeds passed"));
    let (name, seed) = (breakage.name(), caught.seed);
    println!("{name} was caught by seed {seed}: {}", caught.violation());
}

#[test]
fn a_build_that_acknowledges_before_the_sync_is_caught() {
    let lost = ["was applied before", "is not there", "acknowledged before"];
    assert_caught(Breakage::AcknowledgesBeforeSync, &lost);
}

#[test]
fn a_build_that_forgets_its_votes_is_caught() {
    assert_caught(Breakage::ForgetsVotes, &["has two leaders"]);
}

/// Runs `SIM_SEED`, which is how every other test runs its seeds. `SIM_LOG`
/// prints the trace, or what else it names.
#[test]
fn one_seed() {
    let Some(seed) = number("SIM_SEED") else {
        let ended = run_apart(0, Breakage::None, None);
        assert!(ended.passed, "{}", ended.output);
        return;
    };
    let breakage = std::env::var("SIM_BREAK").unwrap_or_default();
    let breakage = Breakage::named(&breakage).unwrap_or(Breakage::None);
    let run = move || {
        // From here on everything random comes from the seed, also what the
        // standard library and tokio ask for; and every clock is the simulated one.
        mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
        let _clocks = mad_turmoil::time::SimClocksGuard::init();
        let printed = std::env::var("SIM_LOG").ok();
        let traced = std::env::var("SIM_TRACE").ok();
        trace::start(printed.as_deref().or(traced.as_deref()), printed.is_some());
        // A task that panics would only be missing.
        std::panic::set_hook(Box::new(|panic| {
            let panic = panic.to_string().replace('\n', " ");
            eprintln!("violation: {panic}");
            std::process::exit(1);
        }));
        let outcome = run::run(seed, breakage);
        drop(std::panic::take_hook());
        outcome
    };
    // Another thread, because this one may have been random already.
    let outcome = std::thread::spawn(run).join().unwrap();
    println!("outcome: {outcome}");
    if let Some(violation) = outcome.violation {
        println!("violation: {violation}");
        panic!("seed {seed}: {violation}\n{}", replay(seed, breakage));
    }
}
