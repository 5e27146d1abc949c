//! SyncGroup: the leader's assignment on its way to everybody, by way of the log.

use kafka_protocol::ResponseError;

use super::{JoinRefused, Membership, Millis, Phase, Sync, Synced, Then, Token};

impl Membership {
    /// A member asks for its assignment. The answer is an effect, now or when
    /// the leader's assignment is stored.
    pub fn sync(&mut self, sync: Sync, token: Token, now: Millis) {
        if let Err(error) = self.try_sync(sync, token, now) {
            self.answer_sync(token, Err(error));
        }
    }

    fn try_sync(&mut self, sync: Sync, token: Token, now: Millis) -> Result<(), ResponseError> {
        self.check_member(&sync.identity)?;
        self.check_generation(sync.generation)?;
        let other_type = sync
            .protocol_type
            .is_some_and(|said| said != self.protocol_type);
        let other_protocol = sync.protocol.is_some() && sync.protocol != self.protocol;
        if other_type || other_protocol {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        let id = sync.identity.member_id;
        match self.phase {
            Phase::Empty => Err(ResponseError::UnknownMemberId),
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Stable => {
                self.note_sync(&id, None, now);
                let synced = self.synced(&id);
                self.answer_sync(token, Ok(synced));
                Ok(())
            }
            Phase::Completing { storing } => {
                let leads = self.leader.as_deref() == Some(&id);
                if leads {
                    let bytes: usize = sync.assignments.values().map(|bytes| bytes.len()).sum();
                    if bytes > self.limits.bytes_max {
                        return Err(ResponseError::UnknownServerError);
                    }
                }
                self.note_sync(&id, Some(token), now);
                if leads && !storing {
                    self.phase = Phase::Completing { storing: true };
                    let mut assignments = sync.assignments;
                    assignments.retain(|id, _| self.members.contains_key(id));
                    let generation = self.generation;
                    self.store(
                        Some(&assignments.clone()),
                        Then::Assign {
                            generation,
                            assignments,
                        },
                    );
                }
                Ok(())
            }
        }
    }

    /// A record that an effect asked for is stored, or could not be.
    pub fn stored(&mut self, then: Then, outcome: Result<(), ResponseError>, now: Millis) {
        self.stores_in_flight = self.stores_in_flight.saturating_sub(1);
        match (then, outcome) {
            (Then::Nothing, _) => {}
            (Then::Answer(token, joined), Ok(())) => self.answer_join(token, Ok(joined)),
            (Then::Answer(token, joined), Err(error)) => {
                self.answer_join(
                    token,
                    Err(JoinRefused {
                        error,
                        member_id: joined.member_id,
                    }),
                );
            }
            (Then::Assign { generation, .. }, _)
                if generation != self.generation
                    || !matches!(self.phase, Phase::Completing { .. }) => {}
            (
                Then::Assign {
                    mut assignments, ..
                },
                Ok(()),
            ) => {
                for member in self.members.values_mut() {
                    member.record.assignment =
                        assignments.remove(&member.record.id).unwrap_or_default();
                }
                self.phase = Phase::Stable;
                self.answer_syncs(now);
            }
            (Then::Assign { .. }, Err(error)) => {
                self.fail_syncs(error);
                self.prepare_rebalance(now);
            }
        }
        self.complete_join_when_ready(now);
    }

    fn answer_syncs(&mut self, now: Millis) {
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let waiter = self
                .members
                .get_mut(&id)
                .and_then(|member| member.sync_waiter.take());
            if let Some(token) = waiter {
                self.touch(&id, now);
                let synced = self.synced(&id);
                self.answer_sync(token, Ok(synced));
            }
        }
    }

    /// The member has asked; `waiter` is what it waits for, if it must.
    fn note_sync(&mut self, id: &str, waiter: Option<Token>, now: Millis) {
        self.touch(id, now);
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.synced = true;
        let earlier = std::mem::replace(&mut member.sync_waiter, waiter);
        if let Some(token) = earlier {
            self.answer_sync(token, Err(ResponseError::RebalanceInProgress));
        }
        if self.members.values().all(|member| member.synced) {
            self.sync_deadline = None;
        }
    }

    fn synced(&self, id: &str) -> Synced {
        let assignment = self
            .members
            .get(id)
            .map(|member| member.record.assignment.clone());
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            assignment: assignment.unwrap_or_default(),
        }
    }
}
