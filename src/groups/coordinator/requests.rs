//! What clients ask of a coordinator, on its leader.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use kafka_protocol::ResponseError;
use tokio::time::Instant;

use super::volatile::Volatile;
use super::{Coordinator, Description, SETTLE_POLL, STORE_TIMEOUT};
use crate::groups::command::{
    CommitOffsets, DeleteGroup, DeleteOffsets, GroupCommand, TopicCommit,
};
use crate::groups::machine::{GroupState, Outcome};
use crate::groups::membership::{
    Answer, Identity, Join, JoinRefused, Joined, Membership, Sync, Synced,
};

impl Coordinator {
    /// Joins a group, waiting for its rebalance to complete.
    pub async fn join(self: &Arc<Self>, group: &str, join: Join) -> Result<Joined, JoinRefused> {
        let member_id = join.identity.member_id.clone();
        let refused = |error| JoinRefused {
            error,
            member_id: member_id.clone(),
        };
        let answer = {
            let mut volatile = self.serving().map_err(refused)?;
            if !member_id.is_empty() && self.membership(&mut volatile, group).is_none() {
                return Err(refused(ResponseError::UnknownMemberId));
            }
            self.membership_or_new(&mut volatile, group);
            let (token, answer) = volatile.wait();
            self.with(&mut volatile, group, |membership, now| {
                membership.join(join, token, now)
            });
            answer
        };
        match answer.await {
            Ok(Answer::Join(answer)) => answer,
            _ => Err(refused(ResponseError::NotCoordinator)),
        }
    }

    /// Asks for the assignment, waiting for the leader's.
    pub async fn sync(self: &Arc<Self>, group: &str, sync: Sync) -> Result<Synced, ResponseError> {
        let answer = {
            let mut volatile = self.serving()?;
            self.membership(&mut volatile, group)
                .ok_or(ResponseError::UnknownMemberId)?;
            let (token, answer) = volatile.wait();
            self.with(&mut volatile, group, |membership, now| {
                membership.sync(sync, token, now)
            });
            answer
        };
        match answer.await {
            Ok(Answer::Sync(answer)) => answer,
            _ => Err(ResponseError::NotCoordinator),
        }
    }

    /// A member says that it is alive.
    pub fn heartbeat(
        self: &Arc<Self>,
        group: &str,
        identity: &Identity,
        generation: i32,
    ) -> Result<(), ResponseError> {
        let mut volatile = self.serving()?;
        let membership = self
            .membership(&mut volatile, group)
            .ok_or(ResponseError::UnknownMemberId)?;
        // A heartbeat only moves a deadline back, which the timer finds out by itself.
        membership.heartbeat(identity, generation, self.now())
    }

    /// Members go. The answer is per member: the id of the one that went.
    pub fn leave(
        self: &Arc<Self>,
        group: &str,
        members: &[Identity],
    ) -> Result<Vec<Result<String, ResponseError>>, ResponseError> {
        let mut volatile = self.serving()?;
        let leave = |identity: &Identity| {
            self.membership(&mut volatile, group)
                .ok_or(ResponseError::UnknownMemberId)?;
            self.with(&mut volatile, group, |membership, now| {
                membership.leave(identity, now)
            })
            .unwrap_or(Err(ResponseError::UnknownMemberId))
        };
        Ok(members.iter().map(leave).collect())
    }

    /// Commits offsets of a member, or of a consumer without membership (generation -1).
    pub async fn commit(
        &self,
        group: &str,
        identity: &Identity,
        generation: i32,
        topics: Vec<TopicCommit>,
    ) -> Result<(), ResponseError> {
        {
            let mut volatile = self.serving()?;
            match self.membership(&mut volatile, group) {
                Some(membership) => membership.check_commit(identity, generation, self.now())?,
                None if generation >= 0 => return Err(ResponseError::IllegalGeneration),
                None => {}
            }
        }
        if topics.is_empty() {
            return Ok(());
        }
        let commit = CommitOffsets {
            group: group.to_string(),
            generation,
            topics,
        };
        match self.propose(GroupCommand::CommitOffsets(commit)).await? {
            Outcome::StaleGeneration => Err(ResponseError::IllegalGeneration),
            _ => Ok(()),
        }
    }

    /// Looks at what a group has committed, after making sure that this broker still leads.
    pub async fn read<T>(
        &self,
        group: &str,
        look: impl FnOnce(Option<&GroupState>) -> T,
    ) -> Result<T, ResponseError> {
        drop(self.serving()?);
        self.group
            .read_barrier(STORE_TIMEOUT)
            .await
            .map_err(|error| self.refusal(&error))?;
        let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
        Ok(look(state.groups.get(group)))
    }

    /// What tools want to know of a group; none if there is no such group.
    pub fn describe(&self, group: &str) -> Result<Option<Description>, ResponseError> {
        let mut volatile = self.serving()?;
        Ok(self.describe_in(&mut volatile, group))
    }

    /// Every group of this coordinator.
    pub fn list(&self) -> Result<Vec<(String, Description)>, ResponseError> {
        let mut volatile = self.serving()?;
        let mut ids: BTreeSet<String> = volatile.groups.keys().cloned().collect();
        ids.extend(
            self.view
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .groups
                .keys()
                .cloned(),
        );
        let describe = |id: String| {
            self.describe_in(&mut volatile, &id)
                .map(|description| (id, description))
        };
        Ok(ids.into_iter().filter_map(describe).collect())
    }

    /// Deletes a group that has no members, with its offsets.
    pub async fn delete(&self, group: &str) -> Result<(), ResponseError> {
        let deadline = Instant::now() + STORE_TIMEOUT;
        while !self.is_settled_and_empty(group)? {
            // Its last member has left, and that is still on its way into the log.
            if Instant::now() > deadline {
                return Err(ResponseError::CoordinatorNotAvailable);
            }
            tokio::time::sleep(SETTLE_POLL).await;
        }
        let delete = DeleteGroup {
            group: group.to_string(),
        };
        match self.propose(GroupCommand::DeleteGroup(delete)).await? {
            Outcome::NotEmpty => Err(ResponseError::NonEmptyGroup),
            Outcome::UnknownGroup => Err(ResponseError::GroupIdNotFound),
            _ => Ok(()),
        }
    }

    /// Whether a group without members is stored as such; an error if it has some.
    fn is_settled_and_empty(&self, group: &str) -> Result<bool, ResponseError> {
        let mut volatile = self.serving()?;
        let settled = volatile.groups.get(group).is_none_or(Membership::is_idle);
        match self.describe_in(&mut volatile, group) {
            None => Err(ResponseError::GroupIdNotFound),
            Some(description) if description.state != "Empty" => Err(ResponseError::NonEmptyGroup),
            Some(_) => Ok(settled),
        }
    }

    /// Forgets what a group committed for some partitions, by topic id.
    pub async fn delete_offsets(
        &self,
        group: &str,
        topics: Vec<(uuid::Uuid, Vec<i32>)>,
    ) -> Result<(), ResponseError> {
        drop(self.serving()?);
        let delete = DeleteOffsets {
            group: group.to_string(),
            topics,
        };
        match self.propose(GroupCommand::DeleteOffsets(delete)).await? {
            Outcome::UnknownGroup => Err(ResponseError::GroupIdNotFound),
            _ => Ok(()),
        }
    }

    fn describe_in(&self, volatile: &mut Volatile, group: &str) -> Option<Description> {
        if let Some(membership) = self.membership(volatile, group) {
            let description = Description {
                state: membership.phase().name(),
                protocol_type: membership.protocol_type().to_string(),
                protocol: membership.protocol().unwrap_or_default().to_string(),
                members: membership.members().cloned().collect(),
            };
            if membership.is_idle() {
                volatile.groups.remove(group);
            }
            return Some(description);
        }
        // Known by its offsets alone.
        let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
        state.groups.get(group).map(|_| Description {
            state: "Empty",
            ..Description::default()
        })
    }
}
