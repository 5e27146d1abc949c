//! From a request to the handler of its API.
//!
//! Every handler of a control API is `async fn(broker, connection, version,
//! request) -> response` on kafka-protocol's types; [`control`] guards and
//! decodes before it and encodes after it.

use std::future::ready;

use kafka_protocol::protocol::{Decodable, Encodable};

use crate::protocol::api_versions::{self as table, Api};
use crate::protocol::{guard, header};
use crate::server::{CloseConnection, Outcome, Pending, Request, RequestHeader, Response};

pub mod api_versions;
pub mod cluster;
pub mod configs;
pub mod delete_records;
pub mod dispatch;
pub mod fetch;
#[cfg(test)]
mod fuzz_tests;
pub mod group_admin;
pub mod group_offsets;
#[cfg(test)]
mod group_tests;
pub mod groups;
pub mod metadata;
mod named;
pub mod offsets;
pub mod produce;
pub mod producer_ids;
pub mod records;
pub mod topics;

pub use dispatch::{Handlers, dispatch};

/// Begins a control request: guarded, decoded as `Req`, handled, encoded.
pub fn control<Req, Fut>(request: Request, handle: impl FnOnce(i16, Req) -> Fut) -> Pending
where
    Req: kafka_protocol::protocol::Request,
    Fut: Future<Output = Req::Response> + Send + 'static,
{
    match decode::<Req>(&request) {
        Ok(body) => {
            let handled = handle(request.header.api_version, body);
            Box::pin(async move { encode(&request.header, &handled.await) })
        }
        Err(close) => Box::pin(ready(Err(close))),
    }
}

/// The served API that a request asks for.
fn api(header: &RequestHeader) -> &'static Api {
    table::find(header.api_key).expect("the connection passes requests of served APIs only")
}

/// Decodes a control request's body, guarded.
fn decode<Req: Decodable>(request: &Request) -> Result<Req, CloseConnection> {
    let api = api(&request.header);
    let version = request.header.api_version;
    let malformed = |error: &dyn std::fmt::Display| {
        CloseConnection::because(format_args!(
            "malformed {:?} request, version {version}: {error}",
            api.key
        ))
    };
    guard::check(api, version, &request.body).map_err(|error| malformed(&error))?;
    Req::decode(&mut request.body.clone(), version).map_err(|error| malformed(&error))
}

/// Encodes a reply with its header.
fn encode(header: &RequestHeader, response: &impl Encodable) -> Outcome {
    let api = api(header);
    let mut writer = header::reply(api, header);
    let version = header.api_version;
    response.encode(writer.buffer(), version).map_err(|error| {
        CloseConnection::because(format_args!(
            "cannot encode the {:?} reply, version {version}: {error}",
            api.key
        ))
    })?;
    Ok(Some(Response {
        chunks: writer.into_chunks(),
    }))
}

#[cfg(test)]
mod records_tests;
