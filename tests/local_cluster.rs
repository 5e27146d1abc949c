//! The README's commands, as a newcomer types them: a local cluster of real
//! brokers, and the client commands against it.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use drave::client::{
    Cluster, Consumer, ConsumerConfig, EARLIEST, Producer, ProducerConfig, list_offsets, records,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A local cluster; whatever way a test ends, its brokers end.
struct Local {
    folder: tempfile::TempDir,
    base_port: u16,
}

impl Local {
    fn new() -> Local {
        Local {
            folder: tempfile::tempdir().unwrap(),
            base_port: free_base_port(),
        }
    }

    fn data(&self) -> String {
        self.folder.path().join("data").display().to_string()
    }

    fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.base_port)
    }

    /// Starts three brokers in the background and waits until they are ready.
    fn up(&self) {
        let port = self.base_port.to_string();
        let arguments = [
            "up",
            "--nodes",
            "3",
            "--base-port",
            &port,
            "--data",
            &self.data(),
        ];
        let said = succeeds(&drave(&[&arguments[..], &["--detach"]].concat(), ""));
        assert!(
            said.contains(&self.bootstrap()),
            "it says where to connect: {said}"
        );
    }

    fn down(&self) {
        succeeds(&drave(&["down", "--data", &self.data()], ""));
    }

    /// Runs a client command with lines as its input.
    fn client(&self, arguments: &[&str], input: &str) -> Output {
        drave(
            &[arguments, &["--bootstrap", &self.bootstrap()]].concat(),
            input,
        )
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.client(&[arguments, &["--output", "json"]].concat(), "");
        serde_json::from_str(&succeeds(&output)).unwrap()
    }

    /// Pids of the brokers, by id.
    fn pids(&self) -> Vec<i32> {
        let file = Path::new(&self.data()).join("cluster.json");
        let noted: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        let processes = noted["processes"].as_array().unwrap().iter();
        processes
            .map(|process| process["pid"].as_i64().unwrap() as i32)
            .collect()
    }

    fn kill(&self, broker: usize) {
        signal(self.pids()[broker - 1], Signal::KILL);
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(drave(&["down", "--data", &self.data()], ""));
        if std::thread::panicking() {
            for node in 1..=3 {
                let log = Path::new(&self.data()).join(format!("node-{node}/log"));
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("---- the end of {}", log.display());
                eprintln!("{}", lines[lines.len().saturating_sub(30)..].join("\n"));
            }
        }
    }
}

/// A port with the ones that three brokers take after it.
fn free_base_port() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = first.local_addr().unwrap().port();
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        if base < 60_000 && (base + 1..base + 23).all(|port| free(&port)) {
            return base;
        }
    }
}

fn drave(arguments: &[&str], input: &str) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_drave"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = process.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// What a command printed; it must have succeeded.
fn succeeds(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {errors}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The one line that a command printed when it failed.
fn fails(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert_eq!(errors.lines().count(), 1, "one clear line: {errors}");
    assert!(errors.starts_with("error: "), "{errors}");
    errors
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

fn is_alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_newcomers_first_session_works_and_the_next_start_takes_up_its_data() {
    let local = Local::new();
    local.up();
    succeeds(&local.client(&["topic", "create", "orders", "--partitions", "6"], ""));
    let lines: String = (0..2_000)
        .map(|number| format!("k{}:{number}\n", number % 50))
        .collect();
    succeeds(&local.client(&["produce", "orders", "--key-separator", ":"], &lines));

    let all = [
        "consume",
        "orders",
        "--from-beginning",
        "--max-messages",
        "2000",
        "--print-key",
    ];
    let read = succeeds(&local.client(&all, ""));
    let mut last: BTreeMap<&str, i32> = BTreeMap::new();
    for line in read.lines() {
        let (key, value) = line.split_once('\t').unwrap();
        let value = value.parse().unwrap();
        assert!(
            last.insert(key, value).is_none_or(|before| before < value),
            "order of {key}"
        );
    }
    assert_eq!((read.lines().count(), last.len()), (2_000, 50));

    let group = [
        "consume",
        "orders",
        "--from-beginning",
        "--group",
        "g",
        "--max-messages",
        "700",
    ];
    assert_eq!(succeeds(&local.client(&group, "")).lines().count(), 700);
    let status = local.json(&["cluster", "status"]);
    assert_eq!(
        (
            status["brokers"].as_array().unwrap().len(),
            &status["partitions"]
        ),
        (3, &6.into())
    );
    assert_eq!(local.json(&["topic", "list"])[0]["name"], "orders");
    let said = fails(&local.client(&["topic", "create", "orders"], ""));
    assert!(said.contains("TOPIC_ALREADY_EXISTS"), "{said}");
    let said = fails(&drave(
        &["up", "--data", &local.data(), "--base-port", "1"],
        "",
    ));
    assert!(said.contains("is in use"), "{said}");

    local.down();
    assert!(fails(&drave(&["down", "--data", &local.data()], "")).contains("nothing runs"));
    let said = fails(&drave(&["up", "--data", &local.data(), "--nodes", "1"], ""));
    assert!(said.contains("a cluster of 3 nodes, not of 1"), "{said}");

    local.up();
    let group = [
        "consume",
        "orders",
        "--group",
        "g",
        "--max-messages",
        "1300",
    ];
    assert_eq!(succeeds(&local.client(&group, "")).lines().count(), 1_300);
    assert_eq!(succeeds(&local.client(&all, "")).lines().count(), 2_000);
    succeeds(&local.client(&["topic", "delete", "orders"], ""));
    assert_eq!(local.json(&["topic", "list"]).as_array().unwrap().len(), 0);
}

fn supervised(local: &Local) -> Child {
    let supervisor = Command::new(env!("CARGO_BIN_EXE_drave"))
        .args(["up", "--nodes", "3", "--data", &local.data()])
        .args(["--base-port", &local.base_port.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("three brokers", || {
        let status = local.client(&["cluster", "status", "--output", "json"], "");
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["brokers"]
            .as_array()
            .is_some_and(|brokers| brokers.len() == 3)
    });
    supervisor
}

#[test]
fn ctrl_c_stops_every_broker_and_a_killed_supervisor_leaves_none_behind() {
    let local = Local::new();
    for (kill, code) in [(Signal::INT, Some(0)), (Signal::KILL, None)] {
        let mut supervisor = supervised(&local);
        let pids = local.pids();
        signal(supervisor.id() as i32, kill);
        assert_eq!(supervisor.wait().unwrap().code(), code);
        wait_until("the brokers' end", || {
            !pids.iter().any(|pid| is_alive(*pid))
        });
    }
}

#[test]
fn a_broker_that_is_killed_is_started_again() {
    let local = Local::new();
    let mut supervisor = supervised(&local);
    // One that ends at once after its start would stay down.
    std::thread::sleep(Duration::from_secs(10));
    let before = local.pids();
    local.kill(2);
    wait_until("another process", || local.pids()[1] != before[1]);
    wait_until("three brokers up", || {
        let status = local.json(&["cluster", "status"]);
        let brokers = status["brokers"].as_array().unwrap();
        brokers
            .iter()
            .filter(|broker| broker["alive"] == true)
            .count()
            == 3
    });
    signal(supervisor.id() as i32, Signal::TERM);
    assert_eq!(supervisor.wait().unwrap().code(), Some(0));
}

/// The client's own promise: in order and once, through a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_producer_sends_every_record_once_and_in_order_while_a_leader_dies() {
    const RECORDS: usize = 30_000;
    let local = Local::new();
    local.up();
    succeeds(&local.client(&["topic", "create", "orders", "--partitions", "3"], ""));
    let brokers: Vec<String> = (0..3)
        .map(|node| format!("127.0.0.1:{}", local.base_port + node * 10))
        .collect();
    let cluster = Cluster::new(&brokers.join(","), "test");
    let failure = Arc::new(Mutex::new(None));
    let noted = failure.clone();
    let config = ProducerConfig {
        batch_bytes: 4096,
        ..ProducerConfig::default()
    };
    let producer = Producer::new(cluster.clone(), "orders", config, move |batch| {
        if let Err(error) = batch.outcome {
            noted.lock().unwrap().get_or_insert(error);
        }
    });
    let producer = producer.await.unwrap();
    for number in 0..RECORDS {
        if number == RECORDS / 3 {
            let leader = cluster.leaders("orders", false).await.unwrap()[0];
            local.kill(leader as usize);
        }
        let value = number.to_string();
        producer
            .send(number % 3, None, Some(value.as_bytes()))
            .await
            .unwrap();
        if number % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    producer.flush().await.unwrap();
    assert!(failure.lock().unwrap().is_none(), "{failure:?}");

    let from = list_offsets(&cluster, "orders", EARLIEST).await.unwrap();
    let consumer = Consumer::start(cluster, "orders", &from, ConsumerConfig::default());
    let mut consumer = consumer.await.unwrap();
    let mut next = [0, 1, 2];
    let mut read = 0;
    while read < RECORDS {
        let fetched = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await;
        let fetched = fetched.expect("records in time").unwrap().unwrap();
        for record in fetched
            .batches
            .iter()
            .flat_map(|batch| records(batch).unwrap())
        {
            let value = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
            let expected = &mut next[fetched.partition as usize];
            assert_eq!(
                value,
                expected.to_string(),
                "partition {}",
                fetched.partition
            );
            *expected += 3;
            read += 1;
        }
    }
}
