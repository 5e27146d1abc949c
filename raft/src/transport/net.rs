//! The sockets of the transport: tokio's, or under the feature `simulation` those of
//! turmoil's simulated network, which have the same names and calls.

#[cfg(not(feature = "simulation"))]
pub(crate) use tokio::net::{TcpListener, TcpStream, tcp::OwnedWriteHalf};
#[cfg(feature = "simulation")]
pub(crate) use turmoil::net::{TcpListener, TcpStream, tcp::OwnedWriteHalf};
