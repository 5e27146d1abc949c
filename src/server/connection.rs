//! One client's connection.

use std::net::SocketAddr;
use std::sync::OnceLock;

/// What is known of a client's connection; shared with the handlers of its requests.
#[derive(Debug)]
pub struct Connection {
    /// Unique among the connections of this process.
    pub id: u64,
    /// The client's address.
    pub peer: SocketAddr,
    software: OnceLock<ClientSoftware>,
}

/// What a client said of itself in ApiVersions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSoftware {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(id: u64, peer: SocketAddr) -> Self {
        Self {
            id,
            peer,
            software: OnceLock::new(),
        }
    }

    /// What the client said of itself, if it did.
    pub fn software(&self) -> Option<&ClientSoftware> {
        self.software.get()
    }

    /// Keeps what the client says of itself; the first word stands.
    pub fn introduce(&self, software: ClientSoftware) {
        self.software.get_or_init(|| software);
    }
}
