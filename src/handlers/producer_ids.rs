//! InitProducerId for idempotent producers.
//!
//! Transactions come later: a request with a transactional id is refused with
//! UNSUPPORTED_VERSION, which every client takes for final and reports at once,
//! where a coordinator's error would make it try again forever.

use std::sync::Arc;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};
use tracing::debug;

use crate::node::Broker;
use crate::server::Connection;

/// InitProducerId. A producer that names its id and epoch (version 3 and
/// later) keeps the id with the next epoch, as long as there is one.
pub async fn init_producer_id(
    broker: &Arc<Broker>,
    connection: &Arc<Connection>,
    _version: i16,
    request: InitProducerIdRequest,
) -> InitProducerIdResponse {
    let refused = |error: ResponseError| {
        InitProducerIdResponse::default()
            .with_error_code(error.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    };
    match request.transactional_id.as_ref() {
        Some(id) if id.is_empty() => return refused(ResponseError::InvalidRequest),
        Some(_) => {
            debug!(client = %connection.peer, "transactional producer refused");
            return refused(ResponseError::UnsupportedVersion);
        }
        None => {}
    }
    let (id, epoch) = (request.producer_id.0, request.producer_epoch);
    match bumped(id, epoch) {
        Ok(Some(epoch)) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch),
        Ok(None) => match broker.metadata.next_producer_id().await {
            Ok(id) => InitProducerIdResponse::default()
                .with_producer_id(ProducerId(id))
                .with_producer_epoch(0),
            // Clients try again after this one, whatever kept the controller from answering.
            Err(refusal) => {
                debug!(%refusal, "no producer id");
                refused(ResponseError::CoordinatorLoadInProgress)
            }
        },
        Err(error) => refused(error),
    }
}

/// The epoch that follows, if the producer keeps its id; `None` if it gets a new id.
fn bumped(id: i64, epoch: i16) -> Result<Option<i16>, ResponseError> {
    match (id, epoch) {
        (-1, -1) => Ok(None),
        (id, epoch) if id < 0 || epoch < 0 => Err(ResponseError::InvalidRequest),
        // The last epoch is never handed out, as in Kafka.
        (_, epoch) if epoch >= i16::MAX - 1 => Ok(None),
        (_, epoch) => Ok(Some(epoch + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_bumped_until_it_is_exhausted() {
        assert_eq!(bumped(-1, -1), Ok(None));
        assert_eq!(bumped(7, 0), Ok(Some(1)));
        assert_eq!(bumped(7, i16::MAX - 2), Ok(Some(i16::MAX - 1)));
        assert_eq!(bumped(7, i16::MAX - 1), Ok(None));
        assert_eq!(bumped(7, i16::MAX), Ok(None));
        assert_eq!(bumped(7, -1), Err(ResponseError::InvalidRequest));
        assert_eq!(bumped(-1, 3), Err(ResponseError::InvalidRequest));
    }
}
