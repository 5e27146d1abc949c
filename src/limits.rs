//! Every bound of the broker, with assertions between those that depend on
//! each other. Bounds that an operator may move are defaults here, or in `config`.

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// The most array elements and tagged fields in one request. What decoding
/// allocates for one is bounded, so this bounds what a request allocates.
pub const REQUEST_ELEMENTS_MAX: usize = 1 << 19;
/// How much room a frame's buffer has at first; it doubles as bytes arrive.
pub const FRAME_STEP_BYTES: usize = 2 * MIB;
/// What a frame is charged for before its bytes have arrived: as much as has
/// arrived, but no less than this.
pub const FRAME_CHARGE_BYTES_MIN: usize = 16 * KIB;
/// The same, and no more than this.
pub const FRAME_CHARGE_BYTES_MAX: usize = 256 * KIB;
/// Requests that are being read and find no room may be waiting for each
/// other: after this long, one at a time goes on without.
pub const BUDGET_WAIT_MS_MAX: u64 = 2_000;
/// What is read from a socket when no frame is under way.
pub const SCRATCH_BYTES: usize = 4 * KIB;
/// The same, of a connection that fills it.
pub const SCRATCH_BUSY_BYTES: usize = 16 * KIB;
/// Requests of one connection that have begun and are not yet answered.
pub const CONNECTION_REQUESTS_BEGUN_MAX: usize = 32;
/// Requests of one connection that are read and have not begun.
pub const CONNECTION_REQUESTS_QUEUED_MAX: usize = 32;
/// Replies' bytes waiting for a client to read them: while there are more, no
/// further request of its begins.
pub const CONNECTION_REPLY_BYTES_MAX: usize = 4 * MIB;
/// Byte strings up to this size are copied into a reply rather than passed as a chunk.
pub const WRITE_COPY_BYTES_MAX: usize = 128;
/// The most chunks handed to one vectored write.
pub const WRITE_CHUNKS_MAX: usize = 64;
/// The largest record bytes of one Fetch reply, as Kafka's `fetch.max.bytes`.
pub const FETCH_BYTES_MAX: usize = 55 * MIB;
/// Record bytes of all Fetch replies that are not sent yet.
pub const FETCH_HELD_BYTES_MAX: usize = 256 * MIB;
/// A client that reads nothing of a waiting reply for this long is disconnected.
pub const WRITE_STALLED_MS_MAX: u64 = 60_000;
/// How long a frame may take to arrive once it has begun, besides the time for its size.
pub const FRAME_READ_MS_MAX: u64 = 60_000;
/// In every such time, some of a frame has to arrive.
pub const FRAME_WINDOW_MS: u64 = 10_000;
/// How much of it, unless less is left.
pub const FRAME_PROGRESS_BYTES_MIN: usize = 64 * KIB;
/// The slowest rate at which a large frame may arrive.
pub const FRAME_BYTES_PER_MS_MIN: usize = 256;
/// How long a stopping server waits for the requests in flight.
pub const DRAIN_MS_MAX: u64 = 5_000;
/// How long the listener rests after the system has refused it a connection (no file descriptors left).
pub const ACCEPT_RETRY_MS: u64 = 100;
/// The largest record batch accepted by default, as Kafka's `message.max.bytes`.
pub const MESSAGE_BYTES_MAX_DEFAULT: usize = 1_048_588;

const _: () = assert!(MESSAGE_BYTES_MAX_DEFAULT <= FETCH_BYTES_MAX);
const _: () = assert!(MESSAGE_BYTES_MAX_DEFAULT < FRAME_STEP_BYTES);
const _: () = assert!(FETCH_BYTES_MAX <= i32::MAX as usize);
const _: () = assert!(FETCH_BYTES_MAX <= FETCH_HELD_BYTES_MAX);
const _: () =
    assert!(SCRATCH_BYTES <= SCRATCH_BUSY_BYTES && SCRATCH_BUSY_BYTES <= FRAME_STEP_BYTES);
const _: () = assert!(FRAME_CHARGE_BYTES_MIN <= FRAME_CHARGE_BYTES_MAX);
const _: () = assert!(FRAME_CHARGE_BYTES_MAX <= FRAME_STEP_BYTES);
const _: () = assert!(SCRATCH_BUSY_BYTES <= FRAME_CHARGE_BYTES_MIN);
const _: () = assert!(FRAME_WINDOW_MS <= FRAME_READ_MS_MAX);
const _: () = assert!(WRITE_COPY_BYTES_MAX < SCRATCH_BYTES);
