//! openraft's network, on the node's transport: the sending half.
//!
//! One client per group and target. Appends are pipelined: up to
//! `APPENDS_IN_FLIGHT` requests of a group are on their way to one peer.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use drave_storage::GroupId;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::EmptyNode;
use openraft::network::{
    Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
};
use openraft::raft::{
    SnapshotResponse, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{OptionalSend, RaftNetworkFactory};

use crate::config::{Types, VOTE_TIMEOUT};
use crate::entry::{EntryId, encode_membership};
use crate::notices;
use crate::transport::{Message, Transport, TransportError};
use crate::types::ReplicaId;
use crate::wire::{self, Append, AppendReply, RaftVote, kind};

/// Append requests of one group that are on their way to one peer at most.
const APPENDS_IN_FLIGHT: usize = 16;
/// An append that is not answered in this time is sent again.
const APPEND_TIMEOUT: Duration = Duration::from_secs(10);
/// A snapshot that is not answered in this time is sent again.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the clients of one group.
pub(crate) struct Network {
    pub(crate) group: GroupId,
    pub(crate) transport: Arc<Transport>,
    pub(crate) commit_notice_wait: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: ReplicaId, _node: &EmptyNode) -> Client {
        Client {
            group: self.group,
            target,
            transport: self.transport.clone(),
            commit_notice_wait: self.commit_notice_wait,
        }
    }
}

/// Sends to one replica of a group.
pub(crate) struct Client {
    group: GroupId,
    target: ReplicaId,
    transport: Arc<Transport>,
    commit_notice_wait: Duration,
}

impl Client {
    fn request(
        &self,
        message: Message,
        timeout: Duration,
    ) -> impl Future<Output = Result<Message, TransportError>> + Send + 'static {
        self.transport.request(self.target.broker, message, timeout)
    }

    async fn vote_request(
        &mut self,
        kind: u8,
        request: VoteRequest<Types>,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let header = wire::VoteHeader {
            to: self.target.directory,
            vote: (&request.vote).into(),
            last: request.last_log_id.as_ref().map(wire::id_record),
            transfer: request.leadership_transfer,
        };
        let reply = self
            .request(self.message(kind, wire::encode(&header)), VOTE_TIMEOUT)
            .await;
        let reply = reply.map_err(unreachable)?;
        let reply: wire::VoteReply = wire::decode(&reply.header).map_err(garbled)?;
        Ok(VoteResponse::new(
            RaftVote::from(reply.vote),
            reply.last.map(wire::id_from),
            reply.granted,
        ))
    }

    fn message(&self, kind: u8, header: Bytes) -> Message {
        Message {
            kind,
            group: self.group.0,
            header,
            payload: Vec::new(),
        }
    }
}

fn unreachable(error: TransportError) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(error))
}

fn garbled(reason: String) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(reason))
}

fn append_result(
    reply: Result<Message, TransportError>,
) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
    let reply = reply.map_err(unreachable)?;
    Ok(match wire::decode(&reply.header).map_err(garbled)? {
        AppendReply::Stored(id) => Ok(id.map(wire::id_from)),
        AppendReply::Conflict(id) => Err(StreamAppendError::Conflict(wire::id_from(id))),
        AppendReply::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
    })
}

impl NetStreamAppend<Types> for Client {
    #[expect(
        clippy::async_yields_async,
        reason = "a request is queued in order, its reply is awaited later"
    )]
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        _option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = Append> + OptionalSend + Unpin + 'static,
    {
        let client: &Client = self;
        let replies = notices::held(input, self.commit_notice_wait)
            .then(move |append| async move {
                let message = wire::encode_append(client.group.0, client.target, append);
                let bytes = message.payload.iter().map(Bytes::len).sum();
                client
                    .transport
                    .ready_for(client.target.broker, bytes)
                    .await;
                // Queued here, in order; only the reply is awaited later.
                client.request(message, APPEND_TIMEOUT).map(append_result)
            })
            .buffered(APPENDS_IN_FLIGHT);
        let replies: BoxStream<'s, _> = Box::pin(replies);
        Box::pin(std::future::ready(Ok(replies)))
    }
}

impl NetVote<Types> for Client {
    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_request(kind::VOTE, request).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.vote_request(kind::PRE_VOTE, request).await
    }
}

impl NetSnapshot<Types> for Client {
    type SnapshotData = Bytes;

    async fn full_snapshot(
        &mut self,
        vote: RaftVote,
        snapshot: SnapshotOf<Types, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let membership = &snapshot.meta.last_membership;
        let header = wire::SnapshotHeader {
            to: self.target.directory,
            vote: (&vote).into(),
            last: snapshot.meta.last_log_id.as_ref().map(wire::id_record),
            membership_at: membership.log_id().as_ref().map(wire::id_record),
            membership: encode_membership(membership.membership()).to_vec(),
        };
        let mut message = self.message(kind::SNAPSHOT, wire::encode(&header));
        message.payload.push(snapshot.snapshot);
        let reply = tokio::select! {
            reply = self.request(message, SNAPSHOT_TIMEOUT) => reply,
            closed = cancel => return Err(StreamingError::Closed(closed)),
        };
        let reply =
            reply.map_err(|error| StreamingError::Unreachable(Unreachable::from_string(error)))?;
        let vote: wire::VoteRecord = wire::decode(&reply.header)
            .map_err(|reason| StreamingError::Network(NetworkError::from_string(reason)))?;
        Ok(SnapshotResponse { vote: vote.into() })
    }
}

impl NetTransferLeader<Types> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let last: Option<EntryId> = request.last_log_id().copied();
        let header = wire::TransferHeader {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: last.as_ref().map(wire::id_record),
        };
        let message = self.message(kind::TRANSFER, wire::encode(&header));
        let reply = self
            .request(message, VOTE_TIMEOUT)
            .await
            .map_err(unreachable)?;
        let accepted: bool = wire::decode(&reply.header).map_err(garbled)?;
        if accepted {
            return Ok(Ok(()));
        }
        Ok(Err(TransferLeaderError::LogNotFlushed {
            expected: last,
            actual: None,
        }))
    }
}

impl NetBackoff<Types> for Client {
    /// A replica that is known not to be there is left alone until it is back; see
    /// `reset_backoff` in `crate::runtime`.
    fn backoff(&self) -> Option<Backoff> {
        let (transport, target) = (self.transport.clone(), self.target);
        let mut delay = Duration::from_millis(50);
        Some(Backoff::new(std::iter::from_fn(move || {
            if !transport.is_there(target) {
                return Some(Duration::from_secs(2));
            }
            let now = delay;
            delay = (delay * 2).min(Duration::from_secs(1));
            Some(now)
        })))
    }
}
