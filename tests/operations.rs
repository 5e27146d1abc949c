//! docs/OPERATIONS.md is kept true: its three-machine example starts, its
//! tables name every setting, topic config and metric, what can't start says
//! why, and `/metrics` tells what a cluster has done.

#![allow(clippy::unwrap_used, reason = "a test program")]

mod cluster;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use drave::client::{
    Cluster, Consumer, ConsumerConfig, EARLIEST, Producer, ProducerConfig, list_offsets, records,
};
use drave::config::{Config, SETTINGS};
use drave::metadata::configs::{Support, TOPIC_CONFIGS};
use drave::metrics::SERIES;

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
fn the_documents_list_every_setting_topic_config_and_series() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPERATIONS.md");
    let found = std::fs::read_to_string(&path).unwrap();
    let written = replace(&found, "settings", &settings_table());
    let written = replace(&written, "topic configs", &topic_configs_table());
    let written = replace(&written, "series", &series_table());
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

fn series_table() -> String {
    let mut table = "| series | type | labels | meaning |\n| --- | --- | --- | --- |\n".to_owned();
    for series in SERIES {
        let (name, kind) = (series.sample_name(), series.kind.as_str());
        let labels = series.labels.iter().map(|label| format!("`{label}`"));
        let labels = labels.collect::<Vec<_>>().join(", ");
        table += &format!("| `{name}` | {kind} | {labels} | {} |\n", series.help);
    }
    table
}

/// What `/metrics` of a broker says: values by name and labels, as they are written.
fn scrape(node: &cluster::Node) -> HashMap<String, f64> {
    let mut flags = node.flags().iter();
    let address = flags.find_map(|flag| flag.strip_prefix("--http-listen="));
    let mut socket = TcpStream::connect(address.unwrap()).unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: drave\r\nConnection: close\r\n\r\n";
    socket.write_all(request).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let text = text.strip_suffix("# EOF\n").expect("a whole text");

    let mut values = HashMap::new();
    let mut family = "";
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# HELP ") {
            family = declared.split(' ').next().unwrap();
        } else if let Some(declared) = line.strip_prefix("# TYPE ") {
            assert!(declared.starts_with(family), "TYPE follows HELP: {line}");
        } else {
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(name.starts_with(family), "{name} is not of {family}");
            let before = values.insert(name.to_owned(), value.parse().unwrap());
            assert_eq!(before, None, "{name} is there twice");
        }
    }
    for series in SERIES {
        let (name, help) = (
            series.sample_name(),
            format!("# HELP drave_{} ", series.name),
        );
        assert!(text.contains(&help), "{name} is not described");
    }
    values
}

#[tokio::test]
async fn metrics_tell_what_was_produced_and_where_it_is() {
    let brokers = cluster::Cluster::start_with(3, &["--num-partitions=3"]);
    let scrape_all = || {
        (1..=3)
            .map(|id| scrape(brokers.node(id)))
            .collect::<Vec<_>>()
    };
    let sum = |scraped: &[HashMap<String, f64>], name: &str| -> f64 {
        scraped.iter().map(|values| values[name]).sum()
    };
    let before = scrape_all();
    assert_eq!(sum(&before, "drave_requests_total{api=\"Produce\"}"), 0.0);

    let cluster = Cluster::new(&brokers.bootstrap(), "test");
    let config = ProducerConfig::default();
    let producer = Producer::new(cluster, "orders", config, |batch| {
        batch.outcome.unwrap();
    });
    let producer = producer.await.unwrap();
    let value = [b'v'; 100];
    for number in 0..300 {
        let sent = producer.send(number % 3, None, Some(&value)).await;
        sent.unwrap();
    }
    producer.flush().await.unwrap();

    // Followers hear of the last commit a little later, and leadership may still move.
    let offset = |values: &HashMap<String, f64>, name: &str, partition: i32| {
        let labels = format!("topic=\"orders\",partition=\"{partition}\"");
        values
            .get(&format!("drave_partition_{name}{{{labels}}}"))
            .copied()
    };
    let is_settled = |values: &HashMap<String, f64>| {
        (0..3).all(|partition| {
            offset(values, "high_watermark", partition) == Some(100.0)
                && offset(values, "pending_entries", partition) == Some(0.0)
        })
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let after = loop {
        let after = scrape_all();
        if after.iter().all(is_settled)
            && sum(&after, "drave_replicas_behind") == 0.0
            && sum(&after, "drave_groups_led{kind=\"metadata\"}") == 1.0
            && sum(&after, "drave_groups_led{kind=\"partition\"}") == 3.0
        {
            break after;
        }
        assert!(Instant::now() < deadline, "{after:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };

    let produced = sum(&after, "drave_requests_total{api=\"Produce\"}");
    assert!(produced >= 1.0);
    let bytes = sum(&after, "drave_request_bytes_total{api=\"Produce\"}");
    assert!(bytes > 30_000.0, "{bytes} bytes");
    assert!(sum(&after, "drave_response_bytes_total{api=\"Produce\"}") > 0.0);
    let duration = "drave_request_duration_seconds";
    for part in ["count{", "bucket{le=\"+Inf\","] {
        let name = format!("{duration}_{part}api=\"Produce\"}}");
        assert_eq!(sum(&after, &name), produced, "{name}");
    }
    assert!(sum(&after, &format!("{duration}_sum{{api=\"Produce\"}}")) > 0.0);

    let syncs = "drave_storage_sync_duration_seconds_count";
    for (id, (before, after)) in (1..).zip(before.iter().zip(&after)) {
        assert!(after[syncs] > before[syncs], "broker {id} stored nothing");
        for partition in 0..3 {
            assert_eq!(offset(after, "log_end_offset", partition), Some(100.0));
            assert_eq!(offset(after, "log_start_offset", partition), Some(0.0));
        }
        let others = (1..=3).filter(|other| *other != id);
        for other in others {
            assert!(after.contains_key(&format!("drave_peer_queue_bytes{{broker=\"{other}\"}}")));
        }
    }
}
