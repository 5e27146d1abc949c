//! docs/OPERATIONS.md is kept true: its three-machine example starts, its
//! tables name every setting and topic config, and what can't start says why.

#![allow(clippy::unwrap_used, reason = "a test program")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drave::client::{
    Cluster, Consumer, ConsumerConfig, EARLIEST, Producer, ProducerConfig, list_offsets, records,
};
use drave::config::{Config, SETTINGS};
use drave::metadata::configs::{Support, TOPIC_CONFIGS};

const BOOTSTRAP: &str = "127.0.0.11:9092,127.0.0.12:9092,127.0.0.13:9092";

struct Broker {
    process: Child,
    log: PathBuf,
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// Only the data directory differs from what the files say.
fn start(node: usize, folder: &Path) -> Broker {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/examples/node{node}.toml"));
    let log = folder.join(format!("node{node}.log"));
    let process = Command::new(env!("CARGO_BIN_EXE_drave"))
        .args(["server", "--config"])
        .arg(file)
        .arg("--data")
        .arg(folder.join(format!("node{node}")))
        .stdin(Stdio::null())
        .stderr(std::fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    Broker { process, log }
}

#[tokio::test]
async fn three_brokers_start_from_the_files_in_the_documents_and_take_records() {
    let folder = tempfile::tempdir().unwrap();
    let mut brokers: Vec<Broker> = (1..=3).map(|node| start(node, folder.path())).collect();
    let cluster = Cluster::new(BOOTSTRAP, "test");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let metadata = cluster.metadata(Some(&[]), false).await;
        if metadata.is_ok_and(|metadata| metadata.brokers.len() == 3) {
            break;
        }
        for broker in &mut brokers {
            assert_eq!(
                broker.process.try_wait().unwrap(),
                None,
                "a broker ended by itself"
            );
        }
        assert!(
            Instant::now() < deadline,
            "the brokers did not form a cluster"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let config = ProducerConfig::default();
    let producer = Producer::new(cluster.clone(), "orders", config, |batch| {
        batch.outcome.unwrap();
    });
    let producer = producer.await.unwrap();
    assert_eq!(producer.partitions(), 3, "num.partitions of the files");
    for number in 0..300 {
        let value = number.to_string();
        producer
            .send(number % 3, None, Some(value.as_bytes()))
            .await
            .unwrap();
    }
    producer.flush().await.unwrap();

    let from = list_offsets(&cluster, "orders", EARLIEST).await.unwrap();
    let consumer = Consumer::start(cluster, "orders", &from, ConsumerConfig::default());
    let mut consumer = consumer.await.unwrap();
    let mut read = Vec::new();
    while read.len() < 300 {
        let next = tokio::time::timeout(Duration::from_secs(30), consumer.next()).await;
        for batch in next.expect("records in time").unwrap().unwrap().batches {
            let values = records(&batch)
                .unwrap()
                .into_iter()
                .map(|record| record.value.unwrap());
            read.extend(values.map(|value| String::from_utf8(value.to_vec()).unwrap()));
        }
    }
    read.sort_by_key(|value| value.parse::<u32>().unwrap());
    assert_eq!(
        read,
        (0..300)
            .map(|number: u32| number.to_string())
            .collect::<Vec<_>>()
    );

    for broker in &mut brokers {
        terminate(&broker.process);
        let status = wait(&mut broker.process);
        assert_eq!(status, Some(0), "SIGTERM stops a broker cleanly");
    }
}

fn terminate(process: &Child) {
    let pid = rustix::process::Pid::from_raw(process.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
}

fn wait(process: &mut Child) -> Option<i32> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Some(status) = process.try_wait().unwrap() {
            return status.code();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("the broker did not stop in time");
}

/// Starts a broker that must refuse; returns what it said.
fn refused(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_drave"));
    let output = command
        .arg("server")
        .args(arguments)
        .env("DRAVE_LOG", "off")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "one clear line: {said}");
    assert!(said.starts_with("error: "), "{said}");
    said
}

#[test]
fn a_broker_that_can_not_start_says_why_in_one_line_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let data = data.to_str().unwrap();
    let file = folder.path().join("node.toml");
    let path = file.to_str().unwrap();

    std::fs::write(&file, "node_id = 1\nlisten_on = 3\n").unwrap();
    let said = refused(&["--config", path, "--data", data]);
    assert!(said.contains("unknown key `listen_on`"), "{said}");

    let said = refused(&["--config", "/nonexistent.toml", "--data", data]);
    assert!(said.contains("/nonexistent.toml"), "{said}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listeners = ["--listen", "--peer-listen", "--http-listen"];
    for listener in listeners {
        let mut arguments = vec!["--data", data, listener, address.as_str()];
        for other in listeners.into_iter().filter(|other| *other != listener) {
            arguments.extend([other, "127.0.0.1:0"]);
        }
        let said = refused(&arguments);
        assert!(said.contains(&address), "{listener}: {said}");
    }
    assert!(
        !Path::new(data).exists(),
        "something was made in the data directory"
    );
}

/// The tables of docs/OPERATIONS.md, from the code. `DRAVE_UPDATE_DOCS=1` writes them.
#[test]
fn the_documents_list_every_setting_and_every_topic_config() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let written = replace(&found, "settings", &settings_table());
    let written = replace(&written, "topic configs", &topic_configs_table());
    if std::env::var_os("DRAVE_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(
        found == written,
        "docs/OPERATIONS.md is behind: run this test with DRAVE_UPDATE_DOCS=1"
    );
}

fn replace(text: &str, name: &str, table: &str) -> String {
    let begin = format!("<!-- {name}: written by tests/operations.rs -->\n");
    let end = format!("<!-- end of {name} -->");
    let from = text.find(&begin).expect("the table's begin") + begin.len();
    let to = text.find(&end).expect("the table's end");
    format!("{}{table}{}", &text[..from], &text[to..])
}

fn settings_table() -> String {
    let mut table = "| key | default | meaning |\n| --- | --- | --- |\n".to_owned();
    for setting in SETTINGS {
        let default = setting.value(&Config::default());
        let default = if default.is_empty() {
            String::new()
        } else {
            format!("`{default}`")
        };
        let help = setting.help.trim();
        table += &format!("| `{}` | {default} | {help} |\n", setting.key);
    }
    table
}

fn topic_configs_table() -> String {
    let mut table = "| config | default | what drave does |\n| --- | --- | --- |\n".to_owned();
    for config in TOPIC_CONFIGS {
        let does = match config.support {
            Support::Acts => config.doc.to_owned(),
            Support::NoMeaning(why) => format!("Accepted, changes nothing: {why}."),
            Support::OnlyDefault(why) => format!("Refused unless the default: {why}."),
        };
        let default = match config.default {
            "" => String::new(),
            default => format!("`{default}`"),
        };
        table += &format!("| `{}` | {default} | {does} |\n", config.name);
    }
    table
}
