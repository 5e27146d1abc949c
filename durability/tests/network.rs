//! A network that loses packets does so as it is told, and no other way: threads of the
//! test stand where brokers would, in their namespaces, and talk to each other.

#![cfg(target_os = "linux")]

use drave_durability::network::{Link, Network};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

/// What arrives at all has arrived by then.
const ARRIVED: Duration = Duration::from_secs(5);
/// Time in which nothing is expected.
const SILENCE: Duration = Duration::from_millis(300);

/// A network of three, or says on stderr, past what the test harness captures, why there is none.
fn network(seed: u64) -> Option<Network> {
    match Network::new(3, seed) {
        Ok(network) => Some(network),
        Err(why) => {
            let root = rustix::process::geteuid().is_root();
            let device = File::options().read(true).write(true).open("/dev/net/tun");
            let tool = Command::new("ip").arg("-V").output();
            let possible = root && device.is_ok() && tool.is_ok();
            assert!(!possible, "a network: {why}");
            let line = format!("\nskipped test: a network that loses packets: {why}\n");
            std::io::stderr()
                .write_all(line.as_bytes())
                .expect("stderr can be written to");
            None
        }
    }
}

/// Makes something where a broker lives: a socket stays where it was made.
fn inside<T: Send>(network: &Network, id: u32, make: impl FnOnce() -> T + Send) -> T {
    let namespace = File::open(format!("/run/netns/{}", network.namespace(id)));
    let namespace = namespace.expect("a namespace");
    thread::scope(|scope| {
        let made = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter it");
            make()
        });
        made.join().expect("it is made")
    })
}

/// A socket of each broker, at the same port.
fn sockets(network: &Network) -> [UdpSocket; 3] {
    [1, 2, 3].map(|id| {
        let host = network.peer_host(id);
        let socket = inside(network, id, move || UdpSocket::bind((host, 7000)));
        let socket = socket.expect("a free port");
        socket.set_read_timeout(Some(ARRIVED)).expect("a timeout");
        socket
    })
}

fn send(network: &Network, socket: &UdpSocket, to: u32, number: u32) {
    let sent = socket.send_to(&number.to_be_bytes(), (network.peer_host(to), 7000));
    assert_eq!(sent.expect("nobody is told of a loss"), 4);
}

fn receive(socket: &UdpSocket) -> Option<u32> {
    let mut number = [0; 4];
    let received = socket.recv(&mut number).ok()?;
    assert_eq!(received, 4);
    Some(u32::from_be_bytes(number))
}

fn receive_nothing(socket: &UdpSocket) {
    socket.set_read_timeout(Some(SILENCE)).expect("a timeout");
    assert_eq!(receive(socket), None);
    socket.set_read_timeout(Some(ARRIVED)).expect("a timeout");
}

/// Sends this many bytes from broker 1 to broker 2 and gets one back; how long it took.
fn transfer(network: &Network, bytes: usize) -> Duration {
    let host = network.peer_host(2);
    let listener = inside(network, 2, || TcpListener::bind((host.as_str(), 7001)));
    let listener = listener.expect("a free port");
    let stream = inside(network, 1, || TcpStream::connect((host.as_str(), 7001)));
    let mut stream = stream.expect("a connection");
    let (mut other, _) = listener.accept().expect("a connection");
    let limit = Some(Duration::from_secs(60));
    for end in [&stream, &other] {
        end.set_read_timeout(limit).expect("a timeout");
        end.set_write_timeout(limit).expect("a timeout");
    }
    let sent: Vec<u8> = (0..bytes).map(|at| (at * 31 / 7) as u8).collect();
    let began = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut received = vec![0; bytes];
            other.read_exact(&mut received).expect("all of it");
            assert!(received == sent, "other bytes arrived");
            other.write_all(&[1]).expect("a reply");
        });
        stream.write_all(&sent).expect("a live connection");
        stream.read_exact(&mut [0]).expect("a reply");
    });
    began.elapsed()
}

#[test]
fn a_whole_network_passes_everything() {
    let Some(network) = network(0) else { return };
    let bytes = 32 << 20;
    let took = transfer(&network, bytes);
    println!("{:.0} MB/s", bytes as f64 / took.as_micros().max(1) as f64);
    let there = network.traffic(1, 2);
    assert!(there.passed as usize >= bytes / 1500, "{there:?}");
    assert_eq!(there.lost, 0);
    assert!(network.traffic(2, 1).passed > 0);
    assert_eq!(network.traffic(1, 3).passed, 0);
}

#[test]
fn a_stream_survives_loss_and_delay() {
    let Some(network) = network(1) else { return };
    network.set_all(Link {
        lost: 0.05,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(3),
    });
    transfer(&network, 1 << 20);
    let traffic = network.all_traffic();
    assert!(traffic.lost > 0 && traffic.passed > 700, "{traffic:?}");
}

#[test]
fn what_is_cut_one_way_arrives_the_other_way_and_elsewhere() {
    let Some(network) = network(0) else { return };
    let [first, second, third] = sockets(&network);
    network.set(1, 2, Link::CUT);
    send(&network, &first, 2, 12);
    receive_nothing(&second);
    send(&network, &second, 1, 21);
    assert_eq!(receive(&first), Some(21));
    send(&network, &first, 3, 13);
    assert_eq!(receive(&third), Some(13));
    assert_eq!(network.traffic(1, 2).lost, 1);
    network.set(1, 2, Link::default());
    send(&network, &first, 2, 120);
    assert_eq!(receive(&second), Some(120), "what was lost stays lost");
}

#[test]
fn a_broker_that_is_cut_off_is_alone_until_it_is_healed() {
    let Some(network) = network(0) else { return };
    let [first, second, third] = sockets(&network);
    network.cut(1);
    send(&network, &first, 2, 12);
    send(&network, &third, 1, 31);
    send(&network, &second, 3, 23);
    assert_eq!(receive(&third), Some(23));
    receive_nothing(&first);
    receive_nothing(&second);
    network.heal(1);
    send(&network, &first, 2, 120);
    send(&network, &third, 1, 310);
    assert_eq!(receive(&second), Some(120));
    assert_eq!(receive(&first), Some(310));
}

#[test]
fn thirty_percent_loss_loses_thirty_percent() {
    let Some(network) = network(5) else { return };
    let [first, second, _] = sockets(&network);
    network.set(
        1,
        2,
        Link {
            lost: 0.3,
            ..Link::default()
        },
    );
    let count = 2_000;
    let mut received = 0;
    for number in 0..count {
        send(&network, &first, 2, number);
        // A few at a time, so that no buffer overflows.
        if number % 50 == 49 {
            let deadline = Instant::now() + ARRIVED;
            let mut traffic = network.traffic(1, 2);
            while traffic.passed + traffic.lost <= u64::from(number) {
                assert!(Instant::now() < deadline, "{traffic:?}");
                thread::sleep(Duration::from_millis(1));
                traffic = network.traffic(1, 2);
            }
            while received < traffic.passed {
                assert!(receive(&second).is_some(), "{received} of {traffic:?}");
                received += 1;
            }
        }
    }
    receive_nothing(&second);
    let traffic = network.traffic(1, 2);
    assert_eq!(traffic.passed + traffic.lost, u64::from(count));
    let lost = traffic.lost as f64 / f64::from(count);
    assert!((0.26..0.34).contains(&lost), "{lost}");
}

#[test]
fn a_delay_each_way_shows_twice_in_a_round_trip_and_keeps_the_order() {
    let Some(network) = network(0) else { return };
    let [first, second, _] = sockets(&network);
    let delay = Duration::from_millis(50);
    let link = Link {
        delay,
        ..Link::default()
    };
    network.set_all(link);
    for number in 0..5 {
        let sent = Instant::now();
        send(&network, &first, 2, number);
        assert_eq!(receive(&second), Some(number));
        send(&network, &second, 1, number);
        assert_eq!(receive(&first), Some(number));
        let took = sent.elapsed();
        assert!(took >= 2 * delay, "{took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    let jitter = Duration::from_millis(40);
    network.set_all(Link { jitter, ..link });
    for number in 0..100 {
        send(&network, &first, 2, number);
    }
    let received: Vec<_> = (0..100).map(|_| receive(&second)).collect();
    assert_eq!(received, (0..100).map(Some).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_of_a_network_that_was_dropped() {
    let Some(network) = network(0) else { return };
    let left = |of: &[&str], tag: &str| {
        let output = Command::new("ip").args(of).output().expect("ip runs");
        let text = String::from_utf8(output.stdout).expect("text");
        text.lines().filter(|line| line.contains(tag)).count()
    };
    let tag = network.namespace(1);
    let tag = tag.strip_suffix("n1").expect("the first one").to_owned();
    // A bridge, and a link to each broker.
    assert_eq!(left(&["-o", "link"], &tag), 4);
    assert_eq!(left(&["netns", "list"], &tag), 3);
    let device = || {
        let namespace = network.namespace(1);
        let shown = Command::new("ip")
            .args(["-n", &namespace, "link", "show", "p"])
            .output();
        shown.expect("ip runs").status.success()
    };
    assert!(device());
    // A process that still lives in a namespace has no device to its peers any more.
    let socket = inside(&network, 1, || UdpSocket::bind("0.0.0.0:7000")).expect("a free port");
    let peer = network.peer_host(2);
    drop(network);
    assert_eq!(left(&["-o", "link"], &tag), 0);
    assert_eq!(left(&["netns", "list"], &tag), 0);
    assert!(socket.send_to(b"anybody?", (peer, 7000)).is_err());
}
