//! A proposed command on its way through openraft, and its outcome.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use openraft::OptionalSend;
use openraft::errors::{ClientWriteError, ForwardReason};
use openraft::raft::ClientWriteResult;
use tokio::sync::futures::OwnedNotified;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::Types;
use crate::group::{GroupInner, ProposeError};
use crate::machine::Reply;

/// Carries openraft's answer to whoever waits for it.
pub(crate) struct Responder<T>(oneshot::Sender<T>);

impl<T> Responder<T> {
    /// A responder and what it answers to.
    pub(crate) fn new() -> (Self, oneshot::Receiver<T>) {
        let (sender, receiver) = oneshot::channel();
        (Responder(sender), receiver)
    }
}

impl<T: OptionalSend + 'static> openraft::raft::responder::Responder<Types, T> for Responder<T> {
    fn on_complete(self, result: T) {
        // Nobody waits any more: the entry is committed all the same.
        drop(self.0.send(result));
    }
}

/// A committed and applied command.
pub struct Proposed {
    /// Index of its entry.
    pub index: u64,
    /// Term of its entry.
    pub term: u64,
    /// What the state machine answered.
    pub reply: Reply,
}

/// A queued command: resolves when it is committed on a durable quorum and
/// applied here, or when that can no longer be known: no quorum can be reached.
pub struct PendingProposal {
    pub(crate) outcome: oneshot::Receiver<ClientWriteResult<Types>>,
    /// Ends the wait for a quorum that can't be reached any more.
    pub(crate) lost_quorum: Pin<Box<OwnedNotified>>,
    pub(crate) group: std::sync::Arc<GroupInner>,
    pub(crate) submitted: Instant,
}

impl Future for PendingProposal {
    type Output = Result<Proposed, ProposeError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match Pin::new(&mut self.outcome).poll(context) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => {
                std::task::ready!(self.lost_quorum.as_mut().poll(context));
                return Poll::Ready(Err(ProposeError::Unknown));
            }
        };
        Poll::Ready(match outcome {
            Ok(Ok(response)) => {
                self.group.quorum_confirmed(self.submitted);
                Ok(Proposed {
                    index: response.log_id.index(),
                    term: response.log_id.committed_leader_id().term,
                    reply: response.data,
                })
            }
            Ok(Err(ClientWriteError::ForwardToLeader(forward))) => {
                if forward.reason == ForwardReason::LeaseExpired {
                    self.group.quorum_doubted();
                }
                Err(ProposeError::NotLeader {
                    leadership: self.group.leadership(),
                })
            }
            Ok(Err(_)) => Err(ProposeError::Unknown),
            Err(_) => Err(ProposeError::Closed),
        })
    }
}
