//! Builds with a bug on purpose: `drave bench durability` finds each by the scenario that docs/DURABILITY.md names, and
//! finds nothing in the same scenario without the bug. Takes the feature `planted-bugs`, which is never shipped.

mod cluster;

use std::process::{Command, Stdio};

use serde_json::Value;

/// Plays a scenario under a load, with the bug of this name, and demands one of the findings that go with it; then
/// without the bug, and demands that there are none.
fn assert_found(bug: &str, scenario: &str, load: &[&str], findings: &[&str]) {
    for bug in [Some(bug), None] {
        let Some((code, kinds)) = play(bug, scenario, load) else {
            return;
        };
        println!("{scenario}, {bug:?}: {kinds:?}");
        assert_eq!(code, Some(i32::from(bug.is_some())), "{kinds:?}");
        if bug.is_some() {
            let found = kinds.iter().any(|kind| findings.contains(&kind.as_str()));
            assert!(found, "none of {findings:?} is among {kinds:?}");
        } else {
            assert!(kinds.is_empty(), "{kinds:?}");
        }
    }
}

/// Plays a scenario; the exit code and the kinds of the violations. Nothing where it is not possible here.
fn play(bug: Option<&str>, scenario: &str, load: &[&str]) -> Option<(Option<i32>, Vec<String>)> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(cluster::drave());
    command
        .args(["bench", "durability", "--output=json", "--seed=5"])
        .arg(format!("--scenario={scenario}"))
        .args(load)
        .arg(format!(
            "--report={}",
            folder.path().join("report").display()
        ))
        .env_remove("DRAVE_PLANTED_BUG")
        .stdin(Stdio::null());
    if let Some(bug) = bug {
        command.env("DRAVE_PLANTED_BUG", bug);
    }
    let output = command.output().expect("the built binary");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {}", String::from_utf8_lossy(&output.stderr));
    });
    let played = &report["targets"][0]["scenarios"][0];
    if let Some(why) = played["skipped"].as_str() {
        cluster::skipped(scenario, why);
        return None;
    }
    let violations = played["verdict"]["violations"].as_array();
    let kinds = violations.expect("a verdict").iter().map(|found| {
        let kind = found["kind"].as_str();
        kind.expect("a kind").to_owned()
    });
    Some((output.status.code(), kinds.collect()))
}

#[test]
fn who_acknowledges_before_the_sync_loses_records_with_the_power() {
    let found = ["acknowledged-and-lost"];
    let load = ["--rounds=1", "--rate=500"];
    assert_found("acknowledge-before-sync", "power-cut-all", &load, &found);
}

#[test]
fn who_forgets_its_vote_follows_an_old_leader_and_loses_records() {
    // So little that no replica applies its way to a checkpoint of what it then gives up, which its store would refuse.
    let load = ["--rate=500", "--partitions=24"];
    let found = ["acknowledged-and-lost", "replicas-disagree"];
    assert_found("forget-vote", "old-leader-returns", &load, &found);
}

#[test]
fn who_reads_past_the_commit_index_shows_records_that_never_were() {
    // Only a record that the next leader has at another offset shows; many producers mix the order.
    let load = ["--partitions=24", "--producers=8", "--plain-producers=4"];
    assert_found("read-uncommitted", "isolate-leader", &load, &["dirty-read"]);
}

#[test]
fn who_forgets_producers_at_a_failover_has_records_twice() {
    // Only a batch that is written and not yet acknowledged when its leader dies can be there twice.
    let load = ["--rounds=5", "--partitions=24", "--producers=8"];
    assert_found("forget-producers", "kill-leader", &load, &["duplicated"]);
}

#[test]
fn a_bug_that_nobody_planted_is_an_error() {
    let output = Command::new(cluster::drave())
        .args(["topic", "list"])
        .env("DRAVE_PLANTED_BUG", "none-such")
        .output()
        .expect("the built binary");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("`none-such` is none of acknowledge-before-sync"),
        "{told}"
    );
}
