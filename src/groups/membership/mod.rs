//! Who is in one group, and how its rebalances go: the classic group protocol.
//!
//! A pure state machine, volatile, and only on the coordinator's leader. Its
//! owner is [`super::coordinator`], which holds it under a lock, feeds it
//! requests and the time, and carries out the [`Effect`]s it leaves behind.
//! Answers that must wait are named by a [`Token`] that the owner made up.
//!
//! Invariants: every member in `instances` is in `members`; a group with
//! members has exactly one leader, from the first completed rebalance on; the
//! generation only grows; a member waits for at most one answer of a kind.

mod join;
mod rebalance;
mod sync;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::command::{GroupRecord, MemberRecord};

/// Milliseconds of a monotone clock.
pub type Millis = u64;
/// Names a request that waits for its answer.
pub type Token = u64;

/// A new member that does not get its answer keeps its place for this long.
const NEW_MEMBER_JOIN_MS: Millis = 5 * 60 * 1000;

/// Bounds of a group.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// `group.initial.rebalance.delay.ms`
    pub initial_rebalance_delay_ms: Millis,
    /// `group.max.size`
    pub members_max: usize,
    /// Bytes of protocol metadata, or of assignments, of all members together.
    pub bytes_max: usize,
}

/// How a member names itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The id given by the coordinator; empty if it has none yet.
    pub member_id: String,
    /// `group.instance.id` of a static member.
    pub instance_id: Option<String>,
}

/// A request to join.
#[derive(Clone, Debug, Default)]
pub struct Join {
    /// Who asks.
    pub identity: Identity,
    /// The id it gets if it is a new member.
    pub fresh_id: String,
    /// Client id of its connection.
    pub client_id: String,
    /// Host of its connection.
    pub client_host: String,
    /// Silence after which it is removed.
    pub session_timeout_ms: i32,
    /// Time it has for joining again in a rebalance.
    pub rebalance_timeout_ms: i32,
    /// `consumer` for consumers.
    pub protocol_type: String,
    /// Protocols that it supports, the preferred first, with their metadata.
    pub protocols: Vec<(String, Bytes)>,
    /// It can be told its id first and join with it then (JoinGroup 4).
    pub knows_member_id_required: bool,
    /// It can lead without assigning anew (JoinGroup 9).
    pub knows_skip_assignment: bool,
}

/// The answer to a join.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// The generation that the member is part of.
    pub generation: i32,
    /// Protocol type of the group.
    pub protocol_type: String,
    /// The chosen protocol.
    pub protocol: String,
    /// Member id of the leader.
    pub leader: String,
    /// Id of the member that asked.
    pub member_id: String,
    /// The leader keeps the assignment that is in force.
    pub skip_assignment: bool,
    /// For the leader: every member with its metadata; else empty.
    pub members: Vec<JoinedMember>,
}

/// A member as the leader is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinedMember {
    /// Its id.
    pub member_id: String,
    /// Its `group.instance.id`.
    pub instance_id: Option<String>,
    /// Its metadata for the chosen protocol.
    pub metadata: Bytes,
}

/// A join that is refused.
#[derive(Clone, Debug, PartialEq)]
pub struct JoinRefused {
    /// Why.
    pub error: ResponseError,
    /// The id to join with, or the one that was sent.
    pub member_id: String,
}

/// A request for the own assignment; the leader brings everybody's.
#[derive(Clone, Debug, Default)]
pub struct Sync {
    /// Who asks.
    pub identity: Identity,
    /// The generation it joined.
    pub generation: i32,
    /// The protocol type it believes in, if it says so.
    pub protocol_type: Option<String>,
    /// The protocol it believes in, if it says so.
    pub protocol: Option<String>,
    /// From the leader: assignments by member id.
    pub assignments: BTreeMap<String, Bytes>,
}

/// The answer to a sync.
#[derive(Clone, Debug, PartialEq)]
pub struct Synced {
    /// Protocol type of the group.
    pub protocol_type: String,
    /// The chosen protocol.
    pub protocol: String,
    /// What the member shall do.
    pub assignment: Bytes,
}

/// An answer that had to wait.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// To a join.
    Join(Result<Joined, JoinRefused>),
    /// To a sync.
    Sync(Result<Synced, ResponseError>),
}

/// What to do once a record is stored, or could not be.
#[derive(Clone, Debug, PartialEq)]
pub enum Then {
    /// Nothing more.
    Nothing,
    /// Hand out the assignments of this generation.
    Assign {
        /// The generation.
        generation: i32,
        /// Assignments by member id.
        assignments: BTreeMap<String, Bytes>,
    },
    /// Answer a static member that took its old place.
    Answer(Token, Joined),
}

/// What the owner must do after a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Answer a waiting request.
    Answer(Token, Answer),
    /// Replicate the record, then call [`Membership::stored`].
    Store(GroupRecord, Then),
}

/// Where a group is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No members.
    Empty,
    /// Waiting for members to join.
    Preparing {
        /// When those that have not joined are given up.
        deadline: Millis,
        /// The first rebalance of an empty group waits for more members, this
        /// much longer at most.
        initial_ms_left: Option<Millis>,
        /// A member came while waiting.
        grew: bool,
    },
    /// Waiting for the leader's assignment.
    Completing {
        /// The assignment is on its way into the log.
        storing: bool,
    },
    /// Everybody has an assignment.
    Stable,
}

impl Phase {
    /// The name that Kafka's tools show.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Empty => "Empty",
            Phase::Preparing { .. } => "PreparingRebalance",
            Phase::Completing { .. } => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }
}

/// A member as the coordinator sees it.
#[derive(Clone, Debug)]
struct Member {
    record: MemberRecord,
    /// Added, but in no generation yet.
    new: bool,
    /// Removed at this time if it has not been heard of.
    deadline: Millis,
    join_waiter: Option<Token>,
    sync_waiter: Option<Token>,
    /// Has asked for its assignment in this generation.
    synced: bool,
}

/// One group; see the module.
#[derive(Debug)]
pub struct Membership {
    limits: Limits,
    phase: Phase,
    generation: i32,
    revision: u64,
    protocol_type: String,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    instances: BTreeMap<String, String>,
    /// Ids given out to members that have not joined with them yet.
    pending: BTreeMap<String, Millis>,
    /// Members that have not synced by then are removed.
    sync_deadline: Option<Millis>,
    stores_in_flight: u32,
    effects: Vec<Effect>,
}

impl Membership {
    /// A group that was never heard of.
    pub fn new(limits: Limits) -> Membership {
        Membership::restore(limits, &GroupRecord::default(), 0)
    }

    /// The group as it was stored last. Members get a whole session time-out to be heard of.
    pub fn restore(limits: Limits, record: &GroupRecord, now: Millis) -> Membership {
        let members: BTreeMap<String, Member> = record
            .members
            .iter()
            .map(|record| {
                let member = Member {
                    deadline: now + millis(record.session_timeout_ms),
                    record: record.clone(),
                    new: false,
                    join_waiter: None,
                    sync_waiter: None,
                    synced: true,
                };
                (record.id.clone(), member)
            })
            .collect();
        let instances = members
            .values()
            .filter_map(|member| {
                Some((member.record.instance_id.clone()?, member.record.id.clone()))
            })
            .collect();
        Membership {
            limits,
            phase: if members.is_empty() {
                Phase::Empty
            } else {
                Phase::Stable
            },
            generation: record.generation,
            revision: record.revision,
            protocol_type: record.protocol_type.clone(),
            protocol: record.protocol.clone(),
            leader: record.leader.clone(),
            members,
            instances,
            pending: BTreeMap::new(),
            sync_deadline: None,
            stores_in_flight: 0,
            effects: Vec::new(),
        }
    }

    /// What the last calls want done, in order.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Where the group is in its life.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Nothing of it is only here: it can be dropped and restored when asked for.
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Empty && self.pending.is_empty() && self.stores_in_flight == 0
    }

    /// Protocol type, `consumer` for consumers; empty if nobody ever joined.
    pub fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    /// The chosen protocol, if there is one.
    pub fn protocol(&self) -> Option<&str> {
        self.protocol.as_deref()
    }

    /// Its members.
    pub fn members(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.values().map(|member| &member.record)
    }

    /// A member says that it is alive.
    pub fn heartbeat(
        &mut self,
        identity: &Identity,
        generation: i32,
        now: Millis,
    ) -> Result<(), ResponseError> {
        self.check_member(identity)?;
        self.check_generation(generation)?;
        self.touch(&identity.member_id, now);
        match self.phase {
            Phase::Empty => Err(ResponseError::UnknownMemberId),
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Completing { .. } | Phase::Stable => Ok(()),
        }
    }

    /// Whether this member, or a consumer without membership, may commit now.
    pub fn check_commit(
        &mut self,
        identity: &Identity,
        generation: i32,
        now: Millis,
    ) -> Result<(), ResponseError> {
        let anonymous = identity.member_id.is_empty() && identity.instance_id.is_none();
        if generation < 0 && self.phase == Phase::Empty {
            return Ok(());
        }
        if generation < 0 && anonymous {
            return Err(ResponseError::UnknownMemberId);
        }
        self.check_member(identity)?;
        self.check_generation(generation)?;
        self.touch(&identity.member_id, now);
        match self.phase {
            Phase::Completing { .. } => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    /// A member goes, or an administrator removes a static one by its instance
    /// id alone. The id of the member that went.
    pub fn leave(&mut self, identity: &Identity, now: Millis) -> Result<String, ResponseError> {
        if identity.instance_id.is_none() && self.pending.remove(&identity.member_id).is_some() {
            self.complete_join_when_ready(now);
            return Ok(identity.member_id.clone());
        }
        let id = match &identity.instance_id {
            Some(instance) => {
                let id = self
                    .instances
                    .get(instance)
                    .ok_or(ResponseError::UnknownMemberId)?;
                if !identity.member_id.is_empty() && *id != identity.member_id {
                    return Err(ResponseError::FencedInstanceId);
                }
                id.clone()
            }
            None if self.members.contains_key(&identity.member_id) => identity.member_id.clone(),
            None => return Err(ResponseError::UnknownMemberId),
        };
        self.remove_member(&id, now);
        Ok(id)
    }

    /// When [`Membership::tick`] has something to do next.
    pub fn next_deadline(&self) -> Option<Millis> {
        let phase = match self.phase {
            Phase::Preparing { deadline, .. } => Some(deadline),
            _ => None,
        };
        let members = self.members.values().map(|member| member.deadline);
        let pending = self.pending.values().copied();
        members
            .chain(pending)
            .chain(phase)
            .chain(self.sync_deadline)
            .min()
    }

    /// Removes who was silent too long and ends waits that took too long.
    pub fn tick(&mut self, now: Millis) {
        let pending = self.pending.len();
        self.pending.retain(|_, deadline| *deadline > now);
        if self.pending.len() != pending {
            self.complete_join_when_ready(now);
        }
        let late: Vec<String> = self
            .members
            .values()
            .filter(|member| member.deadline <= now)
            .map(|member| member.record.id.clone())
            .collect();
        for id in late {
            let Some(member) = self.members.get_mut(&id) else {
                continue;
            };
            let waits = member.join_waiter.is_some() || member.sync_waiter.is_some();
            if waits && !member.new {
                member.deadline = now + millis(member.record.session_timeout_ms);
            } else if member.deadline <= now {
                self.remove_member(&id, now);
            }
        }
        if self.sync_deadline.is_some_and(|deadline| deadline <= now) {
            self.give_up_unsynced(now);
        }
        self.complete_join_when_ready(now);
    }

    /// The member is in the group under this id, and is not a static member that another one replaced.
    fn check_member(&self, identity: &Identity) -> Result<(), ResponseError> {
        if let Some(instance) = &identity.instance_id {
            match self.instances.get(instance) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(id) if *id != identity.member_id => {
                    return Err(ResponseError::FencedInstanceId);
                }
                Some(_) => {}
            }
        }
        if self.members.contains_key(&identity.member_id) {
            Ok(())
        } else {
            Err(ResponseError::UnknownMemberId)
        }
    }

    fn check_generation(&self, generation: i32) -> Result<(), ResponseError> {
        if generation == self.generation {
            Ok(())
        } else {
            Err(ResponseError::IllegalGeneration)
        }
    }

    /// The member was heard of.
    fn touch(&mut self, id: &str, now: Millis) {
        if let Some(member) = self.members.get_mut(id) {
            member.deadline = now + millis(member.record.session_timeout_ms);
        }
    }

    fn answer_join(&mut self, token: Token, answer: Result<Joined, JoinRefused>) {
        self.effects
            .push(Effect::Answer(token, Answer::Join(answer)));
    }

    fn answer_sync(&mut self, token: Token, answer: Result<Synced, ResponseError>) {
        self.effects
            .push(Effect::Answer(token, Answer::Sync(answer)));
    }

    /// Asks for the state to be replicated, with these assignments instead of those in force.
    fn store(&mut self, assignments: Option<&BTreeMap<String, Bytes>>, then: Then) {
        self.revision += 1;
        self.stores_in_flight += 1;
        let members = self.members.values().map(|member| {
            let mut record = member.record.clone();
            if let Some(assignments) = assignments {
                record.assignment = assignments.get(&record.id).cloned().unwrap_or_default();
            }
            record
        });
        let record = GroupRecord {
            revision: self.revision,
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone(),
            members: members.collect(),
        };
        self.effects.push(Effect::Store(record, then));
    }
}

/// A time-out as the wire has it; never 0, so that nothing spins.
fn millis(timeout_ms: i32) -> Millis {
    u64::try_from(timeout_ms).unwrap_or(0).max(1)
}
