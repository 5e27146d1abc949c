//! A network namespace for each broker, and the links to its clients, made by the
//! tool `ip`. They go with this value.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Packets that a broker may have sent and the switch has not fetched: of what comes in
/// one burst while the switch waits for a processor none shall be dropped.
const DEVICE_PACKETS: u32 = 4096;

/// Namespaces and client links.
#[derive(Debug)]
pub(super) struct Namespaces {
    /// Begins every name: network devices are named in 15 bytes.
    tag: String,
    /// The clients' side is `10.a.b.0/24`.
    clients: String,
    brokers: u32,
}

impl Namespaces {
    pub(super) fn new(brokers: u32) -> io::Result<Namespaces> {
        // Not all of a network that was deleted is gone at once: no name is used twice.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let subnet = pid.wrapping_mul(31).wrapping_add(number);
        let namespaces = Namespaces {
            tag: format!("d{pid:x}_{number}"),
            clients: format!("10.{}.{}", 192 + subnet / 256 % 32, subnet % 256),
            brokers,
        };
        let (tag, clients) = (&namespaces.tag, &namespaces.clients);
        let mut commands = format!(
            "link add {tag}c type bridge\nlink set {tag}c up\naddr add {clients}.254/24 dev {tag}c\n"
        );
        for id in 1..=brokers {
            let inside = namespaces.name(id);
            commands += &format!(
                "netns add {inside}\n\
                 link add {tag}c{id} type veth peer name c netns {inside}\n\
                 link set {tag}c{id} master {tag}c up\n"
            );
        }
        ip(&["-batch", "-"], &commands)?;
        for id in 1..=brokers {
            let host = namespaces.client_host(id);
            let commands = format!("link set lo up\naddr add {host}/24 dev c\nlink set c up\n");
            ip(&["-n", &namespaces.name(id), "-batch", "-"], &commands)?;
        }
        Ok(namespaces)
    }

    /// A broker's address for its clients.
    pub(super) fn client_host(&self, id: u32) -> String {
        format!("{}.{id}", self.clients)
    }

    /// A broker's address for the other brokers.
    pub(super) fn peer_host(&self, id: u32) -> String {
        format!("10.127.0.{id}")
    }

    /// The namespace that a broker lives in.
    pub(super) fn name(&self, id: u32) -> String {
        format!("{}n{id}", self.tag)
    }

    /// The name under which a broker's device to the others is made.
    pub(super) fn device(&self, id: u32) -> String {
        format!("{}p{id}", self.tag)
    }

    /// Moves that device into the broker's namespace, where it gets its address. Whoever
    /// has it open keeps it.
    pub(super) fn adopt(&self, id: u32) -> io::Result<()> {
        let (device, inside) = (self.device(id), self.name(id));
        ip(
            &["link", "set", "dev", &device, "netns", &inside, "name", "p"],
            "",
        )?;
        // Without an address for IPv6 the kernel sends nothing of its own accord.
        let commands = format!(
            "link set p txqueuelen {DEVICE_PACKETS} addrgenmode none\naddr add {}/24 dev p\nlink set p up\n",
            self.peer_host(id)
        );
        ip(&["-n", &inside, "-batch", "-"], &commands)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        // What was not made can't be deleted: a network that was made in part goes too.
        for id in 1..=self.brokers {
            ip(&["link", "del", &format!("{}c{id}", self.tag)], "").ok();
            ip(&["netns", "del", &self.name(id)], "").ok();
        }
        ip(&["link", "del", &format!("{}c", self.tag)], "").ok();
    }
}

/// Runs `ip`.
fn ip(arguments: &[&str], input: &str) -> io::Result<()> {
    let mut process = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            told(
                error.kind(),
                &format!("the tool `ip` can't be run: {error}"),
            )
        })?;
    let mut stdin = process.stdin.take().expect("piped");
    // An `ip` that has ended already says why below.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let ended = process.wait_with_output()?;
    if ended.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&ended.stderr);
    let line = format!("ip {}: {}", arguments.join(" "), complaint.trim());
    Err(told(io::ErrorKind::Other, &line))
}

fn told(kind: io::ErrorKind, line: &str) -> io::Error {
    io::Error::new(kind, line.to_owned())
}
