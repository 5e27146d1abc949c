//! A network that loses packets: each broker lives in a network namespace of its
//! own with a link to its clients, which is never hurt, and a TUN device towards
//! the other brokers. What brokers send to each other comes to this process,
//! which passes it on, later or not at all, by a [`Link`] for each direction.
//! Nobody is told of a packet that is lost: connections stay, and wait.
//!
//! It takes Linux, root, the tool `ip` and /dev/net/tun, and no netem, which
//! small kernels lack.
//!
//! What it does not imitate: packets of one direction never overtake each other,
//! as on one path through real networks; jitter keeps later packets behind one
//! that is late. There is no limit to the rate. Packets are not damaged or
//! doubled, which TCP would hide anyway.

#[cfg(target_os = "linux")]
mod links;
#[cfg(target_os = "linux")]
mod namespaces;
#[cfg(target_os = "linux")]
mod switch;
#[cfg(target_os = "linux")]
mod switched;

#[cfg(not(target_os = "linux"))]
mod elsewhere;

#[cfg(not(target_os = "linux"))]
pub use elsewhere::Network;
#[cfg(target_os = "linux")]
pub use switched::Network;

use std::time::Duration;

/// What happens to packets from one broker to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Link {
    /// Which part of them is lost, from 0 to 1.
    pub lost: f64,
    /// How long each is under way,
    pub delay: Duration,
    /// but for a time that is less or more by up to this.
    pub jitter: Duration,
}

impl Link {
    /// Nothing arrives.
    pub const CUT: Link = Link {
        lost: 1.0,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
    };
}

/// Packets from one broker to another so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Those that were delivered.
    pub passed: u64,
    /// Those that were lost as the link says.
    pub lost: u64,
    /// Those that were dropped because too many were under way, or because the
    /// receiver's device did not take them.
    pub dropped: u64,
}
