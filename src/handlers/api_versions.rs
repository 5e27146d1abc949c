//! ApiVersions: what is served. Also the way to learn what a client is.

use std::future::ready;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest, ApiVersionsResponse};

use super::{decode, encode};
use crate::protocol::api_versions::{APIS, Api, find};
use crate::server::{ClientSoftware, Connection, Outcome, Pending, Request};

/// The first version in which a client says what it is.
const SOFTWARE: i16 = 3;

/// ApiVersions in any version: those that are not served are answered in the
/// layout of version 0, which every client reads.
pub fn api_versions(connection: &Connection, request: Request) -> Pending {
    Box::pin(ready(answer(connection, request)))
}

fn answer(connection: &Connection, mut request: Request) -> Outcome {
    let api = find(ApiKey::ApiVersions as i16).expect("ApiVersions is served");
    if !api.serves(request.header.api_version) {
        request.header.api_version = 0;
        let response = ApiVersionsResponse::default()
            .with_error_code(ResponseError::UnsupportedVersion.code())
            .with_api_keys(vec![advertised(api)]);
        return encode(&request.header, &response);
    }
    let body: ApiVersionsRequest = decode(&request)?;
    let mut response = ApiVersionsResponse::default();
    if request.header.api_version >= SOFTWARE {
        let (name, version) = (&body.client_software_name, &body.client_software_version);
        if !is_software_name(name) || !is_software_name(version) {
            response.error_code = ResponseError::InvalidRequest.code();
            return encode(&request.header, &response);
        }
        connection.introduce(ClientSoftware {
            name: name.to_string(),
            version: version.to_string(),
        });
    }
    response.api_keys = APIS.iter().map(advertised).collect();
    encode(&request.header, &response)
}

fn advertised(api: &Api) -> ApiVersion {
    ApiVersion::default()
        .with_api_key(api.key as i16)
        .with_min_version(api.advertised_min())
        .with_max_version(api.max)
}

/// Letters and digits, with dots and dashes between them, as Kafka demands.
fn is_software_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'-';
    let (Some(first), Some(last)) = (text.bytes().next(), text.bytes().next_back()) else {
        return false;
    };
    first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() && text.bytes().all(is_inner)
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes, BytesMut};
    use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

    use super::*;
    use crate::server::RequestHeader;

    fn connection() -> Connection {
        Connection::new(1, "127.0.0.1:9999".parse().unwrap())
    }

    fn ask(connection: &Connection, version: i16, body: Bytes) -> Bytes {
        let header = RequestHeader {
            api_key: 18,
            api_version: version,
            correlation_id: 7,
            client_id: None,
        };
        let response = answer(connection, Request { header, body })
            .unwrap()
            .unwrap();
        let mut reply = Bytes::from(response.chunks.concat());
        assert_eq!(
            reply.get_i32(),
            7,
            "no tagged fields follow the correlation id"
        );
        reply
    }

    fn body(name: &'static str, version: i16) -> Bytes {
        let mut buffer = BytesMut::new();
        let mut request = ApiVersionsRequest::default();
        if version >= SOFTWARE {
            request.client_software_name = StrBytes::from_static_str(name);
            request.client_software_version = StrBytes::from_static_str("1.2.3");
        }
        request.encode(&mut buffer, version).unwrap();
        buffer.freeze()
    }

    #[test]
    fn every_served_version_lists_the_table() {
        for version in 0..=4 {
            let mut reply = ask(&connection(), version, body("kcat", version));
            let response = ApiVersionsResponse::decode(&mut reply, version).unwrap();
            assert!(reply.is_empty());
            assert_eq!(
                (response.error_code, response.api_keys.len()),
                (0, APIS.len())
            );
            let produce = &response.api_keys[0];
            assert_eq!((produce.min_version, produce.max_version), (0, 13));
        }
    }

    #[test]
    fn a_version_from_the_future_is_answered_in_the_layout_of_version_0() {
        for version in [5, 99, -1, i16::MAX] {
            let reply = ask(&connection(), version, Bytes::from_static(b"anything"));
            assert_eq!(reply[..], [0, 35, 0, 0, 0, 1, 0, 18, 0, 0, 0, 4]);
        }
    }

    #[test]
    fn a_client_without_a_proper_name_is_refused() {
        for name in ["", "-x", "x y"] {
            let mut reply = ask(&connection(), 3, body(name, 3));
            assert_eq!(
                ApiVersionsResponse::decode(&mut reply, 3)
                    .unwrap()
                    .error_code,
                42
            );
        }
        let known = connection();
        ask(&known, 3, body("kcat", 3));
        assert_eq!(known.software().unwrap().name, "kcat");
    }
}
