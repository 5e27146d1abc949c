//! The network as its owner has it: namespaces whose devices a [`Switch`] serves.

use super::links::{Links, Way};
use super::namespaces::Namespaces;
use super::switch::Switch;
use super::{Link, Traffic};
use std::io;
use tun_rs::{DeviceBuilder, SyncDevice};

/// A network that loses packets. Everything that was made for it goes when it is dropped.
#[derive(Debug)]
pub struct Network {
    // Closes the devices before the namespaces go.
    switch: Switch,
    namespaces: Namespaces,
}

impl Network {
    /// A network for brokers `1..=brokers`, all of whose packets arrive at once; the seed says
    /// which ones are lost later.
    ///
    /// # Errors
    /// When namespaces or devices can't be had here: they take root.
    pub fn new(brokers: u32, seed: u64) -> io::Result<Network> {
        let namespaces = Namespaces::new(brokers)?;
        let mut devices = Vec::new();
        for id in 1..=brokers {
            devices.push(device(&namespaces.device(id))?);
            namespaces.adopt(id)?;
        }
        let switch = Switch::start(devices, Links::new(brokers, seed))?;
        Ok(Network { switch, namespaces })
    }

    /// A broker's address for its clients.
    pub fn client_host(&self, id: u32) -> String {
        self.namespaces.client_host(id)
    }

    /// A broker's address for the other brokers.
    pub fn peer_host(&self, id: u32) -> String {
        self.namespaces.peer_host(id)
    }

    /// The namespace that a broker lives in.
    pub fn namespace(&self, id: u32) -> String {
        self.namespaces.name(id)
    }

    /// Says what happens to packets that one broker sends to another from now on. Those that
    /// are under way arrive as they would have.
    pub fn set(&self, from: u32, to: u32, link: Link) {
        self.switch.links().set(Way { from, to }, link);
    }

    /// Says what happens to packets that any broker sends to another from now on.
    pub fn set_all(&self, link: Link) {
        self.set_where(link, |_| true);
    }

    /// Nothing gets from a broker to the others any more, or back.
    pub fn cut(&self, id: u32) {
        self.set_where(Link::CUT, |way| way.from == id || way.to == id);
    }

    /// Everything gets from a broker to the others, and back.
    pub fn heal(&self, id: u32) {
        self.set_where(Link::default(), |way| way.from == id || way.to == id);
    }

    fn set_where(&self, link: Link, concerned: impl Fn(&Way) -> bool) {
        let mut links = self.switch.links();
        for way in links.ways().into_iter().filter(concerned) {
            links.set(way, link);
        }
    }

    /// Packets from one broker to another so far.
    pub fn traffic(&self, from: u32, to: u32) -> Traffic {
        self.switch.links().traffic(Way { from, to })
    }

    /// Packets between all brokers so far.
    pub fn all_traffic(&self) -> Traffic {
        let links = self.switch.links();
        let mut all = Traffic::default();
        for way in links.ways() {
            let traffic = links.traffic(way);
            all.passed += traffic.passed;
            all.lost += traffic.lost;
            all.dropped += traffic.dropped;
        }
        all
    }
}

/// A TUN device, which is there as long as it is open.
fn device(name: &str) -> io::Result<SyncDevice> {
    let made = DeviceBuilder::new().name(name).enable(false).build_sync();
    let device = made.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("TUN devices (/dev/net/tun) can't be had: {error}"),
        )
    })?;
    device.set_nonblocking(true)?;
    Ok(device)
}
