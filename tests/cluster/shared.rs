//! One cluster for all tests of a program that leave it whole.

use std::fs::File;
use std::mem;
use std::process::{Command, Stdio};
use std::sync::{Once, OnceLock};

use super::kafka::Kafka;
use super::{Cluster, show_log};

/// Ours, or the cluster that `DRAVE_TEST_BOOTSTRAP` names.
pub enum Target {
    /// Started here.
    Own(Cluster),
    /// Up already.
    Given(String),
}

impl Target {
    /// Addresses of all brokers.
    pub fn bootstrap(&self) -> String {
        match self {
            Target::Own(cluster) => cluster.bootstrap(),
            Target::Given(bootstrap) => bootstrap.clone(),
        }
    }

    /// Address of one broker.
    pub fn address(&self) -> String {
        self.bootstrap()
            .split(',')
            .next()
            .expect("a broker")
            .to_owned()
    }

    /// A client of this cluster.
    pub fn kafka(&self) -> Kafka {
        Kafka::new(&self.bootstrap())
    }

    /// Whether the cluster is not ours.
    pub fn is_given(&self) -> bool {
        matches!(self, Target::Given(_))
    }
}

/// The cluster that all tests of this program share, started by the first of them. It ends when the program does.
pub fn shared() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| match std::env::var("DRAVE_TEST_BOOTSTRAP") {
        Ok(bootstrap) => Target::Given(bootstrap),
        Err(_) => {
            let cluster = Cluster::start();
            end_with_this_program(&cluster);
            show_logs_after_a_failure(&cluster);
            Target::Own(cluster)
        }
    })
}

/// What is static is never dropped. So a shell waits for our end of a pipe to close, which it does however this
/// program ends, and then ends the brokers; the folder stays if a test has failed.
fn end_with_this_program(cluster: &Cluster) {
    let pids: Vec<_> = cluster
        .nodes
        .iter()
        .map(|node| node.pid().to_string())
        .collect();
    let dir = cluster.dir().display();
    let script = format!(
        "trap '' INT; read -r _; kill -9 {}; [ -e '{dir}/failed' ] || rm -rf '{dir}'",
        pids.join(" ")
    );
    let shell = Command::new("sh")
        .arg("-c")
        .arg(script)
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    mem::forget(shell.expect("sh runs"));
}

fn show_logs_after_a_failure(cluster: &Cluster) {
    static ONCE: Once = Once::new();
    let marker = cluster.dir().join("failed");
    let logs: Vec<_> = cluster.nodes.iter().map(|node| node.log()).collect();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        ONCE.call_once(|| {
            File::create(&marker).ok();
            logs.iter().for_each(|log| show_log(log));
        });
    }));
}
