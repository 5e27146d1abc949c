//! The replicated state of one coordinator: committed offsets, and groups as
//! they were after their last rebalance.
//!
//! Pure and deterministic: nothing here knows a clock, a client or a broker.
//! The machine owns the state and is its only writer; readers on the leader
//! look at it through a shared [`StateView`].

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};

use bytes::Bytes;
use drave_raft::{Applied, MachineError, Reply, StateMachine};
use serde::{Deserialize, Serialize};
use tracing::error;
use uuid::Uuid;

use super::command::{
    self, CommitOffsets, DeleteOffsets, DropTopics, ExpireOffsets, GroupCommand, GroupRecord,
    StoreGroup,
};

/// Everything that a coordinator keeps, by group id.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Groups that have members, offsets, or had members not long ago.
    pub groups: BTreeMap<String, GroupState>,
}

/// What is kept of one group.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GroupState {
    /// The group after its last rebalance; none if only offsets were committed.
    pub record: Option<GroupRecord>,
    /// Clock of the command that stored `record`.
    pub record_stamp: i64,
    /// Committed offsets by topic id.
    pub topics: BTreeMap<Uuid, TopicOffsets>,
}

/// Offsets that a group committed for one topic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TopicOffsets {
    /// Name of the topic when the offsets were committed.
    pub name: String,
    /// Newest metadata in which a committer saw the topic.
    pub metadata_index: u64,
    /// Offsets by partition.
    pub partitions: BTreeMap<i32, CommittedOffset>,
}

/// A committed offset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CommittedOffset {
    /// Offset of the next record to read.
    pub offset: i64,
    /// Leader epoch of the last record read; -1 if unknown.
    pub leader_epoch: i32,
    /// Whatever the client keeps with it.
    pub metadata: String,
    /// Clock of the commit, ms since 1970.
    pub stamp: i64,
}

/// What became of a command; the [`Reply`] of this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It took effect, or there was nothing left to do.
    Done,
    /// The group has had a rebalance since.
    StaleGeneration,
    /// A newer record of the group is in place.
    StaleRecord,
    /// The group has members.
    NotEmpty,
    /// There is no such group.
    UnknownGroup,
    /// The command can't be decoded by this build.
    Malformed,
}

/// The state as readers on this broker share it with the machine.
pub type StateView = Arc<RwLock<State>>;

/// The state machine of a coordinator group.
#[derive(Default)]
pub struct CoordinatorMachine {
    state: StateView,
}

impl GroupState {
    /// Whether the group had no members when it was last stored.
    pub fn is_empty(&self) -> bool {
        self.record
            .as_ref()
            .is_none_or(|record| record.members.is_empty())
    }

    /// Whether an offset is older than `retention_ms`, counted from when it
    /// was committed or from when the group lost its last member.
    fn has_expired(&self, offset: &CommittedOffset, now: i64, retention_ms: i64) -> bool {
        now.saturating_sub(offset.stamp.max(self.record_stamp)) >= retention_ms
    }

    /// Whether the group as a whole has nothing left that is worth keeping.
    fn is_forgotten(&self, now: i64, retention_ms: i64) -> bool {
        self.topics.is_empty() && now.saturating_sub(self.record_stamp) >= retention_ms
    }

    /// Whether [`ExpireOffsets`] would change anything.
    pub fn has_something_expired(&self, now: i64, retention_ms: i64) -> bool {
        let mut offsets = self
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values());
        self.is_empty()
            && (self.is_forgotten(now, retention_ms)
                || offsets.any(|offset| self.has_expired(offset, now, retention_ms)))
    }
}

impl CoordinatorMachine {
    /// A machine without groups, and the view onto its state.
    pub fn new() -> (CoordinatorMachine, StateView) {
        let machine = CoordinatorMachine::default();
        let view = machine.state.clone();
        (machine, view)
    }
}

impl StateMachine for CoordinatorMachine {
    fn apply(&mut self, entry: Applied<'_>) -> Reply {
        let Some(command) = entry.command else {
            return Box::new(Outcome::Done);
        };
        let outcome = match GroupCommand::decode(command) {
            Ok(decoded) => {
                let mut state = self
                    .state
                    .write()
                    .unwrap_or_else(|poison| poison.into_inner());
                state.apply(decoded, command.stamp)
            }
            Err(reason) => {
                error!(index = entry.index, %reason, "coordinator command skipped");
                Outcome::Malformed
            }
        };
        Box::new(outcome)
    }

    fn checkpoint(&self) -> Bytes {
        command::encode(
            &*self
                .state
                .read()
                .unwrap_or_else(|poison| poison.into_inner()),
        )
    }

    fn restore(&mut self, _index: u64, _term: u64, bytes: &[u8]) -> Result<(), MachineError> {
        let restored =
            command::decode::<State>(bytes).map_err(|reason| MachineError(reason.to_string()))?;
        *self
            .state
            .write()
            .unwrap_or_else(|poison| poison.into_inner()) = restored;
        Ok(())
    }
}

impl State {
    fn apply(&mut self, command: GroupCommand, stamp: i64) -> Outcome {
        match command {
            GroupCommand::CommitOffsets(commit) => self.commit(commit, stamp),
            GroupCommand::StoreGroup(store) => self.store(store, stamp),
            GroupCommand::DeleteGroup(delete) => self.delete(&delete.group),
            GroupCommand::DeleteOffsets(delete) => self.delete_offsets(delete),
            GroupCommand::ExpireOffsets(expire) => self.expire(expire, stamp),
            GroupCommand::DropTopics(drop) => self.drop_topics(drop),
        }
    }

    fn commit(&mut self, commit: CommitOffsets, stamp: i64) -> Outcome {
        let group = self.groups.entry(commit.group).or_default();
        // The coordinator has checked the member. What it can't see is a
        // rebalance that was stored between that check and this entry.
        let generation = group.record.as_ref().map_or(-1, |record| record.generation);
        if commit.generation >= 0 && commit.generation < generation {
            return Outcome::StaleGeneration;
        }
        for topic in commit.topics {
            let known = group.topics.entry(topic.id).or_default();
            known.name = topic.name;
            known.metadata_index = known.metadata_index.max(topic.metadata_index);
            for partition in topic.partitions {
                let committed = CommittedOffset {
                    offset: partition.offset,
                    leader_epoch: partition.leader_epoch,
                    metadata: partition.metadata,
                    stamp,
                };
                known.partitions.insert(partition.partition, committed);
            }
        }
        Outcome::Done
    }

    fn store(&mut self, store: StoreGroup, stamp: i64) -> Outcome {
        let group = self.groups.entry(store.group).or_default();
        if group
            .record
            .as_ref()
            .is_some_and(|record| record.revision >= store.record.revision)
        {
            return Outcome::StaleRecord;
        }
        group.record = Some(store.record);
        group.record_stamp = stamp;
        Outcome::Done
    }

    fn delete(&mut self, group: &str) -> Outcome {
        match self.groups.get(group) {
            None => Outcome::UnknownGroup,
            Some(state) if !state.is_empty() => Outcome::NotEmpty,
            Some(_) => {
                self.groups.remove(group);
                Outcome::Done
            }
        }
    }

    fn delete_offsets(&mut self, delete: DeleteOffsets) -> Outcome {
        let Some(group) = self.groups.get_mut(&delete.group) else {
            return Outcome::UnknownGroup;
        };
        for (id, partitions) in delete.topics {
            if let Some(topic) = group.topics.get_mut(&id) {
                topic
                    .partitions
                    .retain(|partition, _| !partitions.contains(partition));
            }
        }
        group.topics.retain(|_, topic| !topic.partitions.is_empty());
        Outcome::Done
    }

    fn expire(&mut self, expire: ExpireOffsets, now: i64) -> Outcome {
        for id in expire.groups {
            let Some(group) = self.groups.get_mut(&id).filter(|group| group.is_empty()) else {
                continue;
            };
            let mut topics = std::mem::take(&mut group.topics);
            for topic in topics.values_mut() {
                topic
                    .partitions
                    .retain(|_, offset| !group.has_expired(offset, now, expire.retention_ms));
            }
            topics.retain(|_, topic| !topic.partitions.is_empty());
            group.topics = topics;
            if group.is_forgotten(now, expire.retention_ms) {
                self.groups.remove(&id);
            }
        }
        Outcome::Done
    }

    fn drop_topics(&mut self, drop: DropTopics) -> Outcome {
        for group in self.groups.values_mut() {
            for topic in &drop.topics {
                group.topics.remove(topic);
            }
        }
        self.groups
            .retain(|_, group| group.record.is_some() || !group.topics.is_empty());
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::command::{MemberRecord, PartitionCommit, TopicCommit};

    const TOPIC: Uuid = Uuid::from_u128(1);
    const RECREATED: Uuid = Uuid::from_u128(2);

    fn run(machine: &mut CoordinatorMachine, stamp: i64, command: GroupCommand) -> Outcome {
        let command = command.encode(stamp);
        let reply = machine.apply(Applied {
            index: 1,
            term: 1,
            command: Some(&command),
        });
        *reply.downcast::<Outcome>().unwrap()
    }

    fn commit(generation: i32, topic: Uuid, offset: i64) -> GroupCommand {
        GroupCommand::CommitOffsets(CommitOffsets {
            group: "g".into(),
            generation,
            topics: vec![TopicCommit {
                id: topic,
                name: "orders".into(),
                metadata_index: 5,
                partitions: vec![PartitionCommit {
                    partition: 0,
                    offset,
                    leader_epoch: 4,
                    metadata: "mine".into(),
                }],
            }],
        })
    }

    fn store(revision: u64, generation: i32, members: &[&str]) -> GroupCommand {
        let members = members
            .iter()
            .map(|id| MemberRecord {
                id: id.to_string(),
                ..MemberRecord::default()
            })
            .collect();
        let record = GroupRecord {
            revision,
            generation,
            members,
            ..GroupRecord::default()
        };
        GroupCommand::StoreGroup(StoreGroup {
            group: "g".into(),
            record,
        })
    }

    fn offset(view: &StateView, topic: Uuid) -> Option<CommittedOffset> {
        let state = view.read().unwrap();
        state
            .groups
            .get("g")?
            .topics
            .get(&topic)?
            .partitions
            .get(&0)
            .cloned()
    }

    #[test]
    fn commits_and_groups_survive_checkpoint_and_restore() {
        let (mut machine, view) = CoordinatorMachine::new();
        assert_eq!(run(&mut machine, 1, store(1, 3, &["a"])), Outcome::Done);
        assert_eq!(run(&mut machine, 2, commit(3, TOPIC, 42)), Outcome::Done);
        let (mut other, restored) = CoordinatorMachine::new();
        run(&mut other, 1, commit(-1, RECREATED, 1));
        other.restore(9, 1, &machine.checkpoint()).unwrap();
        assert_eq!(*restored.read().unwrap(), *view.read().unwrap());
        let expected = CommittedOffset {
            offset: 42,
            leader_epoch: 4,
            metadata: "mine".into(),
            stamp: 2,
        };
        assert_eq!(offset(&restored, TOPIC), Some(expected));
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_and_changes_nothing() {
        let (mut machine, view) = CoordinatorMachine::new();
        run(&mut machine, 1, commit(-1, TOPIC, 42));
        let bytes = machine.checkpoint();
        assert!(machine.restore(1, 1, &bytes[..bytes.len() - 1]).is_err());
        assert!(machine.restore(1, 1, &[77]).is_err());
        assert_eq!(offset(&view, TOPIC).unwrap().offset, 42);
    }

    #[test]
    fn a_commit_of_an_older_generation_is_refused() {
        let (mut machine, view) = CoordinatorMachine::new();
        run(&mut machine, 1, store(1, 3, &["a"]));
        assert_eq!(
            run(&mut machine, 2, commit(2, TOPIC, 42)),
            Outcome::StaleGeneration
        );
        assert_eq!(offset(&view, TOPIC), None);
        assert_eq!(run(&mut machine, 3, commit(3, TOPIC, 43)), Outcome::Done);
    }

    #[test]
    fn an_older_record_never_replaces_a_newer_one() {
        let (mut machine, view) = CoordinatorMachine::new();
        run(&mut machine, 1, store(2, 5, &["a"]));
        assert_eq!(
            run(&mut machine, 2, store(1, 4, &["b"])),
            Outcome::StaleRecord
        );
        let state = view.read().unwrap();
        assert_eq!(state.groups["g"].record.as_ref().unwrap().generation, 5);
    }

    #[test]
    fn commits_of_a_recreated_topic_are_apart_from_those_of_the_old_one() {
        let (mut machine, view) = CoordinatorMachine::new();
        run(&mut machine, 1, commit(-1, TOPIC, 42));
        assert_eq!(offset(&view, RECREATED), None);
        run(&mut machine, 2, commit(-1, RECREATED, 7));
        run(
            &mut machine,
            3,
            GroupCommand::DropTopics(DropTopics {
                topics: vec![TOPIC],
            }),
        );
        assert_eq!(offset(&view, TOPIC), None);
        assert_eq!(offset(&view, RECREATED).unwrap().offset, 7);
    }

    #[test]
    fn only_groups_without_members_can_be_deleted() {
        let (mut machine, view) = CoordinatorMachine::new();
        let delete = || GroupCommand::DeleteGroup(command::DeleteGroup { group: "g".into() });
        assert_eq!(run(&mut machine, 1, delete()), Outcome::UnknownGroup);
        run(&mut machine, 1, store(1, 3, &["a"]));
        assert_eq!(run(&mut machine, 2, delete()), Outcome::NotEmpty);
        run(&mut machine, 3, store(2, 4, &[]));
        assert_eq!(run(&mut machine, 4, delete()), Outcome::Done);
        assert!(view.read().unwrap().groups.is_empty());
    }

    #[test]
    fn offsets_expire_only_while_the_group_has_no_members() {
        let (mut machine, view) = CoordinatorMachine::new();
        let expire = || {
            GroupCommand::ExpireOffsets(ExpireOffsets {
                retention_ms: 100,
                groups: vec!["g".into()],
            })
        };
        run(&mut machine, 0, commit(-1, TOPIC, 42));
        run(&mut machine, 10, store(1, 3, &["a"]));
        run(&mut machine, 500, expire());
        assert!(offset(&view, TOPIC).is_some(), "the group has a member");
        run(&mut machine, 600, store(2, 4, &[]));
        run(&mut machine, 650, expire());
        assert!(
            offset(&view, TOPIC).is_some(),
            "the group has been empty for 50 ms only"
        );
        assert!(!view.read().unwrap().groups["g"].has_something_expired(650, 100));
        assert!(view.read().unwrap().groups["g"].has_something_expired(700, 100));
        run(&mut machine, 700, expire());
        assert!(view.read().unwrap().groups.is_empty());
    }

    #[test]
    fn deleted_offsets_leave_the_others_alone() {
        let (mut machine, view) = CoordinatorMachine::new();
        run(&mut machine, 0, commit(-1, TOPIC, 1));
        run(&mut machine, 0, commit(-1, RECREATED, 2));
        let delete = DeleteOffsets {
            group: "g".into(),
            topics: vec![(TOPIC, vec![0, 9])],
        };
        assert_eq!(
            run(&mut machine, 1, GroupCommand::DeleteOffsets(delete)),
            Outcome::Done
        );
        assert_eq!(offset(&view, TOPIC), None);
        assert_eq!(offset(&view, RECREATED).unwrap().offset, 2);
    }
}
