//! The network on systems that have no network namespaces: there is none.

use super::{Link, Traffic};
use std::convert::Infallible;
use std::io;

/// A network that loses packets. It works on Linux only: elsewhere there is none.
#[derive(Debug)]
pub struct Network(Infallible);

impl Network {
    /// Says that this system can't do it.
    pub fn new(_brokers: u32, _seed: u64) -> io::Result<Network> {
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "a network that loses packets needs the namespaces of Linux, which this system does not have",
        ))
    }

    /// A broker's address for its clients.
    pub fn client_host(&self, _id: u32) -> String {
        match self.0 {}
    }

    /// A broker's address for the other brokers.
    pub fn peer_host(&self, _id: u32) -> String {
        match self.0 {}
    }

    /// The namespace that a broker lives in.
    pub fn namespace(&self, _id: u32) -> String {
        match self.0 {}
    }

    /// Says what happens to packets from one broker to another.
    pub fn set(&self, _from: u32, _to: u32, _link: Link) {
        match self.0 {}
    }

    /// Says what happens to all packets.
    pub fn set_all(&self, _link: Link) {
        match self.0 {}
    }

    /// Nothing gets from a broker to the others any more, or back.
    pub fn cut(&self, _id: u32) {
        match self.0 {}
    }

    /// Everything gets from a broker to the others, and back.
    pub fn heal(&self, _id: u32) {
        match self.0 {}
    }

    /// Packets from one broker to another so far.
    pub fn traffic(&self, _from: u32, _to: u32) -> Traffic {
        match self.0 {}
    }

    /// Packets between all brokers so far.
    pub fn all_traffic(&self) -> Traffic {
        match self.0 {}
    }
}
