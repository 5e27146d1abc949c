//! Stories with real sockets on loopback; here between two whole transports.

mod strangers;

use std::net::Ipv4Addr;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;

const KIND_ECHO: u8 = 20;
const KIND_SHUFFLE: u8 = 21;
const KIND_DROP: u8 = 22;
const KIND_KEEP: u8 = 23;
const SOON: Duration = Duration::from_secs(20);

/// A peer's application: answers by kind and notes what it sees.
struct Recorder {
    events: mpsc::UnboundedSender<PeerEvent>,
    seen: Mutex<Vec<u64>>,
    kept: Mutex<Vec<ReplySender>>,
}

impl Inbound for Recorder {
    fn on_request(&self, _from: ReplicaId, message: Message, reply: ReplySender) {
        lock(&self.seen).push(message.group);
        match message.kind {
            KIND_DROP => drop(reply),
            KIND_KEEP => lock(&self.kept).push(reply),
            KIND_SHUFFLE => {
                tokio::spawn(async move {
                    sleep(Duration::from_millis(message.group * 7 % 5)).await;
                    reply.send(message);
                });
            }
            _ => reply.send(message),
        }
    }

    fn on_peer(&self, event: PeerEvent) {
        self.events.send(event).ok();
    }
}

struct Node {
    transport: Arc<Transport>,
    recorder: Arc<Recorder>,
    events: mpsc::UnboundedReceiver<PeerEvent>,
}

impl Node {
    #[expect(clippy::disallowed_methods, reason = "a test counts few events")]
    async fn start(config: TransportConfig, listener: TcpListener) -> Node {
        let (sender, events) = mpsc::unbounded_channel();
        let (seen, kept) = (Mutex::default(), Mutex::default());
        let recorder = Arc::new(Recorder {
            events: sender,
            seen,
            kept,
        });
        let age = Arc::new(|| 7);
        let transport = Transport::start(config, listener, age, recorder.clone()).await;
        Node {
            transport: transport.expect("starts"),
            recorder,
            events,
        }
    }

    async fn next_event(&mut self) -> PeerEvent {
        let event = timeout(SOON, self.events.recv())
            .await
            .expect("an event comes");
        event.expect("the transport runs")
    }
}

fn replica(broker: u32) -> ReplicaId {
    ReplicaId {
        broker,
        directory: u128::from(broker) << 100,
    }
}

fn config(broker: u32, peers: &[(u32, SocketAddr)]) -> TransportConfig {
    TransportConfig {
        local: replica(broker),
        incarnation: 1000 + u64::from(broker),
        cluster_id: Some(1),
        peers: peers.to_vec(),
        dead_after: Duration::from_secs(1),
        heartbeat_every: Duration::from_millis(100),
    }
}

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("binds");
    let address = listener.local_addr().expect("bound");
    (listener, address)
}

/// Two nodes that are up for each other.
async fn pair() -> (Node, Node, Vec<(u32, SocketAddr)>) {
    let ((one, at_one), (two, at_two)) = (bind().await, bind().await);
    let peers = vec![(1, at_one), (2, at_two)];
    let mut one = Node::start(config(1, &peers), one).await;
    let mut two = Node::start(config(2, &peers), two).await;
    assert_eq!(
        one.next_event().await,
        PeerEvent::Up {
            peer: replica(2),
            incarnation: 1002
        }
    );
    assert_eq!(
        two.next_event().await,
        PeerEvent::Up {
            peer: replica(1),
            incarnation: 1001
        }
    );
    connected(&one, 2).await;
    connected(&two, 1).await;
    (one, two, peers)
}

async fn connected(node: &Node, to: u32) {
    timeout(SOON, async {
        while node
            .transport
            .shared
            .peer(to)
            .is_none_or(|peer| peer.outgoing.load().is_none())
        {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("connects");
}

fn message(kind: u8, group: u64, payload: impl Into<Bytes>) -> Message {
    let header = Bytes::copy_from_slice(&group.to_be_bytes());
    Message {
        kind,
        group,
        header,
        payload: vec![payload.into()],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_arrive_in_order_and_replies_find_their_requests_in_any_order() {
    let (one, two, _) = pair().await;
    let mut replies = Vec::new();
    for group in 0..20_000 {
        let kind = if group % 3 == 0 {
            KIND_SHUFFLE
        } else {
            KIND_ECHO
        };
        let payload = vec![group as u8; (group % 2000) as usize + 1];
        let request = message(kind, group, payload);
        replies.push((request.clone(), one.transport.request(2, request, SOON)));
    }
    for (request, reply) in replies {
        assert_eq!(reply.await.expect("answered"), request);
    }
    assert_eq!(*lock(&two.recorder.seen), (0..20_000).collect::<Vec<_>>());
    one.transport.shutdown().await;
    two.transport.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_senders_keep_their_own_order() {
    let (one, two, _) = pair().await;
    let mut senders = JoinSet::new();
    for sender in 0..8u64 {
        let transport = one.transport.clone();
        senders.spawn(async move {
            let mut replies = Vec::new();
            for count in 0..2_000 {
                let request = message(KIND_ECHO, sender << 32 | count, vec![1; 100]);
                replies.push(transport.request(2, request, SOON));
            }
            for reply in replies {
                reply.await.expect("answered");
            }
        });
    }
    senders.join_all().await;
    let seen = lock(&two.recorder.seen).clone();
    for sender in 0..8 {
        let own: Vec<_> = seen.iter().filter(|id| **id >> 32 == sender).collect();
        assert!(own.len() == 2_000 && own.is_sorted(), "sender {sender}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_of_many_megabytes_in_pieces_arrives_byte_for_byte() {
    let (one, two, _) = pair().await;
    let mut pieces = Vec::new();
    for (number, size) in [1, 511, 512, 513, 0, 65_536, 40_000, 21_000_000, 3]
        .iter()
        .enumerate()
    {
        let piece: Vec<u8> = (0..*size).map(|at| (at * 31 + number * 7) as u8).collect();
        pieces.push(Bytes::from(piece));
    }
    let sent = Message {
        payload: pieces.clone(),
        ..message(KIND_ECHO, 5, "")
    };
    let reply = one
        .transport
        .request(2, sent, SOON)
        .await
        .expect("answered");
    assert_eq!(reply.payload.len(), 1);
    assert!(reply.payload[0] == pieces.concat(), "bytes differ");
    assert!(one.transport.notify(2, message(KIND_ECHO, 6, "one way")));
    let barrier = one.transport.request(2, message(KIND_ECHO, 7, ""), SOON);
    assert_eq!(
        barrier.await.expect("answered").payload,
        Vec::<Bytes>::new()
    );
    assert_eq!(*lock(&two.recorder.seen), vec![5, 6, 7]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_reply_is_refused_and_a_kept_one_times_out() {
    let (one, two, _) = pair().await;
    let dropped = one
        .transport
        .request(2, message(KIND_DROP, 1, ""), SOON)
        .await;
    assert_eq!(dropped, Err(TransportError::Refused));
    let started = Instant::now();
    let kept = one
        .transport
        .request(2, message(KIND_KEEP, 2, ""), Duration::from_millis(200));
    assert_eq!(kept.await, Err(TransportError::TimedOut));
    assert!(started.elapsed() >= Duration::from_millis(200));
    let kept = one.transport.request(2, message(KIND_KEEP, 3, ""), SOON);
    sleep(Duration::from_millis(50)).await;
    two.transport.shutdown().await;
    assert_eq!(kept.await, Err(TransportError::Lost));
    assert_eq!(
        one.transport
            .request(9, message(KIND_ECHO, 4, ""), SOON)
            .await,
        Err(TransportError::Unreachable)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_alone_is_its_own_only_live_peer() {
    let (listener, address) = bind().await;
    let node = Node::start(config(1, &[(1, address)]), listener).await;
    assert!(node.transport.is_alive(1) && !node.transport.is_alive(2));
    assert_eq!(node.transport.replica_of(1), Some(replica(1)));
    let statuses = node.transport.peers();
    assert_eq!(*node.transport.watch_peers().borrow(), statuses);
    assert_eq!(statuses.len(), 1);
    assert!(statuses[0].alive && statuses[0].sync_age_ms == 7);
    node.transport.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_ends_is_down_at_once_and_restarted_it_is_up_again() {
    let (mut one, two, peers) = pair().await;
    let mut watch = one.transport.watch_peers();
    watch.mark_unchanged();
    let started = Instant::now();
    two.transport.shutdown().await;
    assert_eq!(
        one.next_event().await,
        PeerEvent::Down {
            broker: 2,
            peer: Some(replica(2))
        }
    );
    let took = started.elapsed();
    assert!(took < Duration::from_millis(600), "{took:?}");
    assert!(!one.transport.is_alive(2));
    timeout(SOON, watch.changed())
        .await
        .expect("told")
        .expect("open");
    let listener = TcpListener::bind(peers[1].1).await.expect("binds again");
    let again = TransportConfig {
        incarnation: 77,
        ..config(2, &peers)
    };
    let two = Node::start(again, listener).await;
    assert_eq!(
        one.next_event().await,
        PeerEvent::Up {
            peer: replica(2),
            incarnation: 77
        }
    );
    assert!(one.transport.is_alive(2));
    assert_eq!(one.transport.replica_of(2), Some(replica(2)));
    connected(&one, 2).await;
    let reply = one
        .transport
        .request(2, message(KIND_ECHO, 1, "x"), SOON)
        .await;
    assert!(reply.is_ok());
    two.transport.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_nobody_configured_is_heard_and_can_call() {
    let (listener, address) = bind().await;
    let mut one = Node::start(config(1, &[(1, address)]), listener).await;
    let (listener, _) = bind().await;
    let mut four = Node::start(config(4, &[(1, address)]), listener).await;
    assert_eq!(
        one.next_event().await,
        PeerEvent::Up {
            peer: replica(4),
            incarnation: 1004
        }
    );
    assert_eq!(
        four.next_event().await,
        PeerEvent::Up {
            peer: replica(1),
            incarnation: 1001
        }
    );
    connected(&four, 1).await;
    sleep(Duration::from_millis(1500)).await;
    assert!(four.events.try_recv().is_err() && four.transport.is_alive(1));
    assert!(one.events.try_recv().is_err() && one.transport.is_alive(4));
    let reply = four
        .transport
        .request(1, message(KIND_ECHO, 3, "x"), SOON)
        .await;
    assert!(reply.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_id_that_is_learnt_later_ends_connections_to_other_clusters() {
    let ((one, at_one), (two, at_two)) = (bind().await, bind().await);
    let peers = [(1, at_one), (2, at_two)];
    let unformed = TransportConfig {
        cluster_id: None,
        ..config(1, &peers)
    };
    let mut one = Node::start(unformed, one).await;
    let two = Node::start(config(2, &peers), two).await;
    one.next_event().await;
    connected(&one, 2).await;
    one.transport.set_cluster_id(2);
    assert_eq!(
        one.next_event().await,
        PeerEvent::Down {
            broker: 2,
            peer: Some(replica(2))
        }
    );
    let refused = one
        .transport
        .request(2, message(KIND_ECHO, 1, ""), SOON)
        .await;
    assert_eq!(refused, Err(TransportError::Unreachable));
    drop(two);
}

#[test]
fn nodes_that_were_stalled_together_do_not_take_each_other_for_dead() {
    let listeners: Vec<_> = (0..2)
        .map(|_| {
            let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
            listener.set_nonblocking(true).expect("a socket");
            listener
        })
        .collect();
    let addresses = listeners
        .iter()
        .map(|listener| listener.local_addr().expect("bound"));
    let peers: Vec<_> = (1..).zip(addresses).collect();
    let both = std::sync::Barrier::new(2);
    // The first wakes well before the second and finds that it was silent for too long.
    let stalls = [2000, 2200].map(Duration::from_millis);
    std::thread::scope(|threads| {
        for ((broker, listener), stall) in (1..).zip(listeners).zip(stalls) {
            let (peers, both) = (&peers, &both);
            threads.spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let listener = TcpListener::from_std(listener).expect("a listener");
                    let dead_after = Duration::from_millis(1600);
                    let config = TransportConfig {
                        dead_after,
                        ..config(broker, peers)
                    };
                    let mut node = Node::start(config, listener).await;
                    let up = timeout(SOON, node.events.recv()).await;
                    sleep(Duration::from_millis(500)).await;
                    both.wait();
                    std::thread::sleep(stall);
                    sleep(Duration::from_millis(1000)).await;
                    let alarm = node.events.try_recv().ok();
                    both.wait();
                    assert!(matches!(up, Ok(Some(PeerEvent::Up { .. }))));
                    assert_eq!(alarm, None);
                });
            });
        }
    });
}
