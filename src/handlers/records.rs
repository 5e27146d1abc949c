//! What surrounds the handlers of Produce and Fetch: their own codec.

use std::future::ready;

use super::api;
use crate::protocol::fetch::{FetchRequest, FetchResponse};
use crate::protocol::header;
use crate::protocol::produce::{ProduceRequest, ProduceResponse};
use crate::protocol::wire::{Malformed, Writer};
use crate::server::{CloseConnection, Outcome, Pending, Request, RequestHeader, Response};

/// What a Produce request comes to; `None`: the client wants no reply.
pub type Produced = Result<Option<ProduceResponse>, CloseConnection>;

/// Begins a Produce request. When `begin` returns, everything that it appends
/// has its place in its partition's order; the future waits for the outcome.
pub fn produce<F>(request: Request, begin: impl FnOnce(i16, ProduceRequest) -> F) -> Pending
where
    F: Future<Output = Produced> + Send + 'static,
{
    let Request { header, body } = request;
    let body = match ProduceRequest::decode(&body, header.api_version) {
        Ok(body) => body,
        Err(error) => return malformed(&header, error),
    };
    let appended = begin(header.api_version, body);
    Box::pin(async move {
        match appended.await? {
            Some(response) => reply(&header, |writer| {
                response.encode(writer, header.api_version)
            }),
            None => Ok(None),
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

    fn produce_request() -> Request {
        let mut writer = Writer::new();
        let body = ProduceRequest {
            transactional_id: None,
            acks: 1,
            timeout_ms: 9,
            topics: Vec::new(),
        };
        body.encode(&mut writer, 9);
        request(
            ApiKey::Produce,
            9,
            Bytes::from(writer.into_chunks().concat()),
        )
    }

    fn response() -> ProduceResponse {
        let topic = TopicRef::Name(StrBytes::from_static_str("orders"));
        let partitions = vec![ProducePartitionResponse::refused(0, 6, None)];
        ProduceResponse {
            topics: vec![ProduceTopicResponse { topic, partitions }],
            ..ProduceResponse::default()
        }
    }

    async fn outcome(produced: Produced) -> Outcome {
        produce(produce_request(), |version, body| {
            assert_eq!((version, body.timeout_ms), (9, 9));
            ready(produced)
        })
        .await
    }

    #[tokio::test]
    async fn a_reply_begins_with_its_correlation_id_and_no_tagged_fields() {
        let reply = outcome(Ok(Some(response())))
            .await
            .unwrap()
            .unwrap()
            .chunks
            .concat();
        assert_eq!(reply[..5], [0, 0, 0, 7, 0]);
        let body = Bytes::from(reply).slice(5..);
        assert_eq!(ProduceResponse::decode(&body, 9), Ok(response()));
    }

    #[tokio::test]
    async fn no_reply_and_a_close_are_passed_on() {
        assert!(outcome(Ok(None)).await.unwrap().is_none());
        let close = CloseConnection::because("why");
        assert_eq!(outcome(Err(close.clone())).await.unwrap_err(), close);
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
