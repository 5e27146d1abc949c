//! Every bound of the broker, with assertions between those that depend on
//! each other. Bounds that an operator may move are in `config`.

/// The largest request frame accepted, as Kafka's `socket.request.max.bytes`.
pub const REQUEST_BYTES_MAX: usize = 100 * MIB;
/// The largest frame of a request that carries no records.
pub const CONTROL_REQUEST_BYTES_MAX: usize = 16 * MIB;
/// The most array elements and tagged fields in one request: what decoding
/// allocates per element is bounded, so this bounds what a request allocates.
pub const REQUEST_ELEMENTS_MAX: usize = 1 << 19;
/// Bytes of all requests that are read and not yet answered; sockets are not
/// read while they are in use.
pub const REQUESTS_IN_FLIGHT_BYTES_MAX: usize = 512 * MIB;
/// Requests read and not yet answered on one connection.
pub const CONNECTION_REQUESTS_IN_FLIGHT_MAX: usize = 64;
/// Replies' bytes waiting for one connection's client to read them; requests
/// are not read while there are more.
pub const CONNECTION_REPLY_BYTES_MAX: usize = 64 * MIB;
/// Client connections of one broker.
pub const CONNECTIONS_MAX: usize = 20_000;
/// How much of a frame is allocated before its bytes arrive.
pub const READ_AHEAD_BYTES: usize = 64 * KIB;
/// Frames up to this size share a read buffer; larger ones get an allocation of their own.
pub const FRAME_SHARED_BYTES_MAX: usize = 16 * KIB;
/// Byte strings up to this size are copied into a reply rather than passed as a chunk.
pub const WRITE_COPY_BYTES_MAX: usize = 128;
/// The most chunks handed to one vectored write.
pub const WRITE_CHUNKS_MAX: usize = 256;
/// The largest record bytes of one Fetch reply.
pub const FETCH_BYTES_MAX: usize = 55 * MIB;
/// A client that reads nothing of a waiting reply for this long is disconnected.
pub const WRITE_STALLED_MS_MAX: u64 = 60_000;
/// A connection without a request for this long is closed, as Kafka's `connections.max.idle.ms`.
pub const CONNECTION_IDLE_MS_MAX: u64 = 600_000;
/// How long a frame may take to arrive once its first byte has.
pub const FRAME_READ_MS_MAX: u64 = 120_000;
/// How long a stopping server waits for the requests in flight.
pub const DRAIN_MS_MAX: u64 = 5_000;
/// The largest record batch accepted by default, as Kafka's `message.max.bytes`.
pub const MESSAGE_BYTES_MAX_DEFAULT: usize = 1_048_588;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const _: () = assert!(REQUEST_BYTES_MAX <= REQUESTS_IN_FLIGHT_BYTES_MAX);
const _: () = assert!(REQUESTS_IN_FLIGHT_BYTES_MAX <= u32::MAX as usize);
const _: () = assert!(CONTROL_REQUEST_BYTES_MAX <= REQUEST_BYTES_MAX);
const _: () = assert!(FETCH_BYTES_MAX <= CONNECTION_REPLY_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX_DEFAULT <= FETCH_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX_DEFAULT <= REQUEST_BYTES_MAX);
const _: () = assert!(FRAME_SHARED_BYTES_MAX <= READ_AHEAD_BYTES);
