//! One connection to a broker, spoken byte by byte: the tests' own view of the protocol.
//!
//! Messages come from the crate `kafka-protocol`, frames and record batches are made here. Nothing of the broker's own
//! code is used, so that a mistake in it is not made twice.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{ApiKey, RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};

/// A connection to one broker.
pub struct Wire {
    stream: TcpStream,
    correlation_id: i32,
}

impl Wire {
    /// Connects to `HOST:PORT`.
    pub fn connect(address: &str) -> io::Result<Wire> {
        let address = address
            .to_socket_addrs()?
            .next()
            .ok_or(io::ErrorKind::NotFound)?;
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        Ok(Wire {
            stream,
            correlation_id: 0,
        })
    }

    /// How long a reply may take.
    pub fn set_patience(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(patience))
    }

    /// One request and its reply.
    pub fn call<R: Request>(&mut self, version: i16, request: &R) -> io::Result<R::Response> {
        let correlation_id = self.send(version, request)?;
        self.receive::<R>(version, correlation_id)
    }

    /// Sends a request and returns its correlation id.
    pub fn send<R: Request>(&mut self, version: i16, request: &R) -> io::Result<i32> {
        self.correlation_id += 1;
        let mut body = BytesMut::new();
        request
            .encode(&mut body, version)
            .map_err(io::Error::other)?;
        self.send_bytes(&frame(R::KEY, version, self.correlation_id, &body))?;
        Ok(self.correlation_id)
    }

    /// Waits for the reply to a request; a byte too many or too few in it is an error.
    pub fn receive<R: Request>(
        &mut self,
        version: i16,
        correlation_id: i32,
    ) -> io::Result<R::Response> {
        let mut frame = self.read_frame()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let header = ResponseHeader::decode(&mut frame, R::Response::header_version(version))
            .map_err(io::Error::other)?;
        if header.correlation_id != correlation_id {
            let got = header.correlation_id;
            return Err(io::Error::other(format!(
                "reply to request {got} where {correlation_id} was due"
            )));
        }
        let response = R::Response::decode(&mut frame, version).map_err(io::Error::other)?;
        match frame.remaining() {
            0 => Ok(response),
            left => Err(io::Error::other(format!(
                "{left} bytes left over after the reply"
            ))),
        }
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&mut self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Write)
    }

    /// The next frame without its length; `None` when the broker has closed the connection.
    pub fn read_frame(&mut self) -> io::Result<Option<Bytes>> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if closed(&error) => return Ok(None),
            other => other?,
        }
        let mut frame =
            vec![0; usize::try_from(i32::from_be_bytes(length)).map_err(io::Error::other)?];
        self.stream.read_exact(&mut frame)?;
        Ok(Some(frame.into()))
    }
}

/// Whether an error means that the other side has gone.
fn closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
    )
}

/// A whole request frame: length, header, `body`. An API key that the crate doesn't know gets header version 1.
pub fn frame(api_key: i16, version: i16, correlation_id: i32, body: &[u8]) -> Vec<u8> {
    let header_version =
        ApiKey::try_from(api_key).map_or(1, |key| key.request_header_version(version));
    let header = RequestHeader::default()
        .with_request_api_key(api_key)
        .with_request_api_version(version)
        .with_correlation_id(correlation_id)
        .with_client_id(Some(StrBytes::from_static_str("drave-tests")));
    let mut payload = BytesMut::new();
    header
        .encode(&mut payload, header_version)
        .expect("a header encodes");
    payload.extend_from_slice(body);
    let mut frame = Vec::with_capacity(payload.len() + 4);
    frame.put_i32(i32::try_from(payload.len()).expect("frame under 2 GiB"));
    frame.extend_from_slice(&payload);
    frame
}
