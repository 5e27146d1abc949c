//! What a group needs so that its members become those that are placed. Pure:
//! decided from what the group's leader sees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use drave_raft::{GroupStatus, PeerStatus, ReplicaId};

use super::image::{BrokerRegistration, Placement};

/// A replica that lacks no more entries than this may vote.
const CAUGHT_UP_LAG_ENTRIES: u64 = 100;

/// What a group needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Its members are those that are placed.
    Whole,
    /// A replica that is not there.
    Absent,
    /// Time for a replica to catch up.
    Wait,
    /// These replicas as learners.
    Learn(Vec<ReplicaId>),
    /// These replicas as its voters.
    Vote(Vec<ReplicaId>),
    /// These learners removed.
    Forget(Vec<ReplicaId>),
}

/// What the group needs next, as its leader sees it.
pub(super) fn next_step(placed: &[ReplicaId], peers: &[PeerStatus], status: &GroupStatus) -> Step {
    let is_there = |replica: &ReplicaId| {
        let mut peers = peers.iter();
        peers.any(|peer| peer.alive && peer.replica == Some(*replica))
    };
    let (voters, learners) = (&status.voters, &status.learners);
    let missing = |replica: &&ReplicaId| !voters.contains(replica) && !learners.contains(replica);
    let new: Vec<_> = (placed.iter().filter(missing).copied())
        .filter(|replica| is_there(replica))
        .collect();
    if !new.is_empty() {
        return Step::Learn(new);
    }
    // Until a broker's new replica has caught up, its old one stays, dead or not:
    // with a voter less, a smaller majority would do.
    let mut wanted = BTreeSet::new();
    for replica in placed {
        if voters.contains(replica) || is_there(replica) && has_caught_up(replica, status) {
            wanted.insert(*replica);
        } else {
            let before = voters.iter().filter(|old| old.broker == replica.broker);
            wanted.extend(before);
        }
    }
    if !wanted.is_empty() && wanted != voters.iter().copied().collect() {
        return Step::Vote(wanted.into_iter().collect());
    }
    let old: Vec<_> = (learners.iter().filter(|learner| !placed.contains(learner)))
        .copied()
        .collect();
    if !old.is_empty() {
        return Step::Forget(old);
    }
    let mut to_come = placed.iter().filter(|replica| !voters.contains(replica));
    match to_come.next() {
        None => Step::Whole,
        Some(first) if is_there(first) || to_come.any(is_there) => Step::Wait,
        Some(_) => Step::Absent,
    }
}

fn has_caught_up(replica: &ReplicaId, status: &GroupStatus) -> bool {
    let end = |last: Option<u64>| last.map_or(0, |index| index + 1);
    let mut matched = status.matched.iter();
    let matched = matched.find(|(known, _)| known == replica);
    let lag =
        |(_, last): &(ReplicaId, Option<u64>)| end(status.last_index).saturating_sub(end(*last));
    matched.is_some_and(|known| lag(known) <= CAUGHT_UP_LAG_ENTRIES)
}

/// Whether so many voters are gone for good that the group can't have a leader.
pub(super) fn is_lost(
    placement: &Placement,
    status: &GroupStatus,
    brokers: &BTreeMap<u32, Arc<BrokerRegistration>>,
) -> bool {
    let voters = match status.voters.as_slice() {
        // An empty replica knows no more than who made the group.
        [] => placement.founders(),
        voters => voters,
    };
    let gone = |voter: &&ReplicaId| {
        let known = brokers.get(&voter.broker);
        known.is_some_and(|known| known.replica != **voter)
    };
    voters.iter().filter(gone).count() > voters.len().saturating_sub(1) / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: ReplicaId = replica(1, 1);
    const NEW: ReplicaId = replica(1, 2);
    const B: ReplicaId = replica(2, 1);
    const C: ReplicaId = replica(3, 1);

    const fn replica(broker: u32, directory: u128) -> ReplicaId {
        ReplicaId { broker, directory }
    }

    fn peers(replicas: &[ReplicaId]) -> Vec<PeerStatus> {
        let peer = |replica: &ReplicaId| PeerStatus {
            broker: replica.broker,
            replica: Some(*replica),
            alive: true,
            incarnation: 1,
            sync_age_ms: 0,
        };
        replicas.iter().map(peer).collect()
    }

    fn status(voters: &[ReplicaId], learners: &[ReplicaId]) -> GroupStatus {
        let members = voters.iter().chain(learners);
        GroupStatus {
            last_index: Some(1_000),
            voters: voters.to_vec(),
            learners: learners.to_vec(),
            matched: members.map(|member| (*member, Some(1_000))).collect(),
            ..GroupStatus::default()
        }
    }

    #[test]
    fn a_new_replica_learns_then_votes_and_the_old_one_goes() {
        let placed = [NEW, B, C];
        let there = peers(&placed);
        let step = |status: &GroupStatus| next_step(&placed, &there, status);
        assert_eq!(step(&status(&[OLD, B, C], &[])), Step::Learn(vec![NEW]));
        let mut learning = status(&[OLD, B, C], &[NEW]);
        for (member, matched) in &mut learning.matched {
            if *member == NEW {
                *matched = None;
            }
        }
        assert_eq!(step(&learning), Step::Wait);
        let voters = Step::Vote(vec![NEW, B, C]);
        assert_eq!(step(&status(&[OLD, B, C], &[NEW])), voters);
        // A leader that died between the two halves of the change.
        assert_eq!(step(&status(&[OLD, NEW, B, C], &[])), voters);
        assert_eq!(step(&status(&[NEW, B, C], &[])), Step::Whole);
    }

    #[test]
    fn nothing_changes_while_the_new_replica_is_not_there() {
        let placed = [NEW, B, C];
        for there in [peers(&[B, C]), peers(&[OLD, B, C])] {
            let step = next_step(&placed, &there, &status(&[OLD, B, C], &[]));
            assert_eq!(step, Step::Absent);
            let step = next_step(&placed, &there, &status(&[OLD, B, C], &[NEW]));
            assert_eq!(step, Step::Absent, "whatever it has learnt");
        }
    }

    #[test]
    fn a_disk_that_was_lost_twice_leaves_no_learner_behind() {
        let placed = [replica(1, 3), B, C];
        let there = peers(&placed);
        let step = |status: &GroupStatus| next_step(&placed, &there, status);
        let learner = status(&[OLD, B, C], &[NEW]);
        assert_eq!(step(&learner), Step::Learn(vec![placed[0]]));
        let voted = status(&placed, &[NEW]);
        assert_eq!(step(&voted), Step::Forget(vec![NEW]));
        // In the middle of the first change: both are kept until the third has caught up.
        let mut both = status(&[OLD, NEW, B, C], &[placed[0]]);
        assert_eq!(step(&both), Step::Vote(placed.to_vec()));
        both.matched.clear();
        assert_eq!(step(&both), Step::Wait);
    }

    #[test]
    fn two_brokers_are_replaced_one_by_one() {
        let two = replica(2, 2);
        let placed = [NEW, two, C];
        let voters = status(&[OLD, B, C], &[NEW]);
        let step = |there: &[ReplicaId]| next_step(&placed, &peers(there), &voters);
        assert_eq!(step(&[NEW, C]), Step::Vote(vec![NEW, B, C]));
        assert_eq!(step(&[NEW, two, C]), Step::Learn(vec![two]));
    }

    #[test]
    fn a_group_is_lost_when_no_majority_kept_its_disk() {
        let image = |replicas: &[ReplicaId]| -> BTreeMap<u32, Arc<BrokerRegistration>> {
            let registration = |replica: &ReplicaId| BrokerRegistration {
                replica: *replica,
                incarnation: 1,
                host: "localhost".into(),
                port: 1,
                peer_address: ([127, 0, 0, 1], 1).into(),
                rack: None,
                fenced: false,
            };
            let brokers = replicas.iter();
            brokers
                .map(|replica| (replica.broker, Arc::new(registration(replica))))
                .collect()
        };
        let lost = |founders: &[ReplicaId], voters: &[ReplicaId], brokers: &[ReplicaId]| {
            let mut placement = Placement::new(1, founders.to_vec());
            placement.update(&image(brokers));
            is_lost(&placement, &status(voters, &[]), &image(brokers))
        };
        assert!(!lost(&[OLD, B, C], &[OLD, B, C], &[NEW, B, C]));
        assert!(lost(&[OLD, B, C], &[OLD, B, C], &[NEW, replica(2, 2), C]));
        assert!(!lost(&[OLD, B, C], &[NEW, B, C], &[NEW, replica(2, 2), C]));
        assert!(lost(&[OLD], &[], &[NEW]));
        assert!(lost(&[OLD, B], &[OLD, B], &[NEW, B]));
    }
}
