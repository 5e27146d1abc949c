//! One broker's requests: encoded without copying batches, written in order,
//! several under way.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};
use kafka_protocol::protocol::Request;
use tokio::sync::mpsc;

use super::ProducerConfig;
use super::accumulator::Batch;
use super::sender::Event;
use crate::client::cluster::Cluster;
use crate::client::connection::{Connection, PendingReply};
use crate::client::error::ClientError;

/// The first Produce version that is encoded here.
const PRODUCE_VERSION_MIN: i16 = 9;

/// The task that writes one broker's requests in order.
pub(super) struct Worker {
    pub(super) broker: i32,
    pub(super) cluster: Cluster,
    pub(super) topic: Arc<str>,
    pub(super) config: ProducerConfig,
    pub(super) events: mpsc::Sender<Event>,
}

impl Worker {
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Vec<Batch>>) {
        while let Some(batches) = queue.recv().await {
            let pending = self.write(&batches).await;
            let (broker, events) = (self.broker, self.events.clone());
            let timeout = self.config.request_timeout + Duration::from_secs(2);
            tokio::spawn(async move {
                let answer = match pending {
                    Ok(Some(pending)) => pending.answer(timeout).await.map(Some),
                    Ok(None) => Ok(None),
                    Err(error) => Err(error),
                };
                drop(
                    events
                        .send(Event::Answered {
                            broker,
                            batches,
                            answer,
                        })
                        .await,
                );
            });
        }
    }

    async fn write(
        &self,
        batches: &[Batch],
    ) -> Result<Option<PendingReply<ProduceResponse>>, ClientError> {
        let connection = self.cluster.broker(self.broker).await?;
        let version = connection.version::<ProduceRequest>()?;
        if version < PRODUCE_VERSION_MIN {
            return Err(ClientError::Unsupported(ProduceRequest::KEY));
        }
        let correlation_id = connection.next_correlation_id();
        let chunks = self.encode(&connection, version, correlation_id, batches);
        match self.config.acks {
            0 => connection.send_unanswered(chunks).await.map(|()| None),
            _ => connection
                .send_encoded(chunks, version, correlation_id)
                .await
                .map(Some),
        }
    }

    /// Versions 9 to 12 look alike. The batches are passed on, not copied.
    fn encode(
        &self,
        connection: &Connection,
        version: i16,
        correlation_id: i32,
        batches: &[Batch],
    ) -> Vec<Bytes> {
        let mut chunks = Vec::with_capacity(batches.len() * 2 + 1);
        let mut head = BytesMut::with_capacity(256);
        head.put_i16(ProduceRequest::KEY);
        head.put_i16(version);
        head.put_i32(correlation_id);
        head.put_i16(connection.client_id().len() as i16);
        head.put_slice(connection.client_id().as_bytes());
        head.put_u8(0); // tagged fields of the header
        match &self.config.transactional {
            None => head.put_u8(0),
            Some(identity) => {
                put_uvarint(&mut head, identity.transactional_id.len() + 1);
                head.put_slice(identity.transactional_id.as_bytes());
            }
        }
        head.put_i16(self.config.acks);
        head.put_i32(self.config.request_timeout.as_millis() as i32);
        head.put_u8(2); // one topic
        put_uvarint(&mut head, self.topic.len() + 1);
        head.put_slice(self.topic.as_bytes());
        put_uvarint(&mut head, batches.len() + 1);
        for batch in batches {
            head.put_i32(batch.partition as i32);
            put_uvarint(&mut head, batch.bytes.len() + 1);
            chunks.push(head.split().freeze());
            chunks.push(batch.bytes.clone());
            head.put_u8(0); // tagged fields of the partition
        }
        head.put_u8(0); // of the topic
        head.put_u8(0); // of the request
        chunks.push(head.freeze());
        chunks
    }
}

fn put_uvarint(buffer: &mut BytesMut, mut value: usize) {
    while value >= 0x80 {
        buffer.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}
