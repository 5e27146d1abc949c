//! Appending to a partition: what waits for the same partition goes into one
//! Raft entry.
//!
//! Owned by the partition. A task exists only while there is work. It keeps a
//! few entries in flight, so that one is replicated and synced while the next
//! is gathered; replies leave in the order of the appends. A batch that waits
//! alone goes at once and is not copied.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use drave_raft::{Group, PendingProposal, ProposeError, Proposed};
use tokio::sync::{Notify, oneshot};

use super::command;
use super::machine::{Appended, BatchOutcome};
use super::producers::Refusal;

/// Bytes that go into one entry, unless one batch alone is larger.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// With fewer entries in flight, whatever waits goes at once.
pub const IN_FLIGHT_PROMPT: usize = 2;
/// The same while many partitions are written to: they keep the disk and the
/// peers busy together, and one larger entry costs less than two.
pub const IN_FLIGHT_PROMPT_MANY: usize = 1;
/// So many partitions with entries in flight are many.
pub const BUSY_MANY: usize = 64;
/// With more in flight, an entry is sent only once it has this many bytes.
pub const ENTRY_BYTES_FULL: usize = 256 << 10;
/// Entries in flight at most.
pub const IN_FLIGHT_MAX: usize = 8;
/// A batch up to this size is copied out of its request even when it is alone.
pub const COPIED_BYTES_MAX: usize = 4 << 10;
/// Bytes that may wait for one partition.
pub const WAITING_BYTES_MAX: usize = 64 << 20;

const _: () = assert!(IN_FLIGHT_PROMPT <= IN_FLIGHT_MAX && ENTRY_BYTES_FULL <= ENTRY_BYTES_MAX);

/// A batch that is committed on a durable quorum, and has its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendedBatch {
    /// The offset of its first record.
    pub base_offset: i64,
    /// It had been appended before; this was its latest timestamp then.
    pub duplicate_of: Option<i64>,
    /// The first offset that can be read.
    pub log_start_offset: i64,
}

/// Why a batch was not, or may not have been, appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// This replica does not lead, or lost the lead meanwhile.
    #[error("this replica does not lead the partition")]
    NotLeader,
    /// No quorum answered; it may still be appended later.
    #[error("no quorum answered in time")]
    TimedOut,
    /// Too many bytes wait for this partition already.
    #[error("too many bytes wait for the partition")]
    Overloaded,
    /// The partition's producers say no.
    #[error("refused: {0:?}")]
    Refused(Refusal),
}

/// The outcome of an append.
pub type AppendResult = Result<AppendedBatch, AppendError>;

struct Waiting {
    batch: Bytes,
    /// `None`: nobody wants to know.
    reply: Option<oneshot::Sender<AppendResult>>,
}

impl Waiting {
    fn abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    fn answer(self, result: AppendResult) {
        if let Some(reply) = self.reply {
            // Whoever asked may be gone by now.
            reply.send(result).ok();
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    bytes: usize,
    in_flight: usize,
    running: bool,
}

impl Queue {
    fn may_send(&self, in_flight_prompt: usize) -> bool {
        !self.waiting.is_empty()
            && (self.in_flight < in_flight_prompt
                || (self.in_flight < IN_FLIGHT_MAX && self.bytes >= ENTRY_BYTES_FULL))
    }
}

/// The appends of one partition.
pub struct Appender {
    group: Group,
    queue: Mutex<Queue>,
    arrived: Notify,
    /// Partitions of this broker with entries in flight.
    busy: Arc<AtomicUsize>,
}

enum Next {
    Send(Vec<Waiting>),
    Wait,
    Done,
}

struct InFlight {
    proposal: PendingProposal,
    batches: Vec<Waiting>,
}

impl Appender {
    /// Appends to `group`; `busy` counts the broker's appenders at work.
    pub fn new(group: Group, busy: Arc<AtomicUsize>) -> Arc<Appender> {
        Arc::new(Appender {
            group,
            busy,
            queue: Mutex::new(Queue::default()),
            arrived: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_flight_prompt(&self) -> usize {
        if self.busy.load(Ordering::Relaxed) < BUSY_MANY {
            IN_FLIGHT_PROMPT
        } else {
            IN_FLIGHT_PROMPT_MANY
        }
    }

    /// Queues one validated batch. Batches are appended in the order of these
    /// calls. Must be called within the runtime.
    pub fn push(
        self: &Arc<Self>,
        batch: Bytes,
        reply: Option<oneshot::Sender<AppendResult>>,
    ) -> Result<(), AppendError> {
        let mut queue = self.lock();
        if queue.bytes + batch.len() > WAITING_BYTES_MAX {
            return Err(AppendError::Overloaded);
        }
        queue.bytes += batch.len();
        queue.waiting.push_back(Waiting { batch, reply });
        if !queue.running {
            queue.running = true;
            drop(queue);
            self.busy.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(Arc::clone(self).run());
        } else if queue.may_send(self.in_flight_prompt()) {
            drop(queue);
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Fails whatever waits.
    pub fn fail_waiting(&self, error: AppendError) {
        let mut queue = self.lock();
        queue.bytes = 0;
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        for waiting in waiting {
            waiting.answer(Err(error));
        }
    }

    async fn run(self: Arc<Self>) {
        let mut in_flight: VecDeque<InFlight> = VecDeque::new();
        loop {
            match self.next(in_flight.len()) {
                Next::Send(batches) => match self.group.submit(entry_of(&batches)).await {
                    Ok(proposal) => in_flight.push_back(InFlight { proposal, batches }),
                    Err(error) => self.fail(batches, &error),
                },
                Next::Wait => {
                    let Some(oldest) = in_flight.front_mut() else {
                        continue;
                    };
                    tokio::select! {
                        biased;
                        outcome = &mut oldest.proposal => {
                            if let Some(oldest) = in_flight.pop_front() {
                                self.complete(oldest.batches, outcome);
                            }
                        }
                        () = self.arrived.notified() => {}
                    }
                }
                Next::Done => {
                    self.busy.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
            }
        }
    }

    fn next(&self, in_flight: usize) -> Next {
        let mut queue = self.lock();
        queue.in_flight = in_flight;
        if !queue.may_send(self.in_flight_prompt()) {
            if in_flight > 0 {
                return Next::Wait;
            }
            queue.running = false;
            return Next::Done;
        }
        let mut batches = Vec::new();
        let mut bytes = 0;
        while let Some(first) = queue.waiting.front() {
            if !batches.is_empty() && bytes + first.batch.len() > ENTRY_BYTES_MAX {
                break;
            }
            let Some(first) = queue.waiting.pop_front() else {
                break;
            };
            queue.bytes -= first.batch.len();
            if !first.abandoned() {
                bytes += first.batch.len();
                batches.push(first);
            }
        }
        drop(queue);
        if batches.is_empty() {
            self.next(in_flight)
        } else {
            Next::Send(batches)
        }
    }

    fn complete(&self, batches: Vec<Waiting>, outcome: Result<Proposed, ProposeError>) {
        let proposed = match outcome {
            Ok(proposed) => proposed,
            Err(error) => return self.fail(batches, &error),
        };
        let Ok(appended) = proposed.reply.downcast::<Appended>() else {
            return self.fail(batches, &ProposeError::Unknown);
        };
        let mut outcomes = appended.outcomes.iter();
        for batch in batches {
            let result = match outcomes.next() {
                Some(BatchOutcome::Appended { base_offset }) => Ok((*base_offset, None)),
                Some(BatchOutcome::Duplicate {
                    base_offset,
                    timestamp,
                }) => Ok((*base_offset, Some(*timestamp))),
                Some(BatchOutcome::Refused(refusal)) => Err(AppendError::Refused(*refusal)),
                None => Err(AppendError::Refused(Refusal::Malformed)),
            };
            let log_start_offset = appended.log_start_offset;
            batch.answer(result.map(|(base_offset, duplicate_of)| AppendedBatch {
                base_offset,
                duplicate_of,
                log_start_offset,
            }));
        }
    }

    /// Fails these and, as they were to follow them, all that wait.
    fn fail(&self, batches: Vec<Waiting>, error: &ProposeError) {
        let error = match error {
            ProposeError::NotLeader { .. } | ProposeError::Closed => AppendError::NotLeader,
            // Without a quorum; whether it was written shows at the next leader.
            ProposeError::Unknown if self.group.ready_term().is_none() => AppendError::NotLeader,
            ProposeError::Unknown => AppendError::TimedOut,
        };
        for batch in batches {
            batch.answer(Err(error));
        }
        self.fail_waiting(error);
    }
}

fn entry_of(batches: &[Waiting]) -> drave_raft::Command {
    let payload = match batches {
        // A slice keeps all of its request in memory for as long as it is cached.
        [only] if only.batch.len() <= COPIED_BYTES_MAX => Bytes::copy_from_slice(&only.batch),
        [only] => only.batch.clone(),
        several => {
            let bytes = several.iter().map(|waiting| waiting.batch.len()).sum();
            let mut payload = BytesMut::with_capacity(bytes);
            for waiting in several {
                payload.extend_from_slice(&waiting.batch);
            }
            payload.freeze()
        }
    };
    command::append(now_ms(), payload)
}

/// This broker's clock, milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
