//! Makes a change show on every live broker before its client hears of it.
//!
//! Clients ask any broker for metadata: one that creates a topic here and is
//! told there that it does not exist gives up, or joins a group without its
//! partitions and stays idle until its next refresh, minutes later.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_raft::RaftNode;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::warn;

use super::Metadata;
use super::command::{decode, encode};

/// Number of the service among those of [`RaftNode::serve`].
const APPLIED_SERVICE: u8 = 3;
/// How long a change waits for brokers that lag.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells other brokers from now on when this one's image has got as far as they ask.
pub(super) fn serve(metadata: &Arc<Metadata>) {
    let weak = Arc::downgrade(metadata);
    let raft: &RaftNode = &metadata.raft;
    raft.serve(
        APPLIED_SERVICE,
        Arc::new(move |from, question: Bytes| {
            let metadata = weak.upgrade();
            Box::pin(async move {
                match (metadata, decode::<u64>(&question)) {
                    (Some(metadata), Ok(index)) => {
                        metadata
                            .wait_applied(index, Instant::now() + PATIENCE)
                            .await;
                    }
                    (None, _) => {}
                    (_, Err(error)) => warn!(broker = %from, %error, "question can't be read"),
                }
                Bytes::new()
            })
        }),
    );
}

/// Waits until the image of every live broker contains the entry at `index`,
/// for [`PATIENCE`] and until `deadline` at most.
pub(super) async fn spread(metadata: &Metadata, index: u64, deadline: Instant) {
    let timeout = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
    let peers = metadata.raft.watch_peers().borrow().clone();
    let mut calls = JoinSet::new();
    for peer in peers.into_iter().filter(|peer| peer.alive) {
        let raft = metadata.raft.clone();
        let question = encode(&index);
        calls.spawn(async move {
            raft.call(peer.broker, APPLIED_SERVICE, question, timeout)
                .await
        });
    }
    // One that does not answer is dying or far behind: it is not waited for.
    calls.join_all().await;
}
