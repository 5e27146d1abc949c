//! Ten thousand malformed requests of each API at a broker under load: it goes on, holds no more memory than before,
//! and answers others as fast as it does among as many requests that are well formed.
//!
//! What a single malformed request is answered is shown by `bad_input` and by the tests of `src/handlers`.

mod cluster;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cluster::Cluster;
use cluster::batch::Batch;
use cluster::kafka::{self, Kafka, code};
use cluster::wire::frame;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest};

const TOPIC: &str = "served";
const REQUESTS_PER_API: usize = 10_000;
const ATTACKERS: usize = 2;
/// A request that gets neither an answer nor a closed connection in this time may rightly wait, as a Fetch does.
const ANSWER_WAIT: Duration = Duration::from_millis(20);
/// How often the well-behaved producer writes.
const PAUSE: Duration = Duration::from_millis(2);
/// The p99 among malformed requests over that among well-formed ones, and what short waits differ by anyway.
const P99_RATIO_MAX: u32 = 2;
const P99_SLACK: Duration = Duration::from_millis(20);
/// What memory may grow by: nothing that ten thousand requests of 28 APIs leave behind would fit.
const GROWTH_MAX: u64 = 64 << 20;

#[test]
fn malformed_requests_cost_others_nothing() {
    // No topic may come of a name that nobody meant.
    let mut cluster = Cluster::start_with(1, &["--auto-create-topics-enable=false"]);
    let kafka = cluster.kafka();
    kafka.create(TOPIC, 1, &[]);
    let versions = kafka
        .any(0, &ApiVersionsRequest::default())
        .expect("ApiVersions");
    let apis: Vec<(i16, i16)> = versions
        .api_keys
        .iter()
        .map(|api| (api.api_key, api.max_version))
        .collect();
    assert!(apis.len() >= 28, "{} APIs", apis.len());

    let address = cluster.address(1);
    // The first storm also brings buffers and threads to their size. Most malformed requests cost a connection, and so
    // do these.
    let calm = storm(&kafka, &address, |_| well_formed(), REQUESTS_PER_API * 4);
    let before = cluster.node(1).resident_bytes();
    let requests = REQUESTS_PER_API * apis.len();
    let hostile = storm(
        &kafka,
        &address,
        |n| malformed(apis[n % apis.len()], n as u64),
        requests,
    );
    std::thread::sleep(Duration::from_secs(1));
    let after = cluster.node(1).resident_bytes();
    let line = format!(
        "{requests} malformed requests of {} APIs, {:.0} a second: a producer's p99 was {:.1?} among them, {:.1?} among \
         well-formed ones; memory {} MB before, {} MB after\n",
        apis.len(),
        requests as f64 / hostile.took.as_secs_f64(),
        hostile.p99,
        calm.p99,
        before >> 20,
        after >> 20,
    );
    // Past the test runner, which keeps the output of a test that passes to itself.
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("standard error");

    assert!(
        cluster.node_mut(1).exit_status().is_none(),
        "the broker ended"
    );
    let log = std::fs::read_to_string(cluster.node(1).log()).expect("the broker's log");
    assert!(!log.contains("panicked"), "a task of the broker panicked");
    assert!(after <= before + GROWTH_MAX, "memory grew");
    assert!(
        hostile.p99 <= calm.p99 * P99_RATIO_MAX + P99_SLACK,
        "others wait longer"
    );
    let topics = kafka.metadata(&[TOPIC]).expect("metadata").topics;
    assert_eq!(topics[0].error_code, code::NONE, "the topic is still there");
    let keys: BTreeSet<_> = kafka
        .read_all(TOPIC, 0)
        .into_iter()
        .map(|record| record.key)
        .collect();
    assert_eq!(
        keys.len(),
        calm.written + hostile.written,
        "records written once"
    );
}

/// What a producer saw of a storm of requests.
struct Storm {
    took: Duration,
    p99: Duration,
    written: usize,
}

/// Sends requests as fast as they are dealt with, while a producer writes.
fn storm(
    kafka: &Kafka,
    address: &str,
    request: impl Fn(usize) -> Vec<u8> + Sync,
    requests: usize,
) -> Storm {
    static KEYS: AtomicUsize = AtomicUsize::new(0);
    let (next, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let began = Instant::now();
    std::thread::scope(|scope| {
        let producer = scope.spawn(|| {
            let mut leader = kafka.leader(TOPIC, 0).expect("a leader");
            let mut latencies = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let key = KEYS.fetch_add(1, Ordering::Relaxed).to_string();
                let batch = Batch::of(&[(&key, "v")]).encode();
                let asked = Instant::now();
                let answer = kafka::produce(&mut leader, TOPIC, 0, batch).expect("Produce");
                assert_eq!(answer.error_code, code::NONE);
                latencies.push(asked.elapsed());
                std::thread::sleep(PAUSE);
            }
            latencies
        });
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|_| {
                scope.spawn(|| {
                    let mut connection = None;
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        if n >= requests {
                            return;
                        }
                        connection = send(connection, address, &request(n));
                    }
                })
            })
            .collect();
        for attacker in attackers {
            attacker.join().expect("an attacker");
        }
        over.store(true, Ordering::Relaxed);
        let mut latencies = producer.join().expect("the producer");
        latencies.sort();
        Storm {
            took: began.elapsed(),
            p99: latencies[latencies.len() * 99 / 100],
            written: latencies.len(),
        }
    })
}

/// Sends a request; the connection, if it can be used again.
fn send(connection: Option<TcpStream>, address: &str, request: &[u8]) -> Option<TcpStream> {
    let mut stream = match connection {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect(address).expect("the broker takes connections");
            stream.set_nodelay(true).expect("a socket");
            stream
                .set_read_timeout(Some(ANSWER_WAIT))
                .expect("a socket");
            stream
        }
    };
    // A connection that the broker has closed meanwhile is none.
    stream.write_all(request).ok()?;
    let mut length = [0; 4];
    stream.read_exact(&mut length).ok()?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).ok()?;
    let is_last = request.ends_with(LAST);
    (!is_last).then_some(stream)
}

/// Ends a request after whose answer the connection is closed.
const LAST: &[u8] = b"last";

fn well_formed() -> Vec<u8> {
    // An unknown topic's metadata.
    let mut body = 1i32.to_be_bytes().to_vec();
    body.extend((LAST.len() as i16).to_be_bytes());
    body.extend(LAST);
    frame(ApiKey::Metadata as i16, 0, 1, &body)
}

/// A request whose body is drawn: lengths, names and numbers as they might be, and noise; seldom a good one.
fn malformed((api_key, version_max): (i16, i16), seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut body = Vec::new();
    for _ in 0..draw(24) {
        match draw(9) {
            0 => body.extend([0x7f, 0xff, 0xff, 0xff]),
            1 => body.extend([0xff, 0xff, 0xff, 0xff, 0x07]),
            2 => body.extend((draw(4) as i32).to_be_bytes()),
            3 => body.extend((draw(4) as i16).to_be_bytes()),
            4 => body.extend(b"\x00\x03a/b"),
            5 => body.extend(b"\x04a/b"),
            6 => body.extend((-1i32).to_be_bytes()),
            7 => body.extend((0..draw(40)).map(|n| (seed >> (n % 57)) as u8)),
            _ => body.push(draw(3) as u8),
        }
    }
    let version = draw(version_max as u64 + 1) as i16;
    frame(api_key, version, seed as i32, &body)
}
