//! Requests that wait for replies on one connection, and their time-outs.
//!
//! One timer per connection, in steps of [`TICK`], serves all its requests; it
//! sleeps while none waits. Everything still waiting when the connection ends
//! resolves as unreachable.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::{Message, TransportError, lock};

const TICK: Duration = Duration::from_millis(10);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);
/// Requests that may wait for replies of one peer.
const WAITING_MAX: usize = 1 << 20;
const NEVER: u64 = u64::MAX;

/// Where a reply is awaited.
pub(crate) type ReplyReceiver = oneshot::Receiver<Result<Message, TransportError>>;
type Waiter = oneshot::Sender<Result<Message, TransportError>>;

struct Table {
    next_id: u64,
    waiting: HashMap<u64, Waiter>,
    deadlines: BTreeMap<u64, Vec<u64>>,
    /// The tick that the timer sleeps for.
    armed: u64,
    closed: bool,
}

/// The waiting requests of one connection.
pub(crate) struct Pending {
    started: Instant,
    table: Mutex<Table>,
    rearm: Notify,
}

impl Pending {
    pub(crate) fn new() -> Pending {
        let table = Table {
            next_id: 1,
            waiting: HashMap::new(),
            deadlines: BTreeMap::new(),
            armed: NEVER,
            closed: false,
        };
        Pending {
            started: Instant::now(),
            table: Mutex::new(table),
            rearm: Notify::new(),
        }
    }

    /// Adds a request and gives it its id.
    pub(crate) fn add(&self, timeout: Duration) -> Result<(u64, ReplyReceiver), TransportError> {
        let due = self.started.elapsed() + timeout.min(TIMEOUT_MAX);
        let tick = due.as_micros().div_ceil(TICK.as_micros()) as u64;
        let (sender, receiver) = oneshot::channel();
        let mut table = lock(&self.table);
        if table.closed {
            return Err(TransportError::Unreachable);
        }
        if table.waiting.len() >= WAITING_MAX {
            return Err(TransportError::Full);
        }
        let id = table.next_id;
        table.next_id += 1;
        table.waiting.insert(id, sender);
        table.deadlines.entry(tick).or_default().push(id);
        if tick < table.armed {
            table.armed = tick;
            self.rearm.notify_one();
        }
        Ok((id, receiver))
    }

    /// Resolves a request; one that is no longer waited for is ignored.
    pub(crate) fn resolve(&self, id: u64, result: Result<Message, TransportError>) {
        let waiter = lock(&self.table).waiting.remove(&id);
        if let Some(waiter) = waiter {
            // The requester may have lost interest.
            waiter.send(result).ok();
        }
    }

    /// Resolves all that still wait as lost, and every later one as unreachable.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut table = lock(&self.table);
            table.closed = true;
            table.deadlines.clear();
            std::mem::take(&mut table.waiting)
        };
        for (_, waiter) in waiting {
            waiter.send(Err(TransportError::Lost)).ok();
        }
    }

    /// The timer task.
    pub(crate) async fn run_timer(&self) {
        loop {
            let (expired, next) = self.expire();
            for waiter in expired {
                waiter.send(Err(TransportError::TimedOut)).ok();
            }
            if next == NEVER {
                self.rearm.notified().await;
                continue;
            }
            let due = self.started + TICK * u32::try_from(next).unwrap_or(u32::MAX);
            tokio::select! {
                () = tokio::time::sleep_until(due) => {}
                () = self.rearm.notified() => {}
            }
        }
    }

    fn expire(&self) -> (Vec<Waiter>, u64) {
        let now = (self.started.elapsed().as_micros() / TICK.as_micros()) as u64;
        let mut expired = Vec::new();
        let mut table = lock(&self.table);
        if table.waiting.is_empty() {
            table.deadlines.clear();
        }
        while let Some(entry) = table.deadlines.first_entry() {
            if *entry.key() > now {
                break;
            }
            for id in entry.remove() {
                expired.extend(table.waiting.remove(&id));
            }
        }
        table.armed = table
            .deadlines
            .first_key_value()
            .map_or(NEVER, |(tick, _)| *tick);
        (expired, table.armed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_request_times_out_at_its_own_time_and_answered_ones_do_not() {
        let pending = std::sync::Arc::new(Pending::new());
        let timer = tokio::spawn({
            let pending = pending.clone();
            async move { pending.run_timer().await }
        });
        let started = Instant::now();
        let (_, late) = pending.add(Duration::from_millis(400)).expect("added");
        let (_, early) = pending.add(Duration::from_millis(50)).expect("added");
        let (answered, reply) = pending.add(Duration::from_millis(20)).expect("added");
        pending.resolve(
            answered,
            Ok(Message {
                kind: 9,
                ..Message::default()
            }),
        );
        assert_eq!(reply.await.expect("resolved").expect("answered").kind, 9);
        assert!(matches!(early.await, Ok(Err(TransportError::TimedOut))));
        assert!(started.elapsed() >= Duration::from_millis(50));
        assert!(
            lock(&pending.table).waiting.len() == 1,
            "only the late one waits"
        );
        assert!(matches!(late.await, Ok(Err(TransportError::TimedOut))));
        assert!(started.elapsed() >= Duration::from_millis(400));
        let (_, open) = pending.add(Duration::from_secs(5)).expect("added");
        pending.close();
        assert!(matches!(open.await, Ok(Err(TransportError::Lost))));
        assert!(pending.add(Duration::from_secs(5)).is_err());
        timer.abort();
    }
}
