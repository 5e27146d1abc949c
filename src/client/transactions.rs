//! A transactional id: who holds it may write in transactions, and nobody else.
//!
//! Version 1 of the protocol, which every broker with transactions speaks: the
//! partitions of a transaction are made known to its coordinator before they are
//! written to. Taking an id fences its former holder, and aborts or completes what
//! that one left behind.

use std::time::Duration;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, EndTxnRequest, InitProducerIdRequest, ProducerId, TransactionalId,
};
use kafka_protocol::protocol::{Request, StrBytes};
use parking_lot::Mutex;

use super::cluster::{Cluster, text, topic_name};
use super::connection::Connection;
use super::error::{ClientError, check};

/// How long a coordinator may take for one request.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(2_500);

/// As whom a producer writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The id that its owner chose.
    pub transactional_id: StrBytes,
    /// What the cluster gave it for that.
    pub producer_id: i64,
    /// How many have held the id before.
    pub epoch: i16,
}

/// Whoever holds a transactional id.
pub struct Transactional {
    identity: Identity,
    coordinator: Coordinator,
}

impl Transactional {
    /// Takes an id. Whatever its former holder left open is over when this returns. The
    /// cluster aborts a transaction by itself that lasts longer than `timeout`.
    pub async fn take(
        cluster: Cluster,
        transactional_id: &str,
        timeout: Duration,
        within: Duration,
    ) -> Result<Transactional, ClientError> {
        let coordinator = Coordinator {
            cluster,
            transactional_id: text(transactional_id),
            connection: Mutex::new(None),
        };
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(coordinator.id()))
            .with_transaction_timeout_ms(timeout.as_millis() as i32)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        let identity = coordinator.ask(within, &request, |answer| {
            check(answer.error_code, || coordinator.about(), None)?;
            Ok(Identity {
                transactional_id: coordinator.transactional_id.clone(),
                producer_id: *answer.producer_id,
                epoch: answer.producer_epoch,
            })
        });
        Ok(Transactional {
            identity: identity.await?,
            coordinator,
        })
    }

    /// As whom its records are to be written.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Begins a transaction, or adds to it: it may be written to these partitions from now on.
    pub async fn add_partitions(
        &self,
        topic: &str,
        partitions: &[i32],
        within: Duration,
    ) -> Result<(), ClientError> {
        let added = AddPartitionsToTxnTopic::default()
            .with_name(topic_name(topic))
            .with_partitions(partitions.to_vec());
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(self.coordinator.id())
            .with_v3_and_below_producer_id(ProducerId(self.identity.producer_id))
            .with_v3_and_below_producer_epoch(self.identity.epoch)
            .with_v3_and_below_topics(vec![added]);
        let added = self.coordinator.ask(within, &request, |answer| {
            let results = answer.results_by_topic_v3_and_below.iter();
            for result in results.flat_map(|topic| &topic.results_by_partition) {
                let index = result.partition_index;
                let about = || format!("{}: {topic}-{index}", self.coordinator.about());
                check(result.partition_error_code, about, None)?;
            }
            Ok(())
        });
        added.await
    }

    /// Commits the transaction, or aborts it. After an error nobody knows which of both happens.
    pub async fn end(&self, committed: bool, within: Duration) -> Result<(), ClientError> {
        let request = EndTxnRequest::default()
            .with_transactional_id(self.coordinator.id())
            .with_producer_id(ProducerId(self.identity.producer_id))
            .with_producer_epoch(self.identity.epoch)
            .with_committed(committed);
        let ended = self.coordinator.ask(within, &request, |answer| {
            check(answer.error_code, || self.coordinator.about(), None)
        });
        ended.await
    }

    /// Whether the cluster has transactions at all.
    pub async fn are_supported(cluster: &Cluster) -> Result<bool, ClientError> {
        let version = cluster.any().await?.version::<AddPartitionsToTxnRequest>();
        match version {
            Ok(_) => Ok(true),
            Err(ClientError::Unsupported(AddPartitionsToTxnRequest::KEY)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The broker that keeps the state of a transactional id, as far as is known.
struct Coordinator {
    cluster: Cluster,
    transactional_id: StrBytes,
    connection: Mutex<Option<Connection>>,
}

impl Coordinator {
    fn id(&self) -> TransactionalId {
        TransactionalId(self.transactional_id.clone())
    }

    fn about(&self) -> String {
        format!("transactional id {}", self.transactional_id.as_str())
    }

    /// Asks the coordinator until it does what is asked or refuses for good; looks for it
    /// anew after each error.
    async fn ask<R: Request, T>(
        &self,
        within: Duration,
        request: &R,
        check: impl Fn(R::Response) -> Result<T, ClientError>,
    ) -> Result<T, ClientError> {
        let check = &check;
        let attempt = || async move {
            let known = self.connection.lock().take();
            let connection = match known {
                Some(connection) => connection,
                None => {
                    let id = self.transactional_id.as_str();
                    self.cluster.transaction_coordinator(id).await?
                }
            };
            let answer = connection.call(request, REQUEST_TIMEOUT).await?;
            let done = check(answer)?;
            *self.connection.lock() = Some(connection);
            Ok(done)
        };
        self.cluster.retry(within, attempt).await
    }
}
