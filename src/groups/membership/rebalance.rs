//! Rebalances: when one starts, whom it waits for, and what ends it.

use kafka_protocol::ResponseError;

use super::{JoinedMember, Membership, Millis, Phase, Then, millis};

impl Membership {
    /// Starts a rebalance unless one is already waiting for members.
    pub(super) fn prepare_rebalance(&mut self, now: Millis) {
        let (delay_ms, initial_ms_left) = match self.phase {
            Phase::Preparing { .. } => return,
            Phase::Empty => {
                let delay_ms = self.limits.initial_rebalance_delay_ms;
                (
                    delay_ms,
                    Some(self.rebalance_timeout().saturating_sub(delay_ms)),
                )
            }
            Phase::Completing { .. } | Phase::Stable => {
                self.fail_syncs(ResponseError::RebalanceInProgress);
                (self.rebalance_timeout(), None)
            }
        };
        self.sync_deadline = None;
        self.phase = Phase::Preparing {
            deadline: now + delay_ms,
            initial_ms_left,
            grew: false,
        };
    }

    /// Completes the rebalance if nobody is missing any more, or time is up.
    pub(super) fn complete_join_when_ready(&mut self, now: Millis) {
        let Phase::Preparing {
            deadline,
            initial_ms_left,
            grew,
        } = self.phase
        else {
            return;
        };
        let everybody = self.pending.is_empty()
            && self
                .members
                .values()
                .all(|member| member.join_waiter.is_some());
        match initial_ms_left {
            _ if self.members.is_empty() => self.complete_join(now),
            Some(left_ms) if now >= deadline && grew && left_ms > 0 => {
                let delay_ms = self.limits.initial_rebalance_delay_ms.min(left_ms);
                self.phase = Phase::Preparing {
                    deadline: now + delay_ms,
                    initial_ms_left: Some(left_ms - delay_ms),
                    grew: false,
                };
            }
            Some(_) if now >= deadline => self.complete_join(now),
            None if now >= deadline || everybody => self.complete_join(now),
            _ => {}
        }
    }

    fn complete_join(&mut self, now: Millis) {
        let gone: Vec<String> = self
            .members
            .values()
            .filter(|member| member.join_waiter.is_none() && member.record.instance_id.is_none())
            .map(|member| member.record.id.clone())
            .collect();
        for id in gone {
            self.forget_member(&id);
        }
        if self.members.is_empty() {
            self.generation = next_generation(self.generation);
            self.protocol = None;
            self.leader = None;
            self.phase = Phase::Empty;
            self.store(None, Then::Nothing);
            return;
        }
        if !self.elect_joined_leader() {
            // Only static members that have not come back yet: they keep their
            // places until their sessions end.
            let deadline = now + self.rebalance_timeout();
            self.phase = Phase::Preparing {
                deadline,
                initial_ms_left: None,
                grew: false,
            };
            return;
        }
        self.generation = next_generation(self.generation);
        self.protocol = self.select_protocol();
        self.phase = Phase::Completing { storing: false };
        self.sync_deadline = Some(now + self.rebalance_timeout());
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            member.new = false;
            member.synced = false;
            member.deadline = now + millis(member.record.session_timeout_ms);
            member.record.assignment = bytes::Bytes::new();
            if let Some(token) = member.join_waiter.take() {
                self.answer_join(token, Ok(joined));
            }
        }
    }

    /// Keeps the leader if it has joined, else takes the first that has.
    fn elect_joined_leader(&mut self) -> bool {
        let joined = |id: &String| {
            self.members
                .get(id)
                .is_some_and(|m| m.join_waiter.is_some())
        };
        if !self.leader.as_ref().is_some_and(joined) {
            match self.members.keys().find(|id| joined(id)).cloned() {
                Some(first) => self.leader = Some(first),
                None => return false,
            }
        }
        true
    }

    /// Removes a member. What waited for it goes on.
    pub(super) fn remove_member(&mut self, id: &str, now: Millis) {
        self.forget_member(id);
        self.prepare_rebalance(now);
        self.complete_join_when_ready(now);
    }

    /// Takes a member out, without looking at what that means for the others.
    fn forget_member(&mut self, id: &str) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        if let Some(instance) = &member.record.instance_id {
            self.instances.remove(instance);
        }
        if let Some(token) = member.join_waiter {
            self.refuse_join(token, ResponseError::UnknownMemberId, id);
        }
        if let Some(token) = member.sync_waiter {
            self.answer_sync(token, Err(ResponseError::UnknownMemberId));
        }
        if self.leader.as_deref() == Some(id) {
            self.leader = self.members.keys().next().cloned();
        }
    }

    /// Removes the members that joined but never asked for their assignment.
    pub(super) fn give_up_unsynced(&mut self, now: Millis) {
        if self.phase == (Phase::Completing { storing: true }) {
            self.sync_deadline = Some(now + self.rebalance_timeout());
            return;
        }
        self.sync_deadline = None;
        let unsynced: Vec<String> = self
            .members
            .values()
            .filter(|member| !member.synced)
            .map(|member| member.record.id.clone())
            .collect();
        for id in unsynced {
            self.forget_member(&id);
            self.prepare_rebalance(now);
        }
        self.complete_join_when_ready(now);
    }

    /// Sends those that wait for an assignment back to join again.
    pub(super) fn fail_syncs(&mut self, error: ResponseError) {
        let waiters: Vec<_> = self
            .members
            .values_mut()
            .filter_map(|member| member.sync_waiter.take())
            .collect();
        for token in waiters {
            self.answer_sync(token, Err(error));
        }
    }

    /// The protocol that most members prefer among those that all of them support.
    pub(super) fn select_protocol(&self) -> Option<String> {
        let mut votes: Vec<(&str, usize)> = Vec::new();
        let supports = |name: &str| {
            self.members
                .values()
                .all(|m| m.record.protocols.iter().any(|(own, _)| own == name))
        };
        for member in self.members.values() {
            let mut names = member
                .record
                .protocols
                .iter()
                .map(|(name, _)| name.as_str());
            let Some(choice) = names.find(|name| supports(name)) else {
                continue;
            };
            match votes.iter_mut().find(|(name, _)| *name == choice) {
                Some((_, count)) => *count += 1,
                None => votes.push((choice, 1)),
            }
        }
        let most = votes.iter().map(|(_, count)| *count).max()?;
        votes
            .iter()
            .find(|(_, count)| *count == most)
            .map(|(name, _)| name.to_string())
    }

    /// Everybody, with the metadata for the chosen protocol.
    pub(super) fn members_for_leader(&self) -> Vec<JoinedMember> {
        let members = self.members.values().map(|member| JoinedMember {
            member_id: member.record.id.clone(),
            instance_id: member.record.instance_id.clone(),
            metadata: member
                .record
                .protocols
                .iter()
                .find(|(name, _)| Some(name) == self.protocol.as_ref())
                .map(|(_, metadata)| metadata.clone())
                .unwrap_or_default(),
        });
        members.collect()
    }

    pub(super) fn rebalance_timeout(&self) -> Millis {
        let timeouts = self
            .members
            .values()
            .map(|member| millis(member.record.rebalance_timeout_ms));
        timeouts.max().unwrap_or(1)
    }
}

fn next_generation(generation: i32) -> i32 {
    generation.checked_add(1).unwrap_or(1)
}
