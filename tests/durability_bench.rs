//! `drave bench durability` as a user runs it: real brokers are killed under load, the report is there, nothing is
//! left behind.

mod cluster;

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use cluster::Cluster;

fn bench(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments)
        .output()
        .expect("the built binary")
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(cluster::drave());
    command
        .args(["bench", "durability", "--output=json", "--rate=500"])
        .arg(format!("--report={}", folder.join("report").display()))
        .arg(format!("--data={}", folder.join("data").display()))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The report on standard output; the one in the file is the same.
fn report(folder: &Path, output: &Output) -> serde_json::Value {
    let told = String::from_utf8_lossy(&output.stderr);
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {told}"));
    let file = std::fs::read(folder.join("report/report.json")).expect("the report");
    assert_eq!(
        report,
        serde_json::from_slice::<serde_json::Value>(&file).expect("JSON")
    );
    let page = std::fs::read_to_string(folder.join("report/report.html")).expect("the page");
    assert!(
        page.contains("kill-leader") || page.contains("given"),
        "{page}"
    );
    report
}

fn judged_again(history: &Path) -> Output {
    Command::new(cluster::drave())
        .args(["bench", "judge", "--output=json"])
        .arg(history)
        .output()
        .expect("the built binary")
}

/// Processes of brokers with data below a folder.
fn brokers(folder: &Path) -> usize {
    let needle = folder.display().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    lines
        .filter(|line| {
            let line = String::from_utf8_lossy(line);
            line.contains(&needle) && line.contains("server")
        })
        .count()
}

#[test]
fn a_killed_leader_loses_nothing_and_the_report_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = bench(
        folder.path(),
        &[
            "--scenario=kill-leader",
            "--rounds=2",
            "--seed=7",
            "--histories",
        ],
    );
    let report = report(folder.path(), &output);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let scenario = &report["targets"][0]["scenarios"][0];
    assert_eq!(scenario["name"], "kill-leader");
    assert_eq!(scenario["verdict"]["violations"], serde_json::json!([]));
    assert_eq!(scenario["faults"].as_array().map(Vec::len), Some(2));
    let counts = &scenario["verdict"]["counts"];
    let count = |name: &str| counts[name].as_u64().expect("a number");
    assert!(count("acknowledged") > 1_000, "{counts}");
    // Once from all brokers, and once without each of three.
    assert!(count("read_back") >= count("acknowledged"), "{counts}");
    assert!(count("seen_live") > 0, "{counts}");
    // drave has no transactions yet, and the report does not keep that to itself.
    assert_eq!(count("transactions_committed"), 0);
    let note = "no transactions were written: the target does not have them";
    let notes = scenario["notes"].as_array().expect("notes");
    assert!(notes.iter().any(|it| it == note), "{notes:?}");
    assert_eq!(report["seed"], 7);
    assert_eq!(brokers(folder.path()), 0);
    let history = folder
        .path()
        .join("report/histories/drave-kill-leader.json.zst");
    let judged = judged_again(&history);
    assert_eq!(judged.status.code(), Some(0), "{judged:?}");
    let again: serde_json::Value = serde_json::from_slice(&judged.stdout).expect("JSON");
    assert_eq!(
        again["targets"][0]["scenarios"][0]["verdict"],
        scenario["verdict"]
    );
    let whole = std::fs::read(&history).expect("the history");
    std::fs::write(&history, &whole[..whole.len() / 2]).expect("half of it");
    let judged = judged_again(&history);
    assert_eq!(judged.status.code(), Some(1), "{judged:?}");
}

#[test]
fn cut_off_leaders_power_cuts_and_clocks_that_jump_lose_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments = [
        "--scenario=isolate-leader",
        "--scenario=power-cut-all",
        "--scenario=clock-jump",
        "--torn=sectors",
        "--lose-names",
        "--rounds=1",
        "--seed=3",
    ];
    let output = bench(folder.path(), &arguments);
    let report = report(folder.path(), &output);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for scenario in report["targets"][0]["scenarios"]
        .as_array()
        .expect("scenarios")
    {
        let name = scenario["name"].as_str().expect("a name");
        if let Some(why) = scenario["skipped"].as_str() {
            eprintln!("skipped test: {name}: {why}");
            continue;
        }
        assert_eq!(
            scenario["verdict"]["violations"],
            serde_json::json!([]),
            "{name}"
        );
        let faults = &scenario["availability"]["faults"];
        let worst_us = faults[0]["outage"]["worst_us"].as_u64();
        if name == "isolate-leader" {
            // The cut lasts 8 s at least: other leaders take over before it is over.
            let worst_us = worst_us.expect("an outage");
            assert!(worst_us < 6_000_000, "{worst_us} µs");
        }
    }
}

#[test]
fn neither_a_lossy_nor_a_slow_network_loses_a_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let scenarios = ["--scenario=lossy-network", "--scenario=slow-network"];
    let output = bench(folder.path(), &[scenarios[0], scenarios[1], "--seed=7"]);
    let report = report(folder.path(), &output);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for scenario in report["targets"][0]["scenarios"]
        .as_array()
        .expect("scenarios")
    {
        let name = scenario["name"].as_str().expect("a name");
        if let Some(why) = scenario["skipped"].as_str() {
            eprintln!("skipped test: {name}: {why}");
            continue;
        }
        let violations = &scenario["verdict"]["violations"];
        assert_eq!(*violations, serde_json::json!([]), "{name}");
        // The switch was at work: without it no write takes as long as a way there and back.
        let during = &scenario["availability"]["latency"]["during"];
        let median = during["p50_us"].as_u64().expect("writes");
        assert!(name != "slow-network" || median >= 60_000, "{during}");
        let notes = scenario["notes"].to_string();
        let none_lost = notes.contains(" 0 were lost");
        assert_eq!(none_lost, name == "slow-network", "{notes}");
    }
}

#[test]
fn an_interrupt_ends_everything_that_was_started() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = command(folder.path(), &["--scenario=calm"])
        .spawn()
        .expect("the built binary");
    let deadline = Instant::now() + Duration::from_secs(30);
    while brokers(folder.path()) < 3 {
        assert!(Instant::now() < deadline, "no brokers were started");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster::signal("INT", process.id());
    let status = process.wait().expect("its end");
    assert_eq!(status.code(), Some(1));
    assert_eq!(brokers(folder.path()), 0);
}

#[test]
fn a_cluster_of_somebody_else_is_loaded_judged_and_left_as_it_was() {
    let cluster = Cluster::start();
    let folder = tempfile::tempdir().expect("a folder");
    let calls = folder.path().join("calls");
    let hook = format!("echo $DRAVE_FAULT $DRAVE_ROUND >> {}", calls.display());
    let bootstrap = format!("--bootstrap={}", cluster.bootstrap());
    let output = command(
        folder.path(),
        &[&bootstrap, "--rounds=1", "--on-fault", &hook],
    )
    .output()
    .expect("the built binary");
    let report = report(folder.path(), &output);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let scenario = &report["targets"][0]["scenarios"][0];
    assert_eq!(scenario["verdict"]["violations"], serde_json::json!([]));
    assert_eq!(
        std::fs::read_to_string(calls).expect("the calls"),
        "begin 1\nend 1\n"
    );
    let listed = Command::new(cluster::drave())
        .args(["topic", "list", "--output=json", "--bootstrap"])
        .arg(cluster.bootstrap())
        .output()
        .expect("the built binary");
    assert!(listed.status.success());
    let listed = String::from_utf8_lossy(&listed.stdout);
    assert!(!listed.contains("drave-durability"), "{listed}");
}
