//! The thread that carries packets from device to device. It owns the devices,
//! sleeps until there is a packet or one is due, and ends with its [`Switch`].

use super::links::{Links, Way};
use parking_lot::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, write};
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tracing::{error, warn};
use tun_rs::SyncDevice;

/// A device hands out no packet that is longer: IPv4 has none.
const PACKET_BYTES_MAX: usize = 65_535;
/// Packets of one device before it is the others' turn.
const BATCH_PACKETS: usize = 64;

/// Carries packets until it is dropped.
pub(super) struct Switch {
    links: Arc<Mutex<Links>>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// The devices are those of brokers 1, 2 and so on, and don't block.
    pub(super) fn start(devices: Vec<SyncDevice>, links: Links) -> io::Result<Switch> {
        let links = Arc::new(Mutex::new(links));
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let ports = Ports {
            devices: devices.into_iter().map(Some).collect(),
            links: Arc::clone(&links),
            stop: Arc::clone(&stop),
            packet: vec![0; PACKET_BYTES_MAX],
        };
        let thread = thread::Builder::new()
            .name("switch".to_owned())
            .spawn(move || ports.run())?;
        Ok(Switch {
            links,
            stop,
            thread: Some(thread),
        })
    }

    /// What becomes of packets; none is carried while this is held.
    pub(super) fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock()
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Switch").finish_non_exhaustive()
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // It counts to one only: there is room.
        write(&*self.stop, &1_u64.to_ne_bytes()).ok();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            error!("the switch between brokers panicked");
        }
    }
}

/// What the thread has.
struct Ports {
    /// Of each broker, unless it failed.
    devices: Vec<Option<SyncDevice>>,
    links: Arc<Mutex<Links>>,
    stop: Arc<OwnedFd>,
    packet: Vec<u8>,
}

impl Ports {
    fn run(mut self) {
        loop {
            let next_due = self.deliver_due();
            match self.wait(next_due) {
                Ok(Wake::Stop) => return,
                Ok(Wake::Brokers(brokers)) => {
                    for id in brokers {
                        self.fetch(id);
                    }
                }
                Err(error) => {
                    error!(%error, "the switch between brokers can't wait for packets");
                    return;
                }
            }
        }
    }

    /// Gives every packet that is due to its receiver; when the next one is.
    fn deliver_due(&self) -> Option<Instant> {
        let mut links = self.links.lock();
        let now = Instant::now();
        while let Some((way, packet)) = links.due(now) {
            give(&self.devices, &mut links, way, &packet);
        }
        links.next_due()
    }

    /// Sleeps until brokers have sent something, until that time, or until the end.
    fn wait(&self, until: Option<Instant>) -> io::Result<Wake> {
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec::try_from(left).expect("delays are short")
        });
        let mut brokers = Vec::with_capacity(self.devices.len());
        let mut polled = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        for (device, id) in self.devices.iter().zip(1..) {
            if let Some(device) = device {
                brokers.push(id);
                polled.push(PollFd::new(device, PollFlags::IN));
            }
        }
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let woken: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
        if woken[0] {
            return Ok(Wake::Stop);
        }
        let sent = brokers.into_iter().zip(&woken[1..]);
        let brokers = sent.filter_map(|(id, woken)| woken.then_some(id)).collect();
        Ok(Wake::Brokers(brokers))
    }

    /// Takes packets that a broker sent, and passes on what passes at once.
    fn fetch(&mut self, id: u32) {
        let index = id as usize - 1;
        let mut links = self.links.lock();
        for _ in 0..BATCH_PACKETS {
            let Some(device) = &self.devices[index] else {
                return;
            };
            match device.recv(&mut self.packet) {
                Ok(bytes) => {
                    let packet = &self.packet[..bytes];
                    if let Some(way) = links.take(id, packet, Instant::now()) {
                        give(&self.devices, &mut links, way, packet);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    // Its namespace is gone, which nobody but the owner of the network does.
                    warn!(broker = id, %error, "a broker's device to its peers failed");
                    self.devices[index] = None;
                }
            }
        }
    }
}

enum Wake {
    Stop,
    /// Those that have sent something.
    Brokers(Vec<u32>),
}

fn give(devices: &[Option<SyncDevice>], links: &mut Links, way: Way, packet: &[u8]) {
    let device = devices[way.to as usize - 1].as_ref();
    // A device takes a packet whole, or it is full or down.
    let taken = device.is_some_and(|device| device.send(packet).is_ok());
    links.given(way, taken);
}
