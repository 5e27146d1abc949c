//! Stories in which the other end is odd: foreign, wrong, silent or slow.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::handshake::{HandshakeError, Refusal, greet, welcome};
use super::super::outbox::OUTBOX_BYTES_MAX;
use super::super::reader::FrameReader;
use super::super::wire::Heartbeat;
use super::*;

/// What broker `broker` says when it wants to reach broker `subject`.
fn card(broker: u32, incarnation: u64, subject: u32) -> Card {
    Card {
        version: PROTOCOL_VERSION,
        cluster_id: Some(1),
        identity: Identity {
            replica: replica(broker),
            incarnation,
        },
        subject,
    }
}

/// A node 1 whose peer 2 is played by the test.
async fn node_one(dead_after: Duration) -> (Node, SocketAddr, TcpListener) {
    let ((one, at_one), (two, at_two)) = (bind().await, bind().await);
    let config = TransportConfig {
        dead_after,
        ..config(1, &[(1, at_one), (2, at_two)])
    };
    (Node::start(config, one).await, at_one, two)
}

/// Accepts node 1's connection as broker 2.
async fn accept(listener: &TcpListener, incarnation: u64) -> TcpStream {
    let (mut stream, _) = listener.accept().await.expect("dialed");
    let hello = welcome(&mut stream, card(2, incarnation, 0), |_| false).await;
    assert_eq!(hello.expect("a good hello").identity.replica, replica(1));
    stream
}

/// Dials node 1 and proves to live.
async fn dial(address: SocketAddr, card: Card) -> Result<TcpStream, HandshakeError> {
    let mut stream = TcpStream::connect(address).await?;
    greet(&mut stream, card).await?;
    beat(&mut stream, card.identity.incarnation).await;
    Ok(stream)
}

async fn beat(stream: &mut TcpStream, incarnation: u64) {
    let frame = Frame::heartbeat(Heartbeat {
        incarnation,
        sync_age_ms: 33,
    });
    let mut bytes = bytes::BytesMut::new();
    frame.put_head(&mut bytes);
    bytes.extend_from_slice(&frame.message.header);
    stream.write_all(&bytes).await.expect("written");
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 4096];
    let closed = async { while matches!(stream.read(&mut bytes).await, Ok(1..)) {} };
    timeout(SOON, closed).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_the_reason() {
    let (mut one, address, listener) = node_one(Duration::from_secs(1)).await;
    let good = card(2, 5, 1);
    let odd = [
        (
            Card {
                cluster_id: Some(9),
                ..good
            },
            Refusal::OtherCluster,
        ),
        (Card { subject: 3, ..good }, Refusal::WrongBroker),
        (card(1, 5, 1), Refusal::OwnId),
    ];
    for (card, reason) in odd {
        match dial(address, card).await {
            Err(HandshakeError::RefusedByPeer(refusal)) => assert_eq!(refusal, reason),
            other => panic!("{reason:?}: {other:?}"),
        }
    }
    // Another version gets an answer whose magic, version and verdict it can read.
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream
        .write_all(b"dravpeer\x00\x02")
        .await
        .expect("written");
    stream.write_all(&[7; 300]).await.expect("written");
    let mut answer = [0; 60];
    stream.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer[..10], b"dravpeer\x00\x01");
    assert_eq!(answer[56..], (Refusal::UnknownVersion as u32).to_be_bytes());
    assert!(one.events.try_recv().is_err(), "nobody was let in");
    // A node of no cluster yet is let in, and so is one of the same cluster.
    let stream = dial(
        address,
        Card {
            cluster_id: None,
            ..good
        },
    )
    .await
    .expect("welcome");
    assert_eq!(
        one.next_event().await,
        PeerEvent::Up {
            peer: replica(2),
            incarnation: 5
        }
    );
    // But no second process as the same broker, while the first lives.
    match dial(address, card(2, 6, 1)).await {
        Err(HandshakeError::RefusedByPeer(refusal)) => assert_eq!(refusal, Refusal::Duplicate),
        other => panic!("{other:?}"),
    }
    drop((stream, listener));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialed_peer_of_another_cluster_or_number_is_not_taken_up() {
    let (mut one, _, listener) = node_one(Duration::from_secs(1)).await;
    let (other_cluster, other_broker) = (Some(9), 3);
    for answer in [
        Card {
            cluster_id: other_cluster,
            ..card(2, 5, 0)
        },
        card(other_broker, 5, 0),
        Card {
            version: 2,
            ..card(2, 5, 0)
        },
    ] {
        let (mut stream, _) = listener.accept().await.expect("dialed");
        let mut hello = [0; 60];
        stream.read_exact(&mut hello).await.expect("a hello");
        stream.write_all(&answer.encode()).await.expect("written");
        assert!(is_closed(&mut stream).await);
    }
    assert!(one.events.try_recv().is_err(), "nobody was let in");
    let stream = accept(&listener, 5).await;
    assert!(matches!(one.next_event().await, PeerEvent::Up { .. }));
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_ends_its_own_connection_and_no_other() {
    let (one, two, peers) = pair().await;
    let address = peers[0].1;
    for garbage in [
        &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        &[0; 100],
        &[255; 100],
    ] {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(garbage).await.expect("written");
        assert!(is_closed(&mut stream).await);
    }
    let lengths = [0u32, 23, u32::MAX, (64 << 20) + 1];
    for (broker, length) in lengths.into_iter().enumerate() {
        let mut stream = dial(address, card(10 + broker as u32, 5, 1))
            .await
            .expect("welcome");
        stream
            .write_all(&length.to_be_bytes())
            .await
            .expect("written");
        stream.write_all(&[1; 40]).await.ok();
        assert!(is_closed(&mut stream).await, "length {length}");
    }
    // A frame of a type that a dialer never sends, and a heartbeat of another process.
    let mut stream = dial(address, card(20, 5, 1)).await.expect("welcome");
    stream
        .write_all(&[&[0, 0, 0, 24, 2][..], &[0; 23]].concat())
        .await
        .expect("written");
    assert!(is_closed(&mut stream).await);
    let mut stream = dial(address, card(20, 5, 1)).await.expect("welcome");
    beat(&mut stream, 6).await;
    assert!(is_closed(&mut stream).await);
    let reply = two
        .transport
        .request(1, message(KIND_ECHO, 1, "fine"), SOON)
        .await;
    assert_eq!(
        reply.expect("answered").payload,
        vec![Bytes::from_static(b"fine")]
    );
    assert!(one.transport.is_alive(2) && two.transport.is_alive(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_down_after_the_time_out_and_its_requests_fail_then() {
    let (mut one, _, listener) = node_one(Duration::from_millis(600)).await;
    let stream = accept(&listener, 5).await;
    let since = Instant::now();
    assert_eq!(
        one.next_event().await,
        PeerEvent::Up {
            peer: replica(2),
            incarnation: 5
        }
    );
    let request = one.transport.request(2, message(KIND_ECHO, 1, "x"), SOON);
    assert_eq!(
        one.next_event().await,
        PeerEvent::Down {
            broker: 2,
            peer: Some(replica(2))
        }
    );
    let took = since.elapsed();
    assert!(
        took >= Duration::from_millis(600) && took < Duration::from_secs(3),
        "{took:?}"
    );
    assert_eq!(request.await, Err(TransportError::Lost));
    assert!(!one.transport.is_alive(2));
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_in_the_peers_place_is_a_restart() {
    let (mut one, _, listener) = node_one(Duration::from_secs(5)).await;
    let first = accept(&listener, 5).await;
    assert_eq!(
        one.next_event().await,
        PeerEvent::Up {
            peer: replica(2),
            incarnation: 5
        }
    );
    drop(first);
    let mut second = accept(&listener, 6).await;
    beat(&mut second, 6).await;
    let restarted = PeerEvent::Restarted {
        peer: replica(2),
        incarnation: 6,
    };
    assert_eq!(one.next_event().await, restarted);
    timeout(SOON, async {
        while one.transport.peers()[1].sync_age_ms != 33 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the heartbeat is taken");
    assert_eq!(one.transport.peers()[1].incarnation, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_refuses_bulk_and_control_frames_overtake_it() {
    let (mut one, _, listener) = node_one(SOON).await;
    let stream = accept(&listener, 5).await;
    one.next_event().await;
    connected(&one, 2).await;
    let chunk = Bytes::from(vec![1u8; 1 << 20]);
    let mut bulk = 0;
    while one
        .transport
        .notify(2, message(KIND_ECHO, bulk, chunk.clone()))
    {
        bulk += 1;
        assert!(bulk < 1000, "the queue is bounded");
    }
    assert!(bulk as usize >= (OUTBOX_BYTES_MAX >> 20) - 1);
    let refused = one
        .transport
        .request(2, message(KIND_ECHO, 0, chunk.clone()), SOON)
        .await;
    assert_eq!(refused, Err(TransportError::Full));
    for group in 5000..5003 {
        assert!(
            one.transport
                .notify(2, message(BULK_KIND_MIN - 1, group, ""))
        );
    }
    let ready = one.transport.ready_for(2, 8 << 20);
    let mut ready = std::pin::pin!(ready);
    assert!(
        timeout(Duration::from_millis(300), ready.as_mut())
            .await
            .is_err(),
        "no room yet"
    );
    let (read, _write) = stream.into_split();
    let mut reader = FrameReader::new(read);
    let mut groups = Vec::new();
    while groups.len() < bulk as usize + 3 {
        let frame = timeout(SOON, reader.next(&|| ())).await.expect("in time");
        let frame = frame.expect("a frame").expect("no end");
        if frame.frame_type == FrameType::Notify {
            groups.push(frame.message.group);
        }
    }
    timeout(SOON, ready).await.expect("there is room");
    let (control, rest): (Vec<u64>, Vec<u64>) = groups.iter().partition(|group| **group >= 5000);
    assert_eq!(control, [5000, 5001, 5002]);
    assert!(rest.is_sorted() && rest.len() == bulk as usize);
    let last = groups
        .iter()
        .rposition(|group| *group >= 5000)
        .expect("arrived");
    assert!(
        last < groups.len() / 2,
        "control frames came after {last} others"
    );
    assert!(one.transport.notify(2, message(KIND_ECHO, 0, chunk)));
}
