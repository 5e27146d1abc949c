//! The oracle: is told everything that nodes apply, acknowledge and claim, and
//! knows from it what may never be.
//!
//! - An index of a group holds one entry, on every node and for ever.
//! - A command is in the log at most once, and where its proposer was told.
//! - What was acknowledged when a command was proposed, or a read was begun, comes before it.
//! - A node applies every entry once and in order; a checkpoint is what was applied.
//! - A term of a group has one leader.

use std::collections::BTreeMap;

use tracing::info;

/// A command's number: no two proposals have the same.
pub(crate) type CommandId = u64;

#[derive(Default)]
struct History {
    /// Every entry that any node has applied: its term, and its command if it has one.
    applied: BTreeMap<u64, (u64, Option<CommandId>)>,
    index_of: BTreeMap<CommandId, u64>,
    acknowledged: BTreeMap<u64, CommandId>,
    /// When the newest of the acknowledged commands was proposed.
    proposed_ms: u64,
    leaders: BTreeMap<u64, usize>,
}

/// What one process of one node has applied of one group.
#[derive(Default)]
struct Replica {
    next: u64,
    commands: Vec<(u64, CommandId)>,
}

/// Everything that was seen, and the first thing that may not be.
#[derive(Default)]
pub(crate) struct Oracle {
    groups: BTreeMap<u64, History>,
    replicas: BTreeMap<(usize, u64), Replica>,
    violation: Option<String>,
}

/// What was known when a command was proposed or a read begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    acknowledged: Option<u64>,
    ms: u64,
}

impl Oracle {
    fn violated(&mut self, what: String) {
        info!(target: "simulation", what, "VIOLATION");
        self.violation.get_or_insert(what);
    }

    /// The first violation.
    pub(crate) fn violation(&self) -> Option<&str> {
        self.violation.as_deref()
    }

    /// A process has opened its replica of a group, without a state yet.
    pub(crate) fn opened(&mut self, node: usize, group: u64) {
        self.replicas.insert((node, group), Replica::default());
    }

    /// A node has applied an entry.
    pub(crate) fn applied(
        &mut self,
        node: usize,
        group: u64,
        index: u64,
        term: u64,
        command: Option<CommandId>,
    ) {
        info!(target: "simulation", node, group, index, term, command, "applied");
        let replica = self.replicas.entry((node, group)).or_default();
        let expected = std::mem::replace(&mut replica.next, index + 1);
        replica.commands.extend(command.map(|id| (index, id)));
        if index != expected {
            self.violated(format!(
                "node {node} applied index {index} of group {group} when {expected} was next"
            ));
        }
        let history = self.groups.entry(group).or_default();
        let here = *history.applied.entry(index).or_insert((term, command));
        if here != (term, command) {
            self.violated(format!(
                "node {node} applied {command:?} of term {term} at index {index} of group {group}, \
                 where {:?} of term {} was applied before",
                here.1, here.0
            ));
            return;
        }
        if let Some(id) = command {
            let first = *history.index_of.entry(id).or_insert(index);
            if first != index {
                self.violated(format!(
                    "command {id} is in group {group} twice: at {first} and at {index}"
                ));
            }
        }
    }

    /// A node has replaced its state by a checkpoint that ends at `index`.
    pub(crate) fn restored(
        &mut self,
        node: usize,
        group: u64,
        index: u64,
        commands: &[(u64, CommandId)],
    ) {
        info!(target: "simulation", node, group, index, "restored");
        let history = self.groups.entry(group).or_default();
        let expected = history.applied.range(..=index);
        let expected: Vec<_> = expected
            .filter_map(|(index, (_, id))| id.map(|id| (*index, id)))
            .collect();
        self.replicas.insert(
            (node, group),
            Replica {
                next: index + 1,
                commands: commands.to_vec(),
            },
        );
        if expected != commands {
            self.violated(format!(
                "node {node} restored a checkpoint of group {group} at {index} with {} commands, \
                 {} were applied",
                commands.len(),
                expected.len()
            ));
        }
    }

    /// What is known now, before something is proposed or read.
    pub(crate) fn before(&self, group: u64, ms: u64) -> Before {
        let history = self.groups.get(&group);
        let newest = history.and_then(|history| history.acknowledged.last_key_value());
        Before {
            acknowledged: newest.map(|(index, _)| *index),
            ms,
        }
    }

    /// A proposer was told that its command is committed.
    pub(crate) fn acknowledged(
        &mut self,
        node: usize,
        group: u64,
        (index, term): (u64, u64),
        command: CommandId,
        before: Before,
    ) {
        info!(target: "simulation", node, group, index, term, command, "acknowledged");
        self.leads(node, group, term);
        let history = self.groups.entry(group).or_default();
        history.acknowledged.insert(index, command);
        history.proposed_ms = history.proposed_ms.max(before.ms);
        let here = history.applied.get(&index).copied();
        if here != Some((term, Some(command))) {
            self.violated(format!(
                "node {node} acknowledged command {command} at index {index} of group {group} in \
                 term {term}, but applied there is {here:?}"
            ));
        }
        if before.acknowledged.is_some_and(|newest| newest >= index) {
            self.violated(format!(
                "command {command} of group {group} went to index {index}, before {:?}, which was \
                 acknowledged before it was proposed",
                before.acknowledged
            ));
        }
    }

    /// A leader has confirmed that reads begun at `before` may be answered.
    pub(crate) fn may_read(&mut self, node: usize, group: u64, before: Before) {
        let replica = self.replicas.entry((node, group)).or_default();
        let next = replica.next;
        if before.acknowledged.is_some_and(|newest| newest >= next) {
            self.violated(format!(
                "node {node} may answer reads of group {group} having applied up to {next}, but \
                 {:?} was acknowledged before the read",
                before.acknowledged
            ));
        }
    }

    /// A node says that it leads a group and is ready to serve it.
    pub(crate) fn leads(&mut self, node: usize, group: u64, term: u64) {
        let history = self.groups.entry(group).or_default();
        let known = history.leaders.insert(term, node);
        match known {
            None => info!(target: "simulation", node, group, term, "leads"),
            Some(other) if other != node => self.violated(format!(
                "term {term} of group {group} has two leaders: node {other} and node {node}"
            )),
            Some(_) => {}
        }
    }

    /// Whether something that was proposed after `ms` was acknowledged in each of the groups.
    pub(crate) fn has_progressed(&self, groups: u64, ms: u64) -> bool {
        (1..=groups).all(|group| {
            let history = self.groups.get(&group);
            history.is_some_and(|history| history.proposed_ms > ms)
        })
    }

    /// The replicas that have not applied everything that any node has.
    pub(crate) fn behind(&self, replicas: &[(usize, u64)]) -> Vec<(usize, u64)> {
        let next = |(node, group): &(usize, u64)| {
            let replica = self.replicas.get(&(*node, *group));
            replica.map_or(0, |replica| replica.next)
        };
        let end = |group: &u64| {
            let history = self.groups.get(group);
            let newest = history.and_then(|history| history.applied.last_key_value());
            newest.map_or(0, |(index, _)| index + 1)
        };
        let behind = replicas.iter().filter(|at| next(at) != end(&at.1));
        behind.copied().collect()
    }

    /// At rest: every acknowledged command is on every replica, once, in its place.
    pub(crate) fn final_check(&mut self, replicas: &[(usize, u64)]) {
        for (node, group) in replicas {
            let (Some(history), Some(replica)) =
                (self.groups.get(group), self.replicas.get(&(*node, *group)))
            else {
                continue;
            };
            let has: BTreeMap<u64, CommandId> = replica.commands.iter().copied().collect();
            let mut acknowledged = history.acknowledged.iter();
            let lost = acknowledged.find(|(index, id)| has.get(index) != Some(id));
            if let Some((index, id)) = lost {
                self.violated(format!(
                    "command {id}, acknowledged at index {index} of group {group}, is not there \
                     on node {node}"
                ));
            }
        }
    }

    /// Acknowledged commands in all groups.
    pub(crate) fn acknowledged_count(&self) -> usize {
        let groups = self.groups.values();
        groups.map(|history| history.acknowledged.len()).sum()
    }

    /// Terms that had a leader, in all groups.
    pub(crate) fn terms_count(&self) -> usize {
        let groups = self.groups.values();
        groups.map(|history| history.leaders.len()).sum()
    }
}
