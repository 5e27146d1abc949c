//! What a node's tasks share: its groups, who is alive, who leads, and the
//! moves when that changes. [`crate::RaftNode`] is the handle to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use bytes::Bytes;
use drave_storage::{GroupId, SharedStore};
use openraft::async_runtime::WatchReceiver;
use openraft::impls::EmptyNode;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::elections::{Elections, RETRY, TURN};
use crate::group::GroupInner;
use crate::leaders::Leaders;
use crate::repairs::Repairs;
use crate::runtime::{OPEN_GRACE, Service};
use crate::state_machine::PurgeDue;
use crate::transport::{Message, PeerEvent, Transport};
use crate::types::{Leadership, ReplicaId};
use crate::wire::{self, kind};

/// Shared by the node's tasks.
pub(crate) struct NodeInner {
    pub(crate) replica: ReplicaId,
    pub(crate) leaders: Leaders,
    pub(crate) transport: Arc<Transport>,
    pub(crate) elections: Arc<Elections>,
    pub(crate) store: SharedStore,
    pub(crate) repairs: Arc<Repairs>,
    /// Bytes of records that may still be taken from other nodes, until it is set again.
    pub(crate) room: AtomicU64,
    pub(crate) groups: RwLock<HashMap<GroupId, Arc<GroupInner>>>,
    /// Serialises opening and closing of one group; groups share 64 of them.
    pub(crate) opening: Vec<tokio::sync::Mutex<()>>,
    pub(crate) services: RwLock<HashMap<u8, Service>>,
    pub(crate) purge_due: mpsc::Sender<PurgeDue>,
    pub(crate) events: mpsc::Sender<PeerEvent>,
    /// Since when each peer's process has been known.
    pub(crate) up_since: Mutex<HashMap<ReplicaId, Instant>>,
    pub(crate) raft_config: Arc<openraft::Config>,
}

impl NodeInner {
    pub(crate) fn group(&self, group: GroupId) -> Option<Arc<GroupInner>> {
        self.groups
            .read()
            .expect("never poisoned")
            .get(&group)
            .cloned()
    }

    pub(crate) fn open_groups(&self) -> Vec<Arc<GroupInner>> {
        self.groups
            .read()
            .expect("never poisoned")
            .values()
            .cloned()
            .collect()
    }

    /// The group's leader, if its node is alive and is still the process that was elected.
    pub(crate) fn live_leader(&self, group: &GroupInner) -> Option<Leadership> {
        if group.suspect.load(Ordering::Acquire) {
            return None;
        }
        let here = group.raw_leadership();
        let heard = self.leaders.get(group.id);
        let newest = [here, heard]
            .into_iter()
            .flatten()
            .max_by_key(|known| known.term)?;
        // This replica has taken part in a later election: it refuses what that leader sends.
        if newest.term < group.vote().leader_id.term {
            return None;
        }
        // A leader that is moved away steps down in the end, and its node lives on.
        let voters = group.voters();
        if !voters.is_empty() && !voters.contains(&newest.leader) {
            return None;
        }
        let is_self = newest.leader.broker == self.replica.broker;
        let alive = if is_self {
            group.leading_term() == Some(newest.term)
        } else {
            self.is_there(newest.leader)
        };
        alive.then_some(newest)
    }

    pub(crate) async fn answer(
        &self,
        from: ReplicaId,
        service: u8,
        request: Bytes,
    ) -> Option<Bytes> {
        let service = self
            .services
            .read()
            .expect("never poisoned")
            .get(&service)
            .cloned()?;
        Some(service(from, request).await)
    }

    /// Whether this very replica is there, and not another one of its broker.
    pub(crate) fn is_there(&self, replica: ReplicaId) -> bool {
        self.transport.is_there(replica)
    }

    /// Whether the replica's process has been alive for that long.
    pub(crate) fn is_calm(&self, replica: ReplicaId, calm: Duration) -> bool {
        let up_since = self.up_since.lock().expect("never poisoned");
        let up = up_since
            .get(&replica)
            .is_some_and(|since| since.elapsed() >= calm);
        up && self.is_there(replica)
    }

    /// Called by the transport; must not block.
    pub(crate) fn on_peer(&self, event: PeerEvent) {
        if let PeerEvent::Up { peer, .. } | PeerEvent::Restarted { peer, .. } = &event {
            let mut up_since = self.up_since.lock().expect("never poisoned");
            up_since.insert(*peer, Instant::now());
        }
        match &event {
            PeerEvent::Down { broker, .. } => {
                self.leader_gone(*broker);
                self.quorums_lost(*broker);
            }
            PeerEvent::Restarted { peer, .. } => self.leader_gone(peer.broker),
            PeerEvent::Up { .. } => {}
        }
        if self.events.try_send(event).is_err() {
            warn!("too many peers come and go at once: an event is skipped");
        }
    }

    /// Every group that the broker led has to look for another leader.
    pub(crate) fn leader_gone(&self, broker: u32) {
        self.leaders.forget_broker(broker);
        let now = Instant::now();
        let mut orphans = 0u32;
        for group in self.open_groups() {
            if group
                .raw_leadership()
                .is_none_or(|known| known.leader.broker == broker)
            {
                group.suspect.store(true, Ordering::Release);
                let lease = group.lease_end() + Duration::from_millis(5);
                // Batches of 50 groups, so that thousands don't stand at once.
                let batch = Duration::from_millis(u64::from(orphans / 50) * 10);
                let at = lease.max(now) + TURN * self.turn(&group) + batch;
                self.elections.look_at(group.id, at);
                orphans += 1;
            }
        }
        info!(broker, groups = orphans, "a leader's node is gone");
    }

    /// Leaders here that can reach no quorum without the broker that went stop
    /// leading in others' eyes: the others may have elected somebody else.
    fn quorums_lost(&self, broker: u32) {
        let mut lost = 0u32;
        for group in self.open_groups() {
            let gone = |voter: &ReplicaId| voter.broker == broker;
            if group.leading_term().is_some() && !self.reaches_quorum(&group, gone) {
                group.quorum_lost();
                lost += 1;
            }
        }
        if lost > 0 {
            warn!(broker, groups = lost, "no quorum can be reached any more");
        }
    }

    /// Whether enough voters, but those left out, are there to commit something.
    fn reaches_quorum(&self, group: &GroupInner, left_out: impl Fn(&ReplicaId) -> bool) -> bool {
        let voters = group.voters();
        let there = voters.iter().filter(|voter| {
            **voter == group.replica || (!left_out(voter) && self.is_there(**voter))
        });
        there.count() > voters.len() / 2
    }

    /// A peer is there: groups that lacked a quorum may have one again. Whether
    /// this replica still leads them is asked first.
    async fn quorums_regained(&self) {
        let mut asked = JoinSet::new();
        for group in self.open_groups() {
            if group.is_cut_off() && self.reaches_quorum(&group, |_| false) {
                asked.spawn(async move {
                    group.doubt_leadership().await;
                    group.quorum_regained();
                });
            }
        }
        asked.join_all().await;
    }

    /// How many live replicas stand before this one: in the order of the
    /// placement, or where it is not known, of the voters, rotated by group.
    pub(crate) fn turn(&self, group: &GroupInner) -> u32 {
        let mut order = Vec::clone(&group.preferred());
        if !order.contains(&self.replica) {
            order = group.voters();
            if !order.is_empty() {
                let first = group.id.0 as usize % order.len();
                order.rotate_left(first);
            }
        }
        let before = order.iter().take_while(|replica| **replica != self.replica);
        before.filter(|replica| self.is_there(**replica)).count() as u32
    }

    /// A peer is (back) here: tell it what is led here, and go on replicating to it.
    pub(crate) async fn greet(&self, peer: ReplicaId) {
        self.send_leads(peer.broker, self.leaders.led_by(self.replica))
            .await;
        for group in self.open_groups() {
            if group.leading_term().is_some() {
                if let Err(error) = group.raft.trigger().reset_backoff([peer]).await {
                    debug!(group = %group.id, %error, "group is closing");
                }
            } else if self.live_leader(&group).is_none() {
                // A leader that is alive says so when it has met this node.
                let grace = match group.suspect.load(Ordering::Acquire) {
                    true => OPEN_GRACE,
                    false => Duration::ZERO,
                };
                let at = Instant::now() + grace + TURN * self.turn(&group);
                self.elections.look_at(group.id, at);
            }
        }
    }

    pub(crate) async fn send_leads(&self, broker: u32, groups: Vec<(u64, u64)>) {
        for part in groups.chunks(4_096) {
            let leads = wire::Leads {
                groups: part.to_vec(),
            };
            let header = wire::encode(&leads);
            let message = Message {
                kind: kind::LEADS,
                header,
                ..Message::default()
            };
            // A full queue empties or its connection ends, and then all is sent anew.
            while self.transport.is_alive(broker) && !self.transport.notify(broker, message.clone())
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// Looks whether a group has a live leader, and stands for election if not.
    pub(crate) async fn look(&self, group: &Arc<GroupInner>) {
        if self.live_leader(group).is_some() || group.leading_term().is_some() {
            return;
        }
        let now = Instant::now();
        let lease_end = group.lease_end() + Duration::from_millis(5);
        if lease_end > now {
            return self.elections.look_at(group.id, lease_end);
        }
        let is_voter = group.voters().contains(&self.replica);
        let is_empty = group
            .raft
            .metrics()
            .borrow_watched()
            .last_log_index
            .is_none();
        if is_empty && !group.founders.is_empty() {
            self.write_first_entry(group).await;
        } else if is_voter {
            debug!(group = %group.id, "standing for election");
            if group.raft.trigger().elect(true).await.is_err() {
                return;
            }
        } else {
            return;
        }
        let jitter = Duration::from_millis(rand::random_range(0..100));
        let again = now + RETRY + jitter + TURN / 3 * self.turn(group);
        self.elections.look_at(group.id, again);
    }

    pub(crate) async fn write_first_entry(&self, group: &GroupInner) {
        let nodes = group
            .founders
            .iter()
            .map(|replica| (*replica, EmptyNode::new()));
        let nodes: std::collections::BTreeMap<_, _> = nodes.collect();
        if let Err(error) = group.raft.initialize(nodes).await {
            debug!(group = %group.id, %error, "first entry not written");
        }
    }

    /// Publishes changes of a group's leadership until the group is closed.
    pub(crate) async fn follow(&self, group: &Arc<GroupInner>) {
        let mut metrics = group.raft.server_metrics();
        loop {
            match group.publish_leadership() {
                Some(Some(leadership)) if leadership.leader == self.replica => {
                    debug!(group = %group.id, term = leadership.term, "leads");
                    self.leaders.announce(group.id, leadership);
                }
                Some(Some(recalled)) if group.recalled == Some(recalled) => {}
                Some(Some(leadership)) => self.leaders.learn(group.id, leadership),
                Some(None) if group.leading_term().is_none() => {
                    let at = Instant::now() + RETRY + TURN * self.turn(group);
                    self.elections.look_at(group.id, at);
                }
                _ => {}
            }
            let changed = tokio::select! {
                changed = metrics.changed() => changed.is_ok(),
                () = group.progress().raft_entry_applied() => true,
                () = group.closed() => false,
            };
            if group.is_closed() {
                return;
            }
            let ended = group
                .raft
                .metrics()
                .borrow_watched()
                .running_state
                .clone()
                .err();
            if ended.is_some() || !changed {
                // Others count on this node for the group: a broker that goes
                // on without it would neither serve it nor let it be served.
                error!(group = %group.id, ?ended, "a group's Raft has failed, the process ends");
                std::process::abort();
            }
        }
    }
}

pub(crate) async fn run_elections(node: Arc<NodeInner>) {
    loop {
        let id = node.elections.next().await;
        if let Some(group) = node.group(id) {
            node.look(&group).await;
        }
    }
}

pub(crate) async fn run_announcements(node: Arc<NodeInner>) {
    loop {
        let groups = node.leaders.unannounced().await;
        for peer in node.transport.peers() {
            if peer.alive && peer.broker != node.replica.broker {
                node.send_leads(peer.broker, groups.clone()).await;
            }
        }
        // Leaderships come in bursts: gather the next ones.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) async fn run_greetings(node: Arc<NodeInner>, mut events: mpsc::Receiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::Up { peer, .. } | PeerEvent::Restarted { peer, .. } => {
                node.greet(peer).await;
                node.quorums_regained().await;
            }
            PeerEvent::Down { .. } => {}
        }
    }
}

/// Makes checkpoints the snapshots of their groups; openraft then purges up to them.
pub(crate) async fn run_purges(node: Arc<NodeInner>, mut purges: mpsc::Receiver<PurgeDue>) {
    while let Some(due) = purges.recv().await {
        let Some(group) = node.group(due.group) else {
            continue;
        };
        debug!(group = %due.group, index = due.index, "purging");
        if let Err(error) = group.raft.trigger().snapshot().await {
            debug!(group = %due.group, %error, "group is closing");
        }
    }
}
