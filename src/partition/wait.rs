//! Fetches that wait for more: one waiter for a whole request, however many
//! partitions it reads, woken when enough bytes have been committed.
//!
//! A waiter is registered by its request and taken out by a guard, so nothing
//! stays behind when the request is dropped.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::view::PartitionView;

/// One waiting request.
#[derive(Debug)]
pub struct Waiter {
    bytes_missing: AtomicI64,
    woken: Notify,
}

impl Waiter {
    fn arrived(&self, bytes: i64) -> bool {
        let enough = self.bytes_missing.fetch_sub(bytes, Ordering::AcqRel) <= bytes;
        if enough {
            self.woken.notify_one();
        }
        enough
    }

    fn wake(&self) {
        self.bytes_missing.store(0, Ordering::Release);
        self.woken.notify_one();
    }
}

/// Those who wait at one partition.
#[derive(Debug, Default)]
pub struct Waiters(Mutex<Vec<Arc<Waiter>>>);

impl Waiters {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Waiter>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `bytes` more can be read.
    pub fn arrived(&self, bytes: i64) {
        self.lock().retain(|waiter| !waiter.arrived(bytes));
    }

    /// Something else changed, such as the leader: everybody looks again.
    pub fn wake_all(&self) {
        for waiter in self.lock().drain(..) {
            waiter.wake();
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.lock().len()
    }
}

/// A request's wait at its partitions. Dropping it leaves no trace.
pub struct Wait {
    waiter: Arc<Waiter>,
    views: Vec<Arc<PartitionView>>,
}

impl Wait {
    /// Waits at each partition for more than the high watermark seen there;
    /// over all of them `bytes` are missing.
    pub fn register(seen: Vec<(Arc<PartitionView>, i64)>, bytes: i64) -> Wait {
        let waiter = Arc::new(Waiter {
            bytes_missing: AtomicI64::new(bytes.max(1)),
            woken: Notify::new(),
        });
        let mut wait = Wait {
            waiter,
            views: Vec::with_capacity(seen.len()),
        };
        for (view, high_watermark) in seen {
            view.waiters.lock().push(Arc::clone(&wait.waiter));
            // Registered first: what is committed from here on finds the waiter.
            if view.high_watermark() != high_watermark {
                wait.waiter.wake();
            }
            wait.views.push(view);
        }
        wait
    }

    /// True when woken, false when the time is over.
    pub async fn until(&self, deadline: tokio::time::Instant) -> bool {
        tokio::time::timeout_at(deadline, self.waiter.woken.notified())
            .await
            .is_ok()
    }

    /// As [`Wait::until`], from now on.
    pub async fn at_most(&self, time: Duration) -> bool {
        self.until(tokio::time::Instant::now() + time).await
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        for view in &self.views {
            let mut waiters = view.waiters.lock();
            if let Some(place) = waiters
                .iter()
                .position(|other| Arc::ptr_eq(other, &self.waiter))
            {
                waiters.swap_remove(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_waiter_is_woken_once_enough_bytes_arrived_over_all_partitions() {
        let (a, b) = (
            Arc::new(PartitionView::default()),
            Arc::new(PartitionView::default()),
        );
        let wait = Wait::register(vec![(Arc::clone(&a), 0), (Arc::clone(&b), 0)], 100);
        a.waiters.arrived(60);
        assert!(!wait.at_most(Duration::from_millis(5)).await);
        b.waiters.arrived(40);
        assert!(wait.at_most(Duration::from_secs(60)).await);
        drop(wait);
        assert_eq!((a.waiters.len(), b.waiters.len()), (0, 0));
    }

    #[tokio::test]
    async fn what_was_committed_before_the_registration_wakes_at_once() {
        let view = Arc::new(PartitionView::default());
        let wait = Wait::register(vec![(Arc::clone(&view), -1)], 1_000_000);
        assert!(wait.at_most(Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn a_change_of_leader_wakes_everybody() {
        let view = Arc::new(PartitionView::default());
        let waits: Vec<Wait> = (0..3)
            .map(|_| Wait::register(vec![(Arc::clone(&view), 0)], 1_000_000))
            .collect();
        view.waiters.wake_all();
        for wait in &waits {
            assert!(wait.at_most(Duration::from_secs(60)).await);
        }
    }

    #[test]
    fn a_dropped_wait_leaves_nothing_behind() {
        let view = Arc::new(PartitionView::default());
        drop(Wait::register(vec![(Arc::clone(&view), 0)], 1));
        assert_eq!(view.waiters.len(), 0);
    }
}
