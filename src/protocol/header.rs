//! Request headers in, reply headers out.

use bytes::Bytes;
use kafka_protocol::messages::ApiKey;

use super::api_versions::{self, Api};
use super::wire::{Malformed, Reader, Writer};
use crate::server::{Request, RequestHeader};

/// Why a frame is not a request that is served. Each closes the connection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It is not a header.
    #[error("malformed request header: {0}")]
    Malformed(#[from] Malformed),
    /// An API that does not exist or is not served.
    #[error("unsupported API key {0}")]
    UnsupportedApi(i16),
    /// A version that is not served.
    #[error("unsupported version {1} of {0:?}")]
    UnsupportedVersion(ApiKey, i16),
}

/// Splits a frame into header and body. ApiVersions passes in any version, its
/// body unread: its reply tells a newer client which versions there are.
pub fn decode(frame: &Bytes) -> Result<Request, HeaderError> {
    let mut reader = Reader::new(frame, false);
    let api_key = reader.i16()?;
    let api_version = reader.i16()?;
    let correlation_id = reader.i32()?;
    let api = api_versions::find(api_key).ok_or(HeaderError::UnsupportedApi(api_key))?;
    let header = |client_id| RequestHeader {
        api_key,
        api_version,
        correlation_id,
        client_id,
    };
    if !api.serves(api_version) {
        return if api.key == ApiKey::ApiVersions {
            Ok(Request {
                header: header(None),
                body: Bytes::new(),
            })
        } else {
            Err(HeaderError::UnsupportedVersion(api.key, api_version))
        };
    }
    let client_id = reader.nullable_string()?;
    reader.flexible(api.is_flexible(api_version));
    reader.skip_tags()?;
    Ok(Request {
        header: header(client_id),
        body: frame.slice(reader.position()..),
    })
}

/// A writer at the start of the body of the reply to that request.
pub fn reply(api: &Api, header: &RequestHeader) -> Writer {
    let mut writer = Writer::new();
    writer.i32(header.correlation_id);
    writer.flexible(api.has_flexible_reply_header(header.api_version));
    writer.no_tags();
    writer
}
