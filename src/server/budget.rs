//! The bytes that all clients' requests may take together.
//!
//! Shared by the tasks that read. A request is charged as its bytes arrive, so
//! large requests that arrive together can have taken the whole budget when
//! none of them is complete. Then one of them at a time goes on beyond it: what
//! is held is never more than the budget and one request.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::limits::BUDGET_WAIT_MS_MAX;

/// The budget.
#[derive(Debug, Clone)]
pub struct Budget {
    size: usize,
    /// Free bytes.
    bytes: Arc<Semaphore>,
    /// Whether no request goes beyond the budget.
    beyond: Arc<Semaphore>,
    patience: Duration,
}

/// What one request holds of the budget, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    bytes: OwnedSemaphorePermit,
    /// Held by the one request that goes beyond the budget.
    beyond: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// Of so many bytes.
    pub fn of(bytes: usize) -> Self {
        Self {
            size: bytes,
            bytes: Arc::new(Semaphore::new(bytes)),
            beyond: Arc::new(Semaphore::new(1)),
            patience: Duration::from_millis(BUDGET_WAIT_MS_MAX),
        }
    }

    /// Bytes of requests that are being read or not yet answered.
    pub fn in_use(&self) -> usize {
        self.size.saturating_sub(self.bytes.available_permits())
    }

    /// Waits until a request may begin to take so many bytes.
    pub(super) async fn charge(&self, bytes: usize) -> Charge {
        Charge {
            bytes: self.take(bytes).await,
            beyond: None,
        }
    }

    /// Waits until a request may take so many bytes more.
    pub(super) async fn charge_more(&self, charge: &mut Charge, bytes: usize) {
        if charge.beyond.is_some() {
            return;
        }
        let beyond = async {
            tokio::time::sleep(self.patience).await;
            let beyond = self.beyond.clone().acquire_owned().await;
            beyond.expect("never closed")
        };
        tokio::select! {
            biased;
            taken = self.take(bytes) => charge.bytes.merge(taken),
            beyond = beyond => charge.beyond = Some(beyond),
        }
    }

    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let bytes = u32::try_from(bytes).expect("a request is below 2 GiB");
        let taken = self.bytes.clone().acquire_many_owned(bytes).await;
        taken.expect("the budget is never closed")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn impatient(bytes: usize) -> Budget {
        Budget {
            patience: Duration::from_millis(20),
            ..Budget::of(bytes)
        }
    }

    #[tokio::test]
    async fn requests_that_have_taken_everything_together_complete_one_by_one() {
        let budget = impatient(100);
        let mut tasks = tokio::task::JoinSet::new();
        let mut charges = Vec::new();
        for _ in 0..4 {
            charges.push(budget.charge(25).await);
        }
        for mut charge in charges {
            let budget = budget.clone();
            tasks.spawn(async move { budget.charge_more(&mut charge, 50).await });
        }
        let all = async { while tasks.join_next().await.is_some() {} };
        tokio::time::timeout(Duration::from_secs(10), all)
            .await
            .expect("all of them complete");
        assert_eq!(budget.bytes.available_permits(), 100);
        assert_eq!(budget.beyond.available_permits(), 1);
    }

    #[tokio::test]
    async fn only_one_request_goes_beyond_the_budget() {
        let budget = impatient(10);
        let mut first = budget.charge(5).await;
        let mut second = budget.charge(5).await;
        budget.charge_more(&mut first, 5).await;
        let more = budget.charge_more(&mut second, 5);
        let waited = tokio::time::timeout(Duration::from_millis(100), more).await;
        assert!(waited.is_err(), "the second one waits");
        drop(first);
        budget.charge_more(&mut second, 5).await;
        assert!(second.beyond.is_none());
    }
}
