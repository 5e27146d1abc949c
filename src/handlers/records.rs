//! What surrounds the handlers of Produce and Fetch: their own codec, and the
//! replies that are not sent.

use std::future::ready;

use super::api;
use crate::protocol::fetch::{FetchRequest, FetchResponse};
use crate::protocol::header;
use crate::protocol::produce::{ProduceRequest, ProduceResponse};
use crate::protocol::wire::{Malformed, Writer};
use crate::server::{CloseConnection, Outcome, Pending, Request, RequestHeader, Response};

/// Begins a Produce request. When `begin` returns, everything that it appends
/// has its place in its partition's order; the future waits for the outcome.
pub fn produce<F>(request: Request, begin: impl FnOnce(i16, ProduceRequest) -> F) -> Pending
where
    F: Future<Output = ProduceResponse> + Send + 'static,
{
    let Request { header, body } = request;
    let body = match ProduceRequest::decode(&body, header.api_version) {
        Ok(body) => body,
        Err(error) => return malformed(&header, error),
    };
    let wants_reply = body.acks != 0;
    let appended = begin(header.api_version, body);
    Box::pin(async move {
        let response = appended.await;
        if wants_reply {
            return reply(&header, |writer| {
                response.encode(writer, header.api_version)
            });
        }
        // A client that wants no reply learns only so to look for another leader.
        match first_error(&response) {
            None => Ok(None),
            Some(code) => Err(CloseConnection::because(format_args!(
                "an append without acknowledgement met error {code}"
            ))),
        }
    })
}

/// Begins a Fetch request.
pub fn fetch<F>(request: Request, handle: impl FnOnce(i16, FetchRequest) -> F) -> Pending
where
    F: Future<Output = FetchResponse> + Send + 'static,
{
    let Request { header, body } = request;
    let body = match FetchRequest::decode(&body, header.api_version) {
        Ok(body) => body,
        Err(error) => return malformed(&header, error),
    };
    let fetched = handle(header.api_version, body);
    Box::pin(async move {
        let response = fetched.await;
        reply(&header, |writer| {
            response.encode(writer, header.api_version)
        })
    })
}

fn reply(header: &RequestHeader, encode: impl FnOnce(&mut Writer)) -> Outcome {
    let mut writer = header::reply(api(header), header);
    encode(&mut writer);
    Ok(Some(Response {
        chunks: writer.into_chunks(),
    }))
}

fn malformed(header: &RequestHeader, error: Malformed) -> Pending {
    let (key, version) = (api(header).key, header.api_version);
    let reason = format_args!("malformed {key:?} request, version {version}: {error}");
    Box::pin(ready(Err(CloseConnection::because(reason))))
}

fn first_error(response: &ProduceResponse) -> Option<i16> {
    let mut partitions = response.topics.iter().flat_map(|topic| &topic.partitions);
    partitions
        .find(|partition| partition.error_code != 0)
        .map(|partition| partition.error_code)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kafka_protocol::messages::ApiKey;
    use kafka_protocol::protocol::StrBytes;

    use super::*;
    use crate::protocol::produce::{ProducePartitionResponse, ProduceTopicResponse};
    use crate::protocol::wire::TopicRef;

    fn request(api_key: ApiKey, api_version: i16, body: Bytes) -> Request {
        let header = RequestHeader {
            api_key: api_key as i16,
            api_version,
            correlation_id: 7,
            client_id: None,
        };
        Request { header, body }
    }

    fn produce_request(acks: i16) -> Request {
        let mut writer = Writer::new();
        let body = ProduceRequest {
            transactional_id: None,
            acks,
            timeout_ms: 1,
            topics: Vec::new(),
        };
        body.encode(&mut writer, 9);
        request(
            ApiKey::Produce,
            9,
            Bytes::from(writer.into_chunks().concat()),
        )
    }

    fn response(error_code: i16) -> ProduceResponse {
        let topic = TopicRef::Name(StrBytes::from_static_str("orders"));
        let partitions = vec![ProducePartitionResponse::refused(0, error_code, None)];
        ProduceResponse {
            topics: vec![ProduceTopicResponse { topic, partitions }],
            ..ProduceResponse::default()
        }
    }

    async fn outcome(acks: i16, error_code: i16) -> Outcome {
        produce(produce_request(acks), |_, body| {
            assert_eq!(body.acks, acks);
            ready(response(error_code))
        })
        .await
    }

    #[tokio::test]
    async fn a_reply_begins_with_its_correlation_id_and_no_tagged_fields() {
        let reply = outcome(-1, 6).await.unwrap().unwrap().chunks.concat();
        assert_eq!(reply[..5], [0, 0, 0, 7, 0]);
        let body = Bytes::from(reply).slice(5..);
        assert_eq!(ProduceResponse::decode(&body, 9), Ok(response(6)));
    }

    #[tokio::test]
    async fn without_acknowledgement_nothing_is_sent_and_an_error_closes() {
        assert!(outcome(0, 0).await.unwrap().is_none());
        assert!(outcome(0, 6).await.unwrap_err().reason.contains("error 6"));
    }

    #[tokio::test]
    async fn a_truncated_body_closes_before_the_handler_is_asked() {
        let never = |_, _| -> std::future::Ready<FetchResponse> { panic!("the handler was asked") };
        let ended = fetch(
            request(ApiKey::Fetch, 4, Bytes::from_static(&[0; 9])),
            never,
        )
        .await;
        assert!(
            ended
                .unwrap_err()
                .reason
                .contains("malformed Fetch request, version 4")
        );
    }
}
