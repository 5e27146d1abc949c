//! What is known of one peer: its address, connections and signs of life.
//!
//! Shared by the peer's dialer, its connections' tasks and the liveness task.
//! Whichever process of the peer shook hands last is the current one. Signs of
//! life count only from connections of the current epoch: the epoch changes
//! when another process takes over and when the peer is declared down.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use super::connection::{Incoming, Outgoing};
use super::handshake::Identity;
use super::lock;
use crate::PeerStatus;

/// One peer.
pub(crate) struct Peer {
    pub(crate) broker: u32,
    /// The connection dialed from here; written only under `state`.
    pub(crate) outgoing: ArcSwapOption<Outgoing>,
    /// Wakes the dialer out of its pause.
    pub(crate) redial: Notify,
    /// Refused dials since the peer was last connected.
    pub(crate) refused: AtomicU32,
    /// The last handshake failed because one side belongs to another cluster.
    pub(crate) foreign: AtomicBool,
    state: Mutex<State>,
    epoch: AtomicU64,
    heard_ms: AtomicU64,
    sync_age_ms: AtomicU64,
    alive: AtomicBool,
}

#[derive(Default)]
struct State {
    address: Option<SocketAddr>,
    identity: Option<Identity>,
    met_ms: u64,
    incoming: Option<Arc<Incoming>>,
}

/// A peer as the liveness task judges it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vitals {
    pub(crate) identity: Identity,
    /// When any byte was last heard; 0: not since it was last declared down.
    pub(crate) heard_ms: u64,
    /// When this process of it first shook hands.
    pub(crate) met_ms: u64,
    pub(crate) can_send: bool,
    /// Both connections have ended and its port refuses new ones.
    pub(crate) gone: bool,
}

impl Peer {
    pub(crate) fn new(broker: u32) -> Peer {
        Peer {
            broker,
            outgoing: ArcSwapOption::empty(),
            redial: Notify::new(),
            refused: AtomicU32::new(0),
            foreign: AtomicBool::new(false),
            state: Mutex::default(),
            epoch: AtomicU64::new(1),
            heard_ms: AtomicU64::new(0),
            sync_age_ms: AtomicU64::new(0),
            alive: AtomicBool::new(false),
        }
    }

    /// Changes the address; true when this is the first one.
    pub(crate) fn move_to(&self, address: SocketAddr) -> bool {
        let mut state = lock(&self.state);
        let before = state.address.replace(address);
        if before.is_some_and(|before| before != address) {
            if let Some(link) = self.outgoing.load().as_ref() {
                link.outbox.close();
            }
            self.redial.notify_one();
        }
        before.is_none()
    }

    pub(crate) fn address(&self) -> Option<SocketAddr> {
        lock(&self.state).address
    }

    pub(crate) fn identity(&self) -> Option<Identity> {
        lock(&self.state).identity
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(crate) fn set_alive(&self, alive: bool) {
        self.alive.store(alive, Ordering::Release);
    }

    pub(crate) fn status(&self) -> PeerStatus {
        let identity = self.identity();
        PeerStatus {
            broker: self.broker,
            replica: identity.map(|identity| identity.replica),
            alive: self.is_alive(),
            incarnation: identity.map_or(0, |identity| identity.incarnation),
            sync_age_ms: self.sync_age_ms.load(Ordering::Relaxed),
        }
    }

    /// A sign of life on a connection of the given epoch.
    pub(crate) fn heard(&self, epoch: u64, now_ms: u64) {
        if self.epoch.load(Ordering::Acquire) == epoch {
            self.heard_ms.store(now_ms, Ordering::Release);
        }
    }

    pub(crate) fn set_sync_age(&self, sync_age_ms: u64) {
        self.sync_age_ms.store(sync_age_ms, Ordering::Relaxed);
    }

    /// Whether another process is connected as this broker and was heard within `dead_after_ms`.
    pub(crate) fn is_taken(&self, by: Identity, now_ms: u64, dead_after_ms: u64) -> bool {
        let state = lock(&self.state);
        let heard_ms = self.heard_ms.load(Ordering::Acquire);
        let fresh = heard_ms > 0 && now_ms.saturating_sub(heard_ms) < dead_after_ms;
        fresh
            && state
                .incoming
                .as_ref()
                .is_some_and(|link| link.identity != by)
    }

    /// Takes up a connection dialed from here; returns its epoch.
    pub(crate) fn attach_outgoing(&self, link: &Arc<Outgoing>, now_ms: u64) -> u64 {
        let mut state = lock(&self.state);
        self.meet(&mut state, link.identity, now_ms);
        if let Some(old) = self.outgoing.swap(Some(link.clone())) {
            old.close();
        }
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes up a connection that the peer dialed; returns its epoch.
    pub(crate) fn attach_incoming(&self, link: &Arc<Incoming>, now_ms: u64) -> u64 {
        let mut state = lock(&self.state);
        self.meet(&mut state, link.identity, now_ms);
        if let Some(old) = state.incoming.replace(link.clone()) {
            old.outbox.close();
        }
        if self.outgoing.load().is_none() {
            self.redial.notify_one();
        }
        self.epoch.load(Ordering::Acquire)
    }

    fn meet(&self, state: &mut State, identity: Identity, now_ms: u64) {
        if state.identity != Some(identity) {
            self.epoch.fetch_add(1, Ordering::AcqRel);
            self.close_links(state);
            state.identity = Some(identity);
            state.met_ms = now_ms;
        }
        self.refused.store(0, Ordering::Release);
        self.heard_ms.store(now_ms, Ordering::Release);
    }

    pub(crate) fn detach_outgoing(&self, link: &Arc<Outgoing>) {
        let _state = lock(&self.state);
        if self
            .outgoing
            .load()
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, link))
        {
            self.outgoing.store(None);
        }
    }

    pub(crate) fn detach_incoming(&self, link: &Arc<Incoming>) {
        let mut state = lock(&self.state);
        if state
            .incoming
            .as_ref()
            .is_some_and(|current| Arc::ptr_eq(current, link))
        {
            state.incoming = None;
        }
    }

    /// The connection to send a heartbeat on, if the peer dialed and we did not.
    pub(crate) fn incoming(&self) -> Option<Arc<Incoming>> {
        lock(&self.state).incoming.clone()
    }

    pub(crate) fn vitals(&self) -> Option<Vitals> {
        let state = lock(&self.state);
        let can_send = self.outgoing.load().is_some();
        let refused = self.refused.load(Ordering::Acquire) >= 2;
        Some(Vitals {
            identity: state.identity?,
            heard_ms: self.heard_ms.load(Ordering::Acquire),
            met_ms: state.met_ms,
            can_send,
            gone: refused && !can_send && state.incoming.is_none(),
        })
    }

    /// The peer is declared down: its connections end, so that waiting requests
    /// fail now, and only a new handshake brings it back.
    pub(crate) fn bury(&self) {
        let mut state = lock(&self.state);
        self.set_alive(false);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.heard_ms.store(0, Ordering::Release);
        self.close_links(&mut state);
    }

    fn close_links(&self, state: &mut State) {
        if let Some(link) = self.outgoing.swap(None) {
            link.close();
        }
        if let Some(link) = state.incoming.take() {
            link.outbox.close();
        }
    }

    pub(crate) fn close_other_clusters(&self, cluster_id: u128) {
        let state = lock(&self.state);
        let other = |theirs: Option<u128>| theirs.is_some_and(|theirs| theirs != cluster_id);
        if let Some(link) = self
            .outgoing
            .load()
            .as_ref()
            .filter(|link| other(link.cluster_id))
        {
            link.close();
        }
        if let Some(link) = state
            .incoming
            .as_ref()
            .filter(|link| other(link.cluster_id))
        {
            link.outbox.close();
        }
    }

    /// Bytes that wait for it on both connections.
    pub(crate) fn queued_bytes(&self) -> usize {
        let outgoing = self.outgoing.load_full();
        outgoing.map_or(0, |link| link.outbox.bytes())
            + self.incoming().map_or(0, |link| link.outbox.bytes())
    }

    pub(crate) fn is_drained(&self) -> bool {
        let incoming = self.incoming();
        self.outgoing
            .load()
            .as_ref()
            .is_none_or(|link| link.outbox.is_drained())
            && incoming.is_none_or(|link| link.outbox.is_drained())
    }
}
