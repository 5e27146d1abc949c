//! A network of its own for each broker, whose link to the other brokers can be cut while its clients still reach it.
//!
//! Every broker lives in a network namespace with two links: one to a bridge where the test's clients are, one to a
//! bridge that only brokers are on. This takes root and the tool `ip`; without them a test says that it is skipped.

use std::io::Write;
use std::process::{Command, Stdio};

/// Namespaces and bridges; they go with this value.
pub struct Network {
    /// Begins every name: network devices are named in 15 bytes.
    tag: String,
    /// The clients' side is `10.a.b.0/24`.
    clients: String,
    count: u16,
}

impl Network {
    /// Networks for `count` brokers, or why they can't be had here.
    pub fn new(count: u16) -> Result<Network, String> {
        let pid = std::process::id();
        let network = Network {
            tag: format!("dr{pid}"),
            clients: format!("10.{}.{}", 128 + pid / 256 % 64, pid % 256),
            count,
        };
        let (tag, clients) = (&network.tag, &network.clients);
        let mut commands = format!(
            "link add {tag}c type bridge\nlink set {tag}c up\naddr add {clients}.254/24 dev {tag}c\n\
             link add {tag}p type bridge\nlink set {tag}p up\n"
        );
        for id in 1..=count {
            let inside = network.namespace(i32::from(id));
            commands += &format!("netns add {inside}\n");
            for side in ["c", "p"] {
                commands += &format!(
                    "link add {tag}{side}{id} type veth peer name {side} netns {inside}\n\
                     link set {tag}{side}{id} master {tag}{side} up\n"
                );
            }
        }
        ip(&["-batch", "-"], &commands)?;
        for id in 1..=i32::from(count) {
            let commands = format!(
                "link set lo up\naddr add {}/24 dev c\nlink set c up\naddr add {}/24 dev p\nlink set p up\n",
                network.client_host(id),
                network.peer_host(id),
            );
            ip(&["-n", &network.namespace(id), "-batch", "-"], &commands)?;
        }
        Ok(network)
    }

    /// Address of a broker on the side of its clients.
    pub fn client_host(&self, id: i32) -> String {
        format!("{}.{id}", self.clients)
    }

    /// Address of a broker on the side of the other brokers.
    pub fn peer_host(&self, id: i32) -> String {
        format!("10.127.0.{id}")
    }

    /// Name of a broker's namespace.
    pub fn namespace(&self, id: i32) -> String {
        format!("{}n{id}", self.tag)
    }

    /// Nothing gets from a broker to the others any more, or back; nobody is told.
    pub fn cut(&self, id: i32) {
        self.link(id, "down");
    }

    /// The link is there again.
    pub fn heal(&self, id: i32) {
        self.link(id, "up");
    }

    fn link(&self, id: i32, state: &str) {
        let device = format!("{}p{id}", self.tag);
        ip(&["link", "set", &device, state], "").expect("a link made here");
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // What was not made can't be deleted: a network that was made in part goes too.
        for id in 1..=i32::from(self.count) {
            ip(&["netns", "del", &self.namespace(id)], "").ok();
        }
        for side in ["c", "p"] {
            ip(&["link", "del", &format!("{}{side}", self.tag)], "").ok();
        }
    }
}

/// Runs `ip`; its complaint, if it has one.
fn ip(arguments: &[&str], input: &str) -> Result<(), String> {
    let mut process = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("ip can't be run: {error}"))?;
    let mut stdin = process.stdin.take().expect("piped");
    // An `ip` that has ended already says why below.
    stdin.write_all(input.as_bytes()).ok();
    drop(stdin);
    let ended = process.wait_with_output().map_err(|e| e.to_string())?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&ended.stderr).trim().to_owned()),
    }
}
