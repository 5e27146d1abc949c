//! A network namespace for each broker, with one link to the clients and one to
//! the other brokers, so that brokers can be cut off from each other while
//! their clients still reach them. Linux, as root, with the tool `ip`.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

/// Namespaces and bridges; they go with this value.
#[derive(Debug)]
pub(super) struct Network {
    /// Begins every name: network devices are named in 15 bytes.
    tag: String,
    /// The clients' side is `10.a.b.0/24`.
    clients: String,
    brokers: u32,
}

impl Network {
    /// Networks for so many brokers, or why they can't be had here.
    pub(super) fn new(brokers: u32) -> anyhow::Result<Network> {
        // Not all of a network that was deleted is gone at once: no name is used twice.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let subnet = pid.wrapping_mul(31).wrapping_add(number);
        let network = Network {
            tag: format!("d{pid:x}{number}"),
            clients: format!("10.{}.{}", 192 + subnet / 256 % 32, subnet % 256),
            brokers,
        };
        let (tag, clients) = (&network.tag, &network.clients);
        let mut commands = format!(
            "link add {tag}c type bridge\nlink set {tag}c up\naddr add {clients}.254/24 dev {tag}c\n\
             link add {tag}p type bridge\nlink set {tag}p up\n"
        );
        for id in 1..=brokers {
            let inside = network.namespace(id);
            commands += &format!("netns add {inside}\n");
            for side in ["c", "p"] {
                commands += &format!(
                    "link add {tag}{side}{id} type veth peer name {side} netns {inside}\n\
                     link set {tag}{side}{id} master {tag}{side} up\n"
                );
            }
        }
        ip(&["-batch", "-"], &commands)?;
        for id in 1..=brokers {
            let commands = format!(
                "link set lo up\naddr add {}/24 dev c\nlink set c up\naddr add {}/24 dev p\nlink set p up\n",
                network.client_host(id),
                network.peer_host(id),
            );
            ip(&["-n", &network.namespace(id), "-batch", "-"], &commands)?;
        }
        Ok(network)
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
    pub(super) fn namespace(&self, id: u32) -> String {
        format!("{}n{id}", self.tag)
    }

    /// What a broker sends to another one is lost from now on. Nobody is told.
    pub(super) fn lose(&self, from: u32, to: u32) -> anyhow::Result<()> {
        self.route("add", from, to)
    }

    /// It arrives again.
    pub(super) fn deliver(&self, from: u32, to: u32) -> anyhow::Result<()> {
        self.route("del", from, to)
    }

    fn route(&self, verb: &str, from: u32, to: u32) -> anyhow::Result<()> {
        let (inside, host) = (self.namespace(from), format!("{}/32", self.peer_host(to)));
        ip(&["-n", &inside, "route", verb, "blackhole", &host], "")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made can't be deleted: a network that was made in part goes too.
        for id in 1..=self.brokers {
            for side in ["c", "p"] {
                ip(&["link", "del", &format!("{}{side}{id}", self.tag)], "").ok();
            }
            ip(&["netns", "del", &self.namespace(id)], "").ok();
        }
        for side in ["c", "p"] {
            ip(&["link", "del", &format!("{}{side}", self.tag)], "").ok();
        }
    }
}

/// Runs `ip`.
fn ip(arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut process = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("the tool `ip` can't be run")?;
    let mut stdin = process.stdin.take().expect("piped");
    // An `ip` that has ended already says why below.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let ended = process.wait_with_output()?;
    if !ended.status.success() {
        let complaint = String::from_utf8_lossy(&ended.stderr);
        bail!("ip {}: {}", arguments.join(" "), complaint.trim());
    }
    Ok(())
}
