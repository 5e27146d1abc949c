//! What peers send to this node's groups: the receiving half of `crate::net`.
//!
//! Everything here is called by the transport's reader tasks and must not
//! block. Appends of one group from one peer keep their order: they go through
//! a feed, a task that exists while appends arrive.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use drave_storage::GroupId;
use futures_util::StreamExt;
use openraft::StoredMembership;
use openraft::raft::{StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest};
use openraft::storage::{Snapshot, SnapshotMeta};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::config::Types;
use crate::entry::decode_membership;
use crate::group::GroupInner;
use crate::node::NodeInner;
use crate::transport::{Inbound, Message, PeerEvent, ReplySender};
use crate::types::{Leadership, ReplicaId};
use crate::wire::{self, Append, AppendReply, kind};

/// Appends that wait in one feed at most; a peer keeps fewer on their way.
const FEED_CAPACITY: usize = 64;
/// Appends of one feed that openraft works on at most.
const FEED_WINDOW: usize = 48;
/// Appends with this much payload are records, on the whole, and go when the disk is full.
const BULKY_BYTES_MIN: u64 = 4 << 10;
/// A feed without work ends after this time.
const FEED_IDLE: Duration = Duration::from_secs(10);

type FeedKey = (GroupId, ReplicaId);
type FeedItem = (Append, ReplySender);

/// Dispatches requests of peers.
pub(crate) struct Receiver {
    node: Weak<NodeInner>,
    feeds: Arc<Mutex<HashMap<FeedKey, mpsc::Sender<FeedItem>>>>,
}

impl Receiver {
    pub(crate) fn new(node: Weak<NodeInner>) -> Self {
        Receiver {
            node,
            feeds: Arc::default(),
        }
    }

    fn on_append(
        &self,
        group: &Arc<GroupInner>,
        from: ReplicaId,
        message: &Message,
        reply: ReplySender,
    ) {
        let append = match wire::decode_append(message) {
            Ok((to, append)) if to == group.replica.directory => append,
            Ok(_) => return debug!(%from, "append for another directory id refused"),
            Err(reason) => return warn!(%from, group = %group.id, reason, "append refused"),
        };
        group.append_arrived();
        // One without entries keeps its place too: ahead of the entries that it
        // follows it would be a conflict, and openraft's leader would begin anew.
        let mut feeds = self.feeds.lock().expect("never poisoned");
        let item = match feeds.get(&(group.id, from)) {
            None => (append, reply),
            Some(feed) => match feed.try_send((append, reply)) {
                Ok(()) => return,
                Err(mpsc::error::TrySendError::Closed(item)) => item,
                // Dropped: the peer sends more than it may, and will send again.
                Err(mpsc::error::TrySendError::Full(_)) => return,
            },
        };
        let (feed, items) = mpsc::channel(FEED_CAPACITY);
        if feed.try_send(item).is_ok() {
            feeds.insert((group.id, from), feed);
            tokio::spawn(run_feed(group.clone(), from, items, self.feeds.clone()));
        }
    }
}

/// Passes appends on in order and answers in order, until idle or closed.
async fn run_feed(
    group: Arc<GroupInner>,
    from: ReplicaId,
    mut items: mpsc::Receiver<FeedItem>,
    feeds: Arc<Mutex<HashMap<FeedKey, mpsc::Sender<FeedItem>>>>,
) {
    let work = async {
        while let Some(first) = next_or_end(&mut items, &feeds, (group.id, from)).await {
            pass_on(&group, first, &mut items).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = group.closed() => {
            feeds.lock().expect("never poisoned").remove(&(group.id, from));
        }
    }
}

async fn next_or_end(
    items: &mut mpsc::Receiver<FeedItem>,
    feeds: &Mutex<HashMap<FeedKey, mpsc::Sender<FeedItem>>>,
    key: FeedKey,
) -> Option<FeedItem> {
    loop {
        if let Ok(item) = tokio::time::timeout(FEED_IDLE, items.recv()).await {
            return item;
        }
        // Senders hold this lock: what is empty now stays empty.
        let mut feeds = feeds.lock().expect("never poisoned");
        if items.is_empty() {
            feeds.remove(&key);
            return None;
        }
    }
}

/// One pipelined stream into openraft: ends when nothing is under way, or after
/// an append that did not fit, which ends openraft's stream.
async fn pass_on(group: &GroupInner, first: FeedItem, items: &mut mpsc::Receiver<FeedItem>) {
    let (appends, queue) = mpsc::channel::<Append>(FEED_CAPACITY);
    let input = futures_util::stream::unfold(queue, |mut queue| async move {
        queue.recv().await.map(|append| (append, queue))
    });
    let mut results = std::pin::pin!(group.raft.stream_append(input));
    let mut waiting = VecDeque::new();
    let mut next = Some(first);
    loop {
        if let Some((append, reply)) = next.take() {
            if appends.send(append).await.is_err() {
                return;
            }
            waiting.push_back(reply);
        }
        if waiting.is_empty() {
            return;
        }
        tokio::select! {
            biased;
            result = results.next() => {
                let Some(Ok(result)) = result else { return };
                let ended = result.is_err();
                if let Some(reply) = waiting.pop_front() {
                    reply.send(append_reply(result));
                }
                if ended {
                    return;
                }
            }
            item = items.recv(), if waiting.len() < FEED_WINDOW => match item {
                Some(item) => next = Some(item),
                None => return,
            }
        }
    }
}

fn append_reply(result: StreamAppendResult<Types>) -> Message {
    let reply = match result {
        Ok(id) => AppendReply::Stored(id.as_ref().map(wire::id_record)),
        Err(StreamAppendError::Conflict(id)) => AppendReply::Conflict(wire::id_record(&id)),
        Err(StreamAppendError::HigherVote(vote)) => AppendReply::HigherVote((&vote).into()),
    };
    header_only(kind::APPEND, &reply)
}

fn header_only<T: serde::Serialize>(kind: u8, header: &T) -> Message {
    Message {
        kind,
        group: 0,
        header: wire::encode(header),
        payload: Vec::new(),
    }
}

async fn on_vote(
    node: Arc<NodeInner>,
    group: Arc<GroupInner>,
    message: Message,
    reply: ReplySender,
) {
    let Ok(header) = wire::decode::<wire::VoteHeader>(&message.header) else {
        return;
    };
    if header.to != group.replica.directory {
        return;
    }
    let candidate = header.vote.replica;
    let request = VoteRequest::<Types> {
        vote: header.vote.into(),
        last_log_id: header.last.map(wire::id_from),
        leadership_transfer: header.transfer,
    };
    if message.kind == kind::PRE_VOTE
        && let Some(term) = group.leading_term()
        && header.vote.term > term + 1
    {
        // It has voted later than for this leader, who may have been deposed without hearing of it.
        group.doubt_leadership().await;
    }
    let answer = if message.kind == kind::VOTE {
        group.raft.vote(request).await
    } else if let Some(live) = node
        .live_leader(&group)
        .filter(|live| live.leader != candidate)
    {
        // Nobody can know better whether a leader at rest lives than its node's heartbeat.
        debug!(group = %group.id, %candidate, leader = %live.leader, "pre-vote denied");
        // With the vote held here: the candidate would take any later one, also its own, for
        // an election that it has missed, and raise its term without being elected.
        let vote = wire::VoteReply {
            vote: (&group.vote()).into(),
            granted: false,
            last: None,
        };
        return reply.send(header_only(message.kind, &vote));
    } else {
        group.raft.pre_vote(request).await
    };
    let Ok(answer) = answer else { return };
    let answer = wire::VoteReply {
        vote: (&answer.vote).into(),
        granted: answer.vote_granted,
        last: answer.last_log_id.as_ref().map(wire::id_record),
    };
    reply.send(header_only(message.kind, &answer));
}

async fn on_transfer(group: Arc<GroupInner>, message: Message, reply: ReplySender) {
    let Ok(header) = wire::decode::<wire::TransferHeader>(&message.header) else {
        return;
    };
    let request = TransferLeaderRequest::new(
        header.from.into(),
        header.to,
        header.last.map(wire::id_from),
    );
    let accepted = group.raft.handle_transfer_leader(request).await.is_ok();
    reply.send(header_only(kind::TRANSFER, &accepted));
}

async fn on_snapshot(group: Arc<GroupInner>, message: Message, reply: ReplySender) {
    let Ok(header) = wire::decode::<wire::SnapshotHeader>(&message.header) else {
        return;
    };
    if header.to != group.replica.directory {
        return;
    }
    let Ok(membership) = decode_membership(&header.membership) else {
        return;
    };
    let meta = SnapshotMeta {
        last_log_id: header.last.map(wire::id_from),
        last_membership: StoredMembership::new(header.membership_at.map(wire::id_from), membership),
    };
    let snapshot = Snapshot {
        meta,
        snapshot: wire::joined(&message.payload),
    };
    if let Ok(answer) = group
        .raft
        .install_full_snapshot(header.vote.into(), snapshot)
        .await
    {
        reply.send(header_only(
            kind::SNAPSHOT,
            &wire::VoteRecord::from(&answer.vote),
        ));
    }
}

impl Inbound for Receiver {
    fn on_request(&self, from: ReplicaId, message: Message, reply: ReplySender) {
        let Some(node) = self.node.upgrade() else {
            return;
        };
        match message.kind {
            kind::LEADS => return on_leads(&node, from, &message),
            kind::CALL => {
                tokio::spawn(async move {
                    let service = message.group as u8;
                    let request = wire::joined(&message.payload);
                    if let Some(answer) = node.answer(from, service, request).await {
                        let payload = vec![answer];
                        reply.send(Message {
                            kind: kind::CALL,
                            payload,
                            ..Message::default()
                        });
                    }
                });
                return;
            }
            // Also while the group is being opened: two replicas may need each other's entries for that.
            kind::ENTRIES if node.repairs.knows(GroupId(message.group)) => {
                tokio::spawn(node.repairs.clone().answer(message, reply));
                return;
            }
            kind::ENTRIES => return,
            _ => {}
        }
        // Not (yet) open here: dropping the reply tells the peer to try again later.
        let Some(group) = node.group(GroupId(message.group)) else {
            return;
        };
        match message.kind {
            kind::APPEND if group.grows && !has_room(&node, &message) => {
                debug!(%from, group = %group.id, "append refused, the disk is full");
            }
            kind::APPEND => self.on_append(&group, from, &message, reply),
            kind::VOTE | kind::PRE_VOTE => {
                tokio::spawn(on_vote(node, group, message, reply));
            }
            kind::TRANSFER => {
                tokio::spawn(on_transfer(group, message, reply));
            }
            kind::SNAPSHOT => {
                tokio::spawn(on_snapshot(group, message, reply));
            }
            unknown => warn!(%from, kind = unknown, "message of an unknown kind ignored"),
        }
    }

    fn on_peer(&self, event: PeerEvent) {
        if let Some(node) = self.node.upgrade() {
            node.on_peer(event);
        }
    }
}

/// Whether there is room for what an append brings, which is taken then. What
/// keeps a log going is small, and always has room, as have groups that keep
/// themselves small: the command that frees space may be on its way to one.
fn has_room(node: &NodeInner, message: &Message) -> bool {
    let bytes = message.payload.iter().map(Bytes::len).sum::<usize>() as u64;
    let less = |room: u64| room.checked_sub(bytes);
    let taken = node
        .room
        .fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
    bytes < BULKY_BYTES_MIN || taken.is_ok()
}

fn on_leads(node: &NodeInner, from: ReplicaId, message: &Message) {
    let Ok(leads) = wire::decode::<wire::Leads>(&message.header) else {
        return warn!(%from, "unreadable list of leaderships ignored");
    };
    for (group, term) in leads.groups {
        let group = GroupId(group);
        node.leaders.learn(group, Leadership { term, leader: from });
        if let Some(local) = node.group(group) {
            local.leader_heard(term);
        }
    }
}

/// The transport starts before the node exists, and may already deliver.
pub(crate) struct LateReceiver {
    pub(crate) slot: Arc<std::sync::OnceLock<std::sync::Weak<NodeInner>>>,
    pub(crate) receiver: std::sync::OnceLock<Receiver>,
}

impl LateReceiver {
    fn receiver(&self) -> Option<&Receiver> {
        let node = self.slot.get()?;
        Some(self.receiver.get_or_init(|| Receiver::new(node.clone())))
    }
}

impl Inbound for LateReceiver {
    fn on_request(&self, from: ReplicaId, message: Message, reply: ReplySender) {
        if let Some(receiver) = self.receiver() {
            receiver.on_request(from, message, reply);
        }
    }

    fn on_peer(&self, event: PeerEvent) {
        if let Some(receiver) = self.receiver() {
            receiver.on_peer(event);
        }
    }
}
