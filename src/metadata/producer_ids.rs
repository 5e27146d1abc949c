//! Producer ids: taken from the controller in blocks, handed out one by one.

use tokio::sync::Mutex;

use super::Metadata;
use super::command::{Command, PRODUCER_ID_BLOCK, Refusal, Reply};

/// What is left of this broker's block. What a stopped broker did not hand out
/// is never used.
#[derive(Debug, Default)]
pub(super) struct Block(Mutex<std::ops::Range<i64>>);

impl Metadata {
    /// A producer id that nobody else has or had.
    pub async fn next_producer_id(&self) -> Result<i64, Refusal> {
        let mut left = self.producer_ids.0.lock().await;
        if let Some(id) = left.next() {
            return Ok(id);
        }
        match self
            .submit(Command::AllocateProducerIds {
                count: PRODUCER_ID_BLOCK,
            })
            .await
        {
            Ok(Reply::ProducerIds { first, count }) => {
                *left = first + 1..first + i64::from(count);
                Ok(first)
            }
            Ok(Reply::Refused(refusal)) => Err(refusal),
            Ok(other) => Err(Refusal::unexpected(&other)),
            Err(error) => Err(error.refusal()),
        }
    }
}
