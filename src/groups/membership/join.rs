//! JoinGroup: new members, known members, and static members that return.

use kafka_protocol::ResponseError;

use super::{
    Join, JoinRefused, Joined, Member, Membership, Millis, NEW_MEMBER_JOIN_MS, Phase, Then, Token,
    millis,
};
use crate::groups::command::MemberRecord;

impl Membership {
    /// A member wants to be part of the next generation. The answer is an
    /// effect, now or when the rebalance is complete.
    pub fn join(&mut self, join: Join, token: Token, now: Millis) {
        let member_id = join.identity.member_id.clone();
        if let Err(refused) = self.try_join(join, token, now) {
            let member_id = refused.member_id.unwrap_or(member_id);
            self.answer_join(
                token,
                Err(JoinRefused {
                    error: refused.error,
                    member_id,
                }),
            );
        }
        self.complete_join_when_ready(now);
    }

    fn try_join(&mut self, join: Join, token: Token, now: Millis) -> Result<(), Refused> {
        self.check_protocols(&join)?;
        self.check_bounds(&join)?;
        if join.identity.member_id.is_empty() {
            self.join_unknown(join, token, now)
        } else {
            self.join_known(join, token, now)
        }
    }

    fn join_unknown(&mut self, join: Join, token: Token, now: Millis) -> Result<(), Refused> {
        if let Some(instance) = &join.identity.instance_id {
            if let Some(old) = self.instances.get(instance).cloned() {
                self.replace_static_member(&old, join, token, now);
                return Ok(());
            }
        } else if join.knows_member_id_required {
            let deadline = now + millis(join.session_timeout_ms);
            self.pending.insert(join.fresh_id.clone(), deadline);
            return Err(Refused {
                error: ResponseError::MemberIdRequired,
                member_id: Some(join.fresh_id),
            });
        }
        let id = join.fresh_id.clone();
        self.add_member(id, join, token, now);
        Ok(())
    }

    fn join_known(&mut self, join: Join, token: Token, now: Millis) -> Result<(), Refused> {
        let id = join.identity.member_id.clone();
        if join.identity.instance_id.is_none() && self.pending.remove(&id).is_some() {
            self.add_member(id, join, token, now);
            return Ok(());
        }
        self.check_member(&join.identity)?;
        let member = &self.members[&id];
        let unchanged = member.record.protocols == join.protocols;
        let leads = self.leader.as_deref() == Some(&id);
        let rebalance = match self.phase {
            Phase::Empty => return Err(ResponseError::UnknownMemberId.into()),
            Phase::Preparing { .. } => true,
            // The answer to its last join was lost: it gets it again.
            Phase::Completing { .. } => !unchanged,
            // A leader that joins again wants another assignment.
            Phase::Stable => leads || !unchanged,
        };
        if rebalance {
            self.update_member(&id, join, Some(token), now);
            self.prepare_rebalance(now);
        } else {
            self.touch(&id, now);
            let joined = self.joined(&id);
            self.answer_join(token, Ok(joined));
        }
        Ok(())
    }

    fn add_member(&mut self, id: String, join: Join, token: Token, now: Millis) {
        if self.members.is_empty() {
            self.protocol_type = join.protocol_type.clone();
        }
        let instance_id = join.identity.instance_id.clone();
        if let Some(instance) = &instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        let member = Member {
            record: MemberRecord {
                id: id.clone(),
                instance_id,
                ..MemberRecord::default()
            },
            new: true,
            deadline: now,
            join_waiter: None,
            sync_waiter: None,
            synced: false,
        };
        self.members.insert(id.clone(), member);
        self.update_member(&id, join, Some(token), now);
        if let Some(member) = self.members.get_mut(&id) {
            member.deadline = now + NEW_MEMBER_JOIN_MS;
        }
        self.leader.get_or_insert(id);
        if let Phase::Preparing { grew, .. } = &mut self.phase {
            *grew = true;
        }
        self.prepare_rebalance(now);
    }

    /// Takes over what the request says of a member, and lets it wait for the next generation.
    fn update_member(&mut self, id: &str, join: Join, waiter: Option<Token>, now: Millis) {
        let Some(member) = self.members.get_mut(id) else {
            return;
        };
        member.record.client_id = join.client_id;
        member.record.client_host = join.client_host;
        member.record.session_timeout_ms = join.session_timeout_ms;
        member.record.rebalance_timeout_ms = join.rebalance_timeout_ms;
        member.record.protocols = join.protocols;
        if !member.new {
            member.deadline = now + millis(join.session_timeout_ms);
        }
        let earlier = std::mem::replace(&mut member.join_waiter, waiter);
        if let Some(token) = earlier {
            self.refuse_join(token, ResponseError::RebalanceInProgress, id);
        }
    }

    /// A static member is back under a new id: it takes its old place, without
    /// a rebalance if it would change nothing. The old id is fenced.
    fn replace_static_member(&mut self, old: &str, join: Join, token: Token, now: Millis) {
        let Some(mut member) = self.members.remove(old) else {
            return;
        };
        let id = join.fresh_id.clone();
        if let Some(waiter) = member.join_waiter.take() {
            self.refuse_join(waiter, ResponseError::FencedInstanceId, old);
        }
        if let Some(waiter) = member.sync_waiter.take() {
            self.answer_sync(waiter, Err(ResponseError::FencedInstanceId));
        }
        member.record.id = id.clone();
        if let Some(instance) = &member.record.instance_id {
            self.instances.insert(instance.clone(), id.clone());
        }
        self.members.insert(id.clone(), member);
        let leads = self.leader.as_deref() == Some(old);
        if leads {
            self.leader = Some(id.clone());
        }
        let skip_assignment = join.knows_skip_assignment;
        let settled = self.phase == Phase::Stable;
        self.update_member(&id, join, None, now);
        if settled && self.select_protocol() == self.protocol {
            let mut joined = self.joined(&id);
            if leads && skip_assignment {
                joined.skip_assignment = true;
            } else if leads {
                // An older client would assign anew if told that it leads.
                joined.leader = old.to_string();
                joined.members.clear();
            }
            self.store(None, Then::Answer(token, joined));
            return;
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.join_waiter = Some(token);
        }
        self.prepare_rebalance(now);
    }

    /// The member's view of the present generation.
    pub(super) fn joined(&self, id: &str) -> Joined {
        let leader = self.leader.clone().unwrap_or_default();
        let members = if leader == id {
            self.members_for_leader()
        } else {
            Vec::new()
        };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone().unwrap_or_default(),
            leader,
            member_id: id.to_string(),
            skip_assignment: false,
            members,
        }
    }

    pub(super) fn refuse_join(&mut self, token: Token, error: ResponseError, id: &str) {
        self.answer_join(
            token,
            Err(JoinRefused {
                error,
                member_id: id.to_string(),
            }),
        );
    }

    /// There must remain a protocol that every member supports.
    fn check_protocols(&self, join: &Join) -> Result<(), Refused> {
        let own_id = match &join.identity.instance_id {
            Some(instance) => self.instances.get(instance),
            None => Some(&join.identity.member_id),
        };
        let mut others = self
            .members
            .values()
            .filter(|member| Some(&member.record.id) != own_id)
            .peekable();
        let usable = !join.protocol_type.is_empty() && !join.protocols.is_empty();
        let fits = others.peek().is_none() || join.protocol_type == self.protocol_type;
        let others: Vec<&Member> = others.collect();
        let common = join.protocols.iter().any(|(name, _)| {
            others
                .iter()
                .all(|member| member.record.protocols.iter().any(|(own, _)| own == name))
        });
        if usable && fits && common {
            Ok(())
        } else {
            Err(ResponseError::InconsistentGroupProtocol.into())
        }
    }

    fn check_bounds(&self, join: &Join) -> Result<(), Refused> {
        let replaces = join.identity.instance_id.as_ref();
        let known = self.members.contains_key(&join.identity.member_id)
            || self.pending.contains_key(&join.identity.member_id)
            || replaces.is_some_and(|instance| self.instances.contains_key(instance));
        let size = self.members.len() + self.pending.len();
        let bytes = |protocols: &[(String, bytes::Bytes)]| -> usize {
            protocols
                .iter()
                .map(|(name, metadata)| name.len() + metadata.len())
                .sum()
        };
        let held: usize = self
            .members
            .values()
            .filter(|member| member.record.id != join.identity.member_id)
            .map(|member| bytes(&member.record.protocols))
            .sum();
        if (!known && size >= self.limits.members_max)
            || held + bytes(&join.protocols) > self.limits.bytes_max
        {
            return Err(ResponseError::GroupMaxSizeReached.into());
        }
        Ok(())
    }
}

/// Why a join is refused; `member_id` only if it is not the one that was sent.
struct Refused {
    error: ResponseError,
    member_id: Option<String>,
}

impl From<ResponseError> for Refused {
    fn from(error: ResponseError) -> Refused {
        Refused {
            error,
            member_id: None,
        }
    }
}
