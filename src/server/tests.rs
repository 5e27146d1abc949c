//! The server with real sockets and a dispatcher that knows no broker.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::ApiKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::*;

const PRODUCE: i16 = ApiKey::Produce as i16;
const METADATA: i16 = ApiKey::Metadata as i16;

/// Answers with the request's body. Produce requests wait for `gate`.
struct Echo {
    gate: Arc<Semaphore>,
    begun: AtomicUsize,
    order: Mutex<Vec<i32>>,
    served: Mutex<Vec<Served>>,
}

impl Dispatch for Arc<Echo> {
    fn dispatch(&self, _: &Arc<Connection>, request: Request) -> Pending {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let correlation_id = request.header.correlation_id;
        self.order.lock().unwrap().push(correlation_id);
        let gate = self.gate.clone();
        let is_produce = request.header.api_key == PRODUCE;
        Box::pin(async move {
            if is_produce {
                gate.acquire().await.unwrap().forget();
            }
            if &request.body[..] == b"close" {
                return Err(CloseConnection::because("as asked"));
            }
            if &request.body[..] == b"panic" {
                panic!("as asked");
            }
            if &request.body[..] == b"silent" {
                return Ok(None);
            }
            let head = Bytes::copy_from_slice(&correlation_id.to_be_bytes());
            Ok(Some(Response {
                chunks: vec![head, request.body],
            }))
        })
    }

    fn served(&self, served: &Served) {
        self.served.lock().unwrap().push(*served);
    }
}

fn options() -> Options {
    Options {
        request_bytes_max: 1 << 20,
        in_flight_bytes_max: 4 << 20,
        connections_max: 3,
        connections_per_address_max: 3,
        idle: Duration::from_secs(60),
        pace: Pace::default(),
    }
}

async fn start(options: Options) -> (Server, Arc<Echo>) {
    let echo = Arc::new(Echo {
        gate: Arc::new(Semaphore::new(0)),
        begun: AtomicUsize::new(0),
        order: Mutex::new(Vec::new()),
        served: Mutex::new(Vec::new()),
    });
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    (
        Server::start(listener, Arc::new(echo.clone()), options).unwrap(),
        echo,
    )
}

fn frame(api_key: i16, correlation_id: i32, body: &[u8]) -> Vec<u8> {
    let mut frame = BytesMut::new();
    frame.put_i32(10 + body.len() as i32);
    frame.put_i16(api_key);
    frame.put_i16(3);
    frame.put_i32(correlation_id);
    frame.put_i16(-1);
    frame.put_slice(body);
    frame.to_vec()
}

async fn reply(stream: &mut TcpStream) -> (i32, Vec<u8>) {
    let bytes = stream.read_i32().await.unwrap();
    let correlation_id = stream.read_i32().await.unwrap();
    let mut body = vec![0; bytes as usize - 4];
    stream.read_exact(&mut body).await.unwrap();
    (correlation_id, body)
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte))
        .await
        .unwrap();
    !matches!(read, Ok(1))
}

async fn until(condition: impl Fn() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the condition did not come true");
}

#[tokio::test]
async fn what_a_request_weighs_and_takes_is_told_once_it_is_complete() {
    let (server, echo) = start(options()).await;
    let budget = server.budget();
    let mut client = TcpStream::connect(server.address()).await.unwrap();
    let (produce, close) = (frame(PRODUCE, 1, b"records"), frame(METADATA, 2, b"close"));
    client.write_all(&produce).await.unwrap();
    until(|| echo.begun.load(Ordering::SeqCst) == 1).await;
    assert_eq!(budget.in_use(), produce.len() - 4);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(echo.served.lock().unwrap().is_empty());
    echo.gate.add_permits(1);
    assert_eq!(reply(&mut client).await, (1, b"records".to_vec()));
    client.write_all(&close).await.unwrap();
    assert!(is_closed(&mut client).await);
    until(|| budget.in_use() == 0).await;

    let served = echo.served.lock().unwrap().clone();
    let weighed: Vec<_> = (served.iter())
        .map(|served| (served.api_key, served.request_bytes, served.response_bytes))
        .collect();
    assert_eq!(
        weighed,
        [
            (PRODUCE, produce.len(), 4 + 4 + b"records".len()),
            (METADATA, close.len(), 0)
        ]
    );
    assert!(served[0].took >= Duration::from_millis(20));
    server.stop().await;
}

#[tokio::test]
async fn produce_requests_overlap_and_are_answered_in_order() {
    let (server, echo) = start(options()).await;
    let mut client = TcpStream::connect(server.address()).await.unwrap();
    let mut burst = Vec::new();
    for id in 0..5 {
        burst.extend(frame(PRODUCE, id, b"records"));
    }
    burst.extend(frame(METADATA, 5, b"topics"));
    burst.extend(frame(PRODUCE, 6, b"records"));
    client.write_all(&burst).await.unwrap();
    until(|| echo.begun.load(Ordering::SeqCst) == 5).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(
        echo.begun.load(Ordering::SeqCst),
        5,
        "another request waits for the produce requests"
    );
    echo.gate.add_permits(6);
    for id in 0..7 {
        assert_eq!(reply(&mut client).await.0, id);
    }
    assert_eq!(*echo.order.lock().unwrap(), [0, 1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn no_more_than_the_bound_of_requests_begin() {
    let (server, echo) = start(options()).await;
    let mut client = TcpStream::connect(server.address()).await.unwrap();
    let burst: Vec<u8> = (0..100)
        .flat_map(|id| frame(PRODUCE, id, b"records"))
        .collect();
    client.write_all(&burst).await.unwrap();
    let bound = crate::limits::CONNECTION_REQUESTS_BEGUN_MAX;
    until(|| echo.begun.load(Ordering::SeqCst) == bound).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(echo.begun.load(Ordering::SeqCst), bound);
    echo.gate.add_permits(100);
    for id in 0..100 {
        assert_eq!(reply(&mut client).await.0, id);
    }
}

#[tokio::test]
async fn a_request_without_reply_is_not_answered() {
    let (server, _) = start(options()).await;
    let mut client = TcpStream::connect(server.address()).await.unwrap();
    client
        .write_all(&frame(METADATA, 1, b"silent"))
        .await
        .unwrap();
    client.write_all(&frame(METADATA, 2, b"x")).await.unwrap();
    assert_eq!(reply(&mut client).await, (2, b"x".to_vec()));
}

#[tokio::test]
async fn a_large_request_comes_through_whole() {
    let mut options = options();
    options.request_bytes_max = 8 << 20;
    let (server, _) = start(options).await;
    let client = TcpStream::connect(server.address()).await.unwrap();
    let body: Vec<u8> = (0..6_000_000u32)
        .map(|index| ((index * 31) >> 3) as u8)
        .collect();
    let request = frame(METADATA, 9, &body);
    let (mut read, mut write) = client.into_split();
    let sending = tokio::spawn(async move { write.write_all(&request).await.map(|()| write) });
    let mut reply = vec![0; 8 + body.len()];
    read.read_exact(&mut reply).await.unwrap();
    assert!(reply[8..] == body, "the body comes back as it was sent");
    sending.await.unwrap().unwrap();
}

#[tokio::test]
async fn bad_frames_close_their_own_connection_only() {
    let (server, _) = start(options()).await;
    let mut bystander = TcpStream::connect(server.address()).await.unwrap();
    let unknown_api = frame(999, 1, b"");
    let mut unknown_version = frame(METADATA, 1, b"");
    unknown_version[6..8].copy_from_slice(&99i16.to_be_bytes());
    let old_produce = {
        let mut old = frame(PRODUCE, 1, b"");
        old[6..8].copy_from_slice(&2i16.to_be_bytes());
        old
    };
    let bad: [&[u8]; 9] = [
        &i32::MAX.to_be_bytes(),
        &((1 << 20) + 1i32).to_be_bytes(),
        &(-1i32).to_be_bytes(),
        b"GET / HTTP/1.1\r\n\r\n",
        &[0, 0, 0, 3, 1, 2, 3],
        &[0, 0, 0, 10, 0, 3, 0, 3, 0, 0, 0, 1, 0x7f, 0xff],
        &unknown_api,
        &unknown_version,
        &old_produce,
    ];
    for bytes in bad {
        let mut client = TcpStream::connect(server.address()).await.unwrap();
        client.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut client).await, "{bytes:?}");
        bystander
            .write_all(&frame(METADATA, 7, b"still here"))
            .await
            .unwrap();
        assert_eq!(reply(&mut bystander).await.0, 7);
    }
}

#[tokio::test]
async fn a_closing_or_panicking_handler_ends_its_own_connection_only() {
    let (server, _) = start(options()).await;
    let mut bystander = TcpStream::connect(server.address()).await.unwrap();
    for end in ["close", "panic"] {
        let mut client = TcpStream::connect(server.address()).await.unwrap();
        client
            .write_all(&frame(METADATA, 1, b"before"))
            .await
            .unwrap();
        client
            .write_all(&frame(METADATA, 2, end.as_bytes()))
            .await
            .unwrap();
        assert_eq!(reply(&mut client).await.0, 1);
        assert!(is_closed(&mut client).await);
        bystander
            .write_all(&frame(METADATA, 7, b"x"))
            .await
            .unwrap();
        assert_eq!(reply(&mut bystander).await.0, 7);
    }
}

#[tokio::test]
async fn a_half_sent_frame_blocks_nobody_else() {
    let (server, _) = start(options()).await;
    let mut slow = TcpStream::connect(server.address()).await.unwrap();
    let request = frame(METADATA, 1, &[7; 50_000]);
    slow.write_all(&request[..20_000]).await.unwrap();
    let mut other = TcpStream::connect(server.address()).await.unwrap();
    other.write_all(&frame(METADATA, 2, b"x")).await.unwrap();
    assert_eq!(reply(&mut other).await.0, 2);
    slow.write_all(&request[20_000..]).await.unwrap();
    assert_eq!(reply(&mut slow).await, (1, vec![7; 50_000]));
}

#[tokio::test]
async fn sockets_are_not_read_while_the_byte_budget_is_in_use() {
    let mut options = options();
    options.in_flight_bytes_max = 1 << 20;
    let (server, echo) = start(options).await;
    let body = vec![1; 900_000];
    let mut first = TcpStream::connect(server.address()).await.unwrap();
    first.write_all(&frame(PRODUCE, 1, &body)).await.unwrap();
    until(|| echo.begun.load(Ordering::SeqCst) == 1).await;
    let mut second = TcpStream::connect(server.address()).await.unwrap();
    let request = frame(PRODUCE, 2, &body);
    let sending = tokio::spawn(async move { second.write_all(&request).await.map(|()| second) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        echo.begun.load(Ordering::SeqCst),
        1,
        "the second request finds no room"
    );
    echo.gate.add_permits(2);
    assert_eq!(reply(&mut first).await.0, 1);
    let mut second = sending.await.unwrap().unwrap();
    assert_eq!(reply(&mut second).await.0, 2);
}

#[tokio::test]
async fn a_client_that_reads_no_replies_holds_up_its_own_requests_only() {
    let mut options = options();
    options.in_flight_bytes_max = 256 << 20;
    let (server, echo) = start(options).await;
    let client = TcpStream::connect(server.address()).await.unwrap();
    let (mut read, mut write) = client.into_split();
    let request = frame(METADATA, 1, &[7; 500_000]);
    let sending = tokio::spawn(async move {
        for _ in 0..150 {
            write.write_all(&request).await.unwrap();
        }
        write
    });
    let settled = || async {
        loop {
            let before = echo.begun.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            if echo.begun.load(Ordering::SeqCst) == before {
                return before;
            }
        }
    };
    let begun = settled().await;
    assert!(
        begun < 100,
        "{begun} requests began, and none of their replies was read"
    );
    let mut other = TcpStream::connect(server.address()).await.unwrap();
    other.write_all(&frame(METADATA, 2, b"x")).await.unwrap();
    assert_eq!(reply(&mut other).await.0, 2);
    let mut replies = vec![0; 500_008];
    for _ in 0..150 {
        read.read_exact(&mut replies).await.unwrap();
    }
    sending.await.unwrap();
}

#[tokio::test]
async fn connections_above_the_bound_are_refused_and_free_places_are_taken() {
    let (server, _) = start(options()).await;
    let mut clients = Vec::new();
    for id in 0..3 {
        let mut client = TcpStream::connect(server.address()).await.unwrap();
        client.write_all(&frame(METADATA, id, b"")).await.unwrap();
        reply(&mut client).await;
        clients.push(client);
    }
    let mut refused = TcpStream::connect(server.address()).await.unwrap();
    assert!(is_closed(&mut refused).await);
    drop(clients);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut client = TcpStream::connect(server.address()).await.unwrap();
    client.write_all(&frame(METADATA, 9, b"")).await.unwrap();
    assert_eq!(reply(&mut client).await.0, 9);
}

#[tokio::test]
async fn connections_above_the_bound_of_their_address_are_refused() {
    let mut options = options();
    options.connections_per_address_max = 1;
    let (server, _) = start(options).await;
    let mut first = TcpStream::connect(server.address()).await.unwrap();
    first.write_all(&frame(METADATA, 1, b"")).await.unwrap();
    reply(&mut first).await;
    let mut refused = TcpStream::connect(server.address()).await.unwrap();
    assert!(is_closed(&mut refused).await);
    drop(first);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut next = TcpStream::connect(server.address()).await.unwrap();
    next.write_all(&frame(METADATA, 2, b"")).await.unwrap();
    assert_eq!(reply(&mut next).await.0, 2);
}

#[tokio::test]
async fn half_sent_frames_hold_no_more_of_the_budget_than_they_have_sent() {
    let mut options = options();
    options.connections_max = 100;
    options.connections_per_address_max = 100;
    let (server, _) = start(options).await;
    let mut slow = Vec::new();
    for _ in 0..50 {
        let mut client = TcpStream::connect(server.address()).await.unwrap();
        let request = frame(METADATA, 1, &[7; 900_000]);
        client.write_all(&request[..20_000]).await.unwrap();
        slow.push(client);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut other = TcpStream::connect(server.address()).await.unwrap();
    let body = vec![1; 900_000];
    other.write_all(&frame(METADATA, 2, &body)).await.unwrap();
    let replied = tokio::time::timeout(Duration::from_secs(1), reply(&mut other)).await;
    assert_eq!(replied.expect("there is room for it").0, 2);
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_is_closed_and_a_steady_one_is_not() {
    let mut options = options();
    options.pace = Pace {
        window: Duration::from_millis(400),
        bytes_min: 1_000,
        whole: Duration::from_secs(20),
    };
    let (server, _) = start(options).await;
    let request = frame(METADATA, 1, &[7; 50_000]);
    let mut still = TcpStream::connect(server.address()).await.unwrap();
    still.write_all(&request[..20_000]).await.unwrap();
    let mut length_only = TcpStream::connect(server.address()).await.unwrap();
    length_only.write_all(&request[..2]).await.unwrap();
    let mut steady = TcpStream::connect(server.address()).await.unwrap();
    for part in request.chunks(5_000) {
        steady.write_all(part).await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(reply(&mut steady).await.0, 1);
    assert!(is_closed(&mut still).await);
    assert!(is_closed(&mut length_only).await);
}

#[tokio::test]
async fn an_idle_connection_is_closed_but_not_one_that_awaits_its_reply() {
    let mut options = options();
    options.idle = Duration::from_millis(100);
    let (server, echo) = start(options).await;
    let mut idle = TcpStream::connect(server.address()).await.unwrap();
    let mut waiting = TcpStream::connect(server.address()).await.unwrap();
    waiting.write_all(&frame(PRODUCE, 1, b"")).await.unwrap();
    assert!(is_closed(&mut idle).await);
    tokio::time::sleep(Duration::from_millis(200)).await;
    echo.gate.add_permits(1);
    assert_eq!(reply(&mut waiting).await.0, 1);
}

#[tokio::test]
async fn stopping_answers_what_was_read_and_accepts_no_more() {
    let (server, echo) = start(options()).await;
    let address = server.address();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&frame(PRODUCE, 1, b"x")).await.unwrap();
    until(|| echo.begun.load(Ordering::SeqCst) == 1).await;
    let stopping = tokio::spawn(server.stop());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(address).await.is_err());
    echo.gate.add_permits(1);
    assert_eq!(reply(&mut client).await.0, 1);
    assert!(is_closed(&mut client).await);
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_said_clearly() {
    let (server, _) = start(options()).await;
    let error = bind(server.address()).await.unwrap_err().to_string();
    assert!(
        error.contains(&server.address().to_string()) && error.contains("in use"),
        "{error}"
    );
}
