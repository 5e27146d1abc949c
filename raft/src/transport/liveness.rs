//! Who is alive: heartbeats out, silence judged, events told.
//!
//! One task per node. It wakes at every heartbeat, and when a connection comes
//! or goes; it alone decides that a peer is up or down, and tells so in order.
//! It trusts its own clock only while it is itself on time: after a stall, its
//! own, peers get extra time to be heard of.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::handshake::Identity;
use super::peer::{Peer, Vitals};
use super::wire::Heartbeat;
use super::{PeerEvent, Shared};

/// The task was stalled when it wakes this much too late.
const STALL: Duration = Duration::from_millis(300);
/// A peer that can be heard but not yet reached is announced after this time.
const REACH_MS: u64 = 300;

/// The liveness task.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut announced: HashMap<u32, Identity> = HashMap::new();
    let mut patient_until = shared.now_ms();
    let mut due = Instant::now();
    loop {
        let on_time = tokio::select! {
            () = sleep_until(due) => true,
            () = shared.look.notified() => false,
        };
        let late = due.elapsed();
        if late > STALL {
            warn!(
                late_ms = late.as_millis() as u64,
                "this node was stalled, peers get more time"
            );
            patient_until = shared.now_ms() + shared.config.dead_after.as_millis() as u64 / 2;
        }
        if on_time {
            beat(&shared);
            due = Instant::now() + shared.config.heartbeat_every;
        }
        let mut changes = Vec::new();
        for peer in shared.peers.load().values() {
            let patient = shared.now_ms() < patient_until;
            let Some(vitals) = peer.vitals() else {
                continue;
            };
            let before = announced.get(&peer.broker).copied();
            let event = judge(&shared, peer, vitals, before, patient);
            match event {
                None => continue,
                Some(PeerEvent::Down { .. }) => {
                    announced.remove(&peer.broker);
                    peer.bury();
                }
                Some(_) => {
                    announced.insert(peer.broker, vitals.identity);
                    peer.set_alive(true);
                }
            }
            changes.extend(event);
        }
        if changes.is_empty() {
            continue;
        }
        shared.publish();
        for event in changes {
            shared.inbound.on_peer(event);
        }
    }
}

/// What has changed of a peer that was last announced as `before`.
fn judge(
    shared: &Shared,
    peer: &Peer,
    vitals: Vitals,
    before: Option<Identity>,
    patient: bool,
) -> Option<PeerEvent> {
    let now_ms = shared.now_ms();
    let silent_ms = now_ms.saturating_sub(vitals.heard_ms);
    let heard = vitals.heard_ms > 0 && silent_ms < shared.config.dead_after.as_millis() as u64;
    let reachable = vitals.can_send || now_ms.saturating_sub(vitals.met_ms) >= REACH_MS;
    let Identity {
        replica,
        incarnation,
    } = vitals.identity;
    match before {
        Some(before) if vitals.gone || !(heard || patient) => {
            warn!(
                broker = peer.broker,
                silent_ms,
                gone = vitals.gone,
                "peer is down"
            );
            Some(PeerEvent::Down {
                broker: peer.broker,
                peer: Some(before.replica),
            })
        }
        Some(before) if before != vitals.identity && reachable => {
            info!(peer = %replica, incarnation, "peer has restarted");
            Some(PeerEvent::Restarted {
                peer: replica,
                incarnation,
            })
        }
        None if heard && reachable && !vitals.gone => {
            info!(peer = %replica, incarnation, "peer is up");
            Some(PeerEvent::Up {
                peer: replica,
                incarnation,
            })
        }
        _ => None,
    }
}

/// One heartbeat to every peer that is connected either way.
fn beat(shared: &Shared) {
    let heartbeat = shared.heartbeat();
    for peer in shared.peers.load().values() {
        if let Some(link) = peer.outgoing.load().as_ref() {
            link.outbox.beat(heartbeat);
        } else if let Some(link) = peer.incoming() {
            link.outbox.beat(heartbeat);
        }
    }
}

impl Shared {
    /// What this node says when it says that it lives.
    pub(super) fn heartbeat(&self) -> Heartbeat {
        let sync_age_ms = (self.sync_age_ms)();
        Heartbeat {
            incarnation: self.config.incarnation,
            sync_age_ms,
        }
    }
}
