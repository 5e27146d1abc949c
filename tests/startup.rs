//! A broker that can't start says why in one line, ends with an exit code other than 0, and touches no data; one that
//! is told to stop does so and takes its data up at the next start.

mod cluster;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::kafka::{Kafka, code};

/// What a start that fails printed, after the checks that all of them share.
fn refused(args: &[String]) -> String {
    let mut process = Command::new(cluster::drave())
        .arg("server")
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the built binary starts");
    let deadline = Instant::now() + Duration::from_secs(20);
    let status = loop {
        if let Some(status) = process.try_wait().expect("its status") {
            break status;
        }
        if Instant::now() > deadline {
            process.kill().ok();
            process.wait().ok();
            panic!("drave server {args:?} runs on");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    std::io::Read::read_to_string(
        &mut process.stderr.take().expect("standard error"),
        &mut said,
    )
    .expect("text");
    assert!(!status.success(), "drave server {args:?}: exit code 0");
    assert!(status.code().is_some(), "drave server {args:?}: {status}");
    assert!(!said.contains("panicked at"), "{said}");
    // Log lines may come before; what was wrong is said in one line, the last.
    let last = said
        .trim_end()
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned();
    assert!(!last.is_empty(), "drave server {args:?} says nothing");
    last
}

fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Every file below a folder with its content.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.file_type().expect("a file type").is_dir() {
            true => found.extend(contents(&entry.path())),
            false => drop(found.insert(entry.path(), fs::read(entry.path()).expect("a file"))),
        }
    }
    found
}

/// One broker's flags on ports of its own, with its data in `dir`.
fn alone(dir: &Path) -> Vec<String> {
    let ports = cluster::free_ports(3);
    vec![
        "--node-id=1".to_owned(),
        format!("--listen=127.0.0.1:{}", ports[0]),
        format!("--peer-listen=127.0.0.1:{}", ports[1]),
        format!("--http-listen=127.0.0.1:{}", ports[2]),
        format!("--data={}", dir.join("data").display()),
    ]
}

#[test]
fn a_config_that_is_wrong_is_refused_in_one_line_and_nothing_is_made() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = dir.path().join("data");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let data_line = format!("data = \"{}\"\n", data.display());
    let unknown = file(
        "unknown.toml",
        &format!("{data_line}node_id = 1\nno_such_key = 5\n"),
    );
    let wrong = file("wrong.toml", &format!("{data_line}node_id = \"one\"\n"));
    let garbled = file("garbled.toml", "node_id = = 1\n");
    let binary = dir.path().join("binary.toml");
    fs::write(&binary, [0xff, 0xfe, 0x00]).expect("written");
    let missing = dir.path().join("missing.toml").display().to_string();
    let folder = dir.path().display().to_string();
    let config = |path: &str| strings(&["--config", path]);
    let data_flag = format!("--data={}", data.display());
    let cases = [
        (config(&unknown), "no_such_key"),
        (config(&wrong), "node_id"),
        (config(&garbled), "garbled.toml"),
        (config(&binary.display().to_string()), "binary.toml"),
        (config(&missing), "missing.toml"),
        (config(&folder), &folder),
        (strings(&["--no-such-flag", &data_flag]), "no-such-flag"),
        (strings(&["--listen=nowhere", &data_flag]), "listen"),
        (
            strings(&[
                "--node-id=9",
                "--peers=1@127.0.0.1:1,2@127.0.0.1:2",
                &data_flag,
            ]),
            "9",
        ),
    ];
    for (args, expected) in cases {
        let line = refused_saying(&args);
        assert!(
            line.contains(expected),
            "drave server {args:?} says {line:?} and not {expected:?}"
        );
        assert!(
            !data.exists(),
            "drave server {args:?} made its data directory"
        );
    }
}

/// As [`refused`]; a flag that is wrong is explained by the command line's usage, of more than one line.
fn refused_saying(args: &[String]) -> String {
    if args[0].starts_with("--no-such") || args[0].starts_with("--listen") {
        let output = Command::new(cluster::drave())
            .arg("server")
            .args(args)
            .output()
            .expect("the built binary starts");
        assert!(!output.status.success());
        return String::from_utf8(output.stderr).expect("text");
    }
    refused(args)
}

#[test]
fn a_port_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().expect("a folder");
    for flag in ["--listen", "--peer-listen", "--http-listen"] {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("its address").to_string();
        let mut args = alone(dir.path());
        args.retain(|arg| !arg.starts_with(&format!("{flag}=")));
        args.push(format!("{flag}={address}"));
        let line = refused(&args);
        assert!(line.contains(&address), "{flag}: {line:?}");
    }
}

#[test]
fn a_data_directory_of_another_cluster_is_refused_by_the_brokers_of_this_one() {
    let mut stranger = Cluster::start_with(1, &[]);
    assert!(stranger.node_mut(1).terminate().success());
    let mut cluster = Cluster::start();
    // Only brokers 2 and 3 go on: broker 1 comes back with the other cluster's directory.
    assert!(cluster.node_mut(1).terminate().success());
    let mut args = cluster.node(1).flags().to_vec();
    let own = format!("--data={}", cluster.node(1).data().display());
    let data = stranger.node(1).data();
    for arg in &mut args {
        if *arg == own {
            *arg = format!("--data={}", data.display());
        }
    }
    assert!(args.iter().any(|arg| arg.contains("--data=")), "{args:?}");
    let line = refused(&args);
    assert!(
        line.contains("another cluster") && line.contains(&data.display().to_string()),
        "{line:?}"
    );
    cluster.node_mut(1).start();
    cluster.wait_ready();
    stranger.node_mut(1).start();
    stranger.wait_ready();
}

#[test]
fn a_data_directory_of_another_node_or_cluster_is_refused_and_left_as_it_is() {
    let mut cluster = Cluster::start_with(1, &[]);
    let kafka = cluster.kafka();
    kafka.create("kept", 1, &[]);
    assert_eq!(
        kafka
            .produce("kept", 0, Batch::of(&[("k", "v")]).encode())
            .error_code,
        code::NONE
    );
    let data = cluster.node(1).data();

    // While its owner runs.
    let mut args = alone(Path::new("/nonexistent"));
    args.pop();
    args.push(format!("--data={}", data.display()));
    let line = refused(&args);
    assert!(line.contains(&data.display().to_string()), "{line:?}");

    assert!(cluster.node_mut(1).terminate().success());
    let before = contents(&data);
    assert!(!before.is_empty());
    let ports = cluster::free_ports(3);
    let another = strings(&[
        "--node-id=2",
        &format!("--listen=127.0.0.1:{}", ports[0]),
        &format!("--peer-listen=127.0.0.1:{}", ports[1]),
        &format!("--http-listen=127.0.0.1:{}", ports[2]),
        &format!("--data={}", data.display()),
    ]);
    let line = refused(&another);
    assert!(
        line.contains(&data.display().to_string()) && line.contains('1') && line.contains('2'),
        "{line:?}"
    );
    assert!(contents(&data) == before, "the data directory was touched");

    // A folder that is somebody else's altogether.
    let dir = tempfile::tempdir().expect("a folder");
    fs::create_dir(dir.path().join("data")).expect("a folder");
    fs::write(dir.path().join("data/letter.txt"), "dear").expect("written");
    refused(&alone(dir.path()));
    assert_eq!(
        contents(&dir.path().join("data")).len(),
        1,
        "something was added to a folder that isn't ours"
    );

    cluster.node_mut(1).start();
    cluster.wait_ready();
    cluster.kafka().wait_leaders("kept", 1);
    assert_eq!(cluster.kafka().read_all("kept", 0).len(), 1);
}

#[test]
fn a_cluster_told_to_stop_takes_everything_up_at_the_next_start() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    let id = kafka.create("kept", 4, &[("max.message.bytes", "7000")]);
    let (producer_id, epoch) = kafka.producer_id().expect("a producer id");
    let batch = |sequence| {
        Batch::of(&[("a", "1"), ("b", "2")])
            .by(producer_id, epoch, sequence)
            .encode()
    };
    for partition in 0..4 {
        for n in 0..10 {
            assert_eq!(
                kafka.produce("kept", partition, batch(n * 2)).base_offset,
                i64::from(n) * 2
            );
        }
    }
    for round in 1..=2 {
        // At the same time, as Ctrl-C does it.
        let pids: Vec<_> = (1..=3).map(|id| cluster.node(id).pid()).collect();
        pids.iter().for_each(|pid| cluster::signal("TERM", *pid));
        for node in cluster.nodes_mut() {
            let status = node.wait();
            assert!(
                status.success(),
                "round {round}: broker {} ends with {status}",
                node.id
            );
        }
        cluster
            .nodes_mut()
            .iter_mut()
            .for_each(cluster::Node::start);
        cluster.wait_ready();
        assert_eq!(kafka.wait_leaders("kept", 4), id);
        for partition in 0..4 {
            assert_eq!(kafka.read_all("kept", partition).len(), 20);
            assert_eq!(
                kafka.produce("kept", partition, batch(18)).base_offset,
                18,
                "a repeat is known for what it is"
            );
        }
        let large = Batch::of(&[("k", &"x".repeat(8_000))]).encode();
        assert_eq!(
            kafka.produce("kept", 0, large).error_code,
            code::MESSAGE_TOO_LARGE
        );
    }
    let (again, _) = kafka.producer_id().expect("a producer id");
    assert_ne!(again, producer_id, "producer ids are given once");
}

#[test]
fn one_broker_that_is_told_to_stop_hands_its_partitions_over_at_once() {
    let mut cluster = Cluster::start();
    let kafka = cluster.kafka();
    kafka.create("handed", 12, &[]);
    let leaders = kafka.leaders("handed").expect("leaders");
    let led: Vec<_> = leaders
        .iter()
        .filter(|(_, leader)| **leader == 1)
        .map(|(partition, _)| *partition)
        .collect();
    assert!(
        !led.is_empty(),
        "twelve partitions over three brokers: {leaders:?}"
    );
    let started = Instant::now();
    assert!(cluster.node_mut(1).terminate().success());
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "stopping took {:?}",
        started.elapsed()
    );
    let others = Kafka::new(&format!("{},{}", cluster.address(2), cluster.address(3)));
    let stopped = Instant::now();
    for partition in &led {
        assert_eq!(
            others
                .produce("handed", *partition, Batch::of(&[("k", "v")]).encode())
                .error_code,
            code::NONE
        );
    }
    assert!(
        stopped.elapsed() < Duration::from_secs(2),
        "{} partitions took a write after {:?}",
        led.len(),
        stopped.elapsed()
    );
}
