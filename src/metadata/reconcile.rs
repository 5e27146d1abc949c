//! Makes the groups that this broker leads follow their placement.
//!
//! One task on every broker. A broker that comes back on an empty disk is
//! another replica, which the metadata puts in the place of the old one (see
//! [`super::image::Placement`]); the group's leader then lets it learn the log,
//! makes it a voter when it has caught up, and lets the old one go. Only groups
//! whose placement has ever changed are looked at, and only when the metadata,
//! the brokers' lives or what is led here has changed: at rest it costs nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use drave_raft::{Group, GroupId, GroupStatus, PeerStatus, ReplicaId};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::Metadata;
use super::image::{BrokerRegistration, Image, Placement};

/// Groups that are changed, or that let a replica catch up, at the same time.
const WORKING_MAX: usize = 8;
/// Changes come in bursts: they are gathered for this long.
const GATHER: Duration = Duration::from_millis(100);
/// How often what is left is looked at again.
const RETRY: Duration = Duration::from_secs(1);
/// How often a replica that catches up is looked at.
const POLL: Duration = Duration::from_millis(50);
/// A group whose replica has not caught up by then lets others go first.
const TURN: Duration = Duration::from_secs(30);
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// A replica that lacks no more entries than this may vote.
const CAUGHT_UP_LAG_ENTRIES: u64 = 100;

/// What a group needs next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
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

/// How the work on a group ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Whole,
    /// Something else has to change first, and will be told.
    Elsewhere,
    /// It is to be tried again.
    Again,
}

/// Follows placements for as long as the broker runs.
pub(super) async fn run(metadata: Arc<Metadata>) {
    let mut image = metadata.watch();
    let mut peers = metadata.raft.watch_peers();
    let mut led = metadata.raft.watch_groups_led();
    let mut reconciler = Reconciler::new(metadata);
    // A broker that has just started looks at what it finds.
    let mut look = true;
    loop {
        if look {
            sleep(GATHER).await;
            image.borrow_and_update();
            peers.borrow_and_update();
            led.borrow_and_update();
            reconciler.look();
        }
        reconciler.work_on();
        look = tokio::select! {
            changed = image.changed() => changed.is_ok(),
            changed = peers.changed() => changed.is_ok(),
            changed = led.changed() => changed.is_ok(),
            Some(done) = reconciler.working.join_next() => {
                reconciler.done(done);
                false
            }
            () = sleep(RETRY), if reconciler.is_something_left() => true,
        };
        if image.has_changed().is_err() {
            return;
        }
    }
}

struct Reconciler {
    metadata: Arc<Metadata>,
    queue: VecDeque<(Group, Vec<ReplicaId>)>,
    busy: HashSet<GroupId>,
    working: JoinSet<(GroupId, End)>,
    /// A group's turn ended before it was whole.
    again: bool,
    /// How many became whole since there was last nothing to do.
    whole: usize,
    /// How many groups were lost when this was last said.
    lost: usize,
}

impl Reconciler {
    fn new(metadata: Arc<Metadata>) -> Self {
        Self {
            metadata,
            queue: VecDeque::new(),
            busy: HashSet::new(),
            working: JoinSet::new(),
            again: false,
            whole: 0,
            lost: 0,
        }
    }

    fn is_something_left(&self) -> bool {
        !self.queue.is_empty() || !self.busy.is_empty() || self.again
    }

    /// Finds the groups that have something to do.
    fn look(&mut self) {
        let image = self.metadata.image();
        let raft = &self.metadata.raft;
        let peers = raft.peers();
        let idle = !self.is_something_left();
        self.queue.clear();
        self.again = false;
        let mut lost = Vec::new();
        for placement in image
            .placements()
            .filter(|placed| placed.founders.is_some())
        {
            let group = GroupId(placement.group);
            let Some(open) = raft.group(group).filter(|_| !self.busy.contains(&group)) else {
                continue;
            };
            let status = open.status();
            if !status.ready {
                if raft.leadership(group).is_none() && is_lost(placement, &status, &image.brokers) {
                    lost.push(group);
                }
                continue;
            }
            match next_step(&placement.replicas, &peers, &status) {
                Step::Whole | Step::Absent => {}
                _ => self.queue.push_back((open, placement.replicas.clone())),
            }
        }
        if idle && !self.queue.is_empty() {
            let groups = self.queue.len();
            info!(groups, "replicas on new disks take the place of old ones");
        }
        self.say_what_is_lost(&image, &lost);
    }

    fn say_what_is_lost(&mut self, image: &Image, lost: &[GroupId]) {
        if lost.len() > self.lost {
            let named = |group: &GroupId| describe(image, *group);
            let some: Vec<String> = lost.iter().take(5).map(named).collect();
            error!(
                groups = lost.len(),
                ?some,
                "a majority of the replicas of these lost their disks: they stay without a leader; \
                 start their brokers with the old disks, or delete the topics and create them again"
            );
        }
        self.lost = lost.len();
    }

    /// Takes on as much as is worked on at the same time.
    fn work_on(&mut self) {
        while self.working.len() < WORKING_MAX
            && let Some((group, placed)) = self.queue.pop_front()
        {
            self.busy.insert(group.id());
            let metadata = self.metadata.clone();
            self.working.spawn(async move {
                let end = reconcile(&metadata, &group, &placed).await;
                (group.id(), end)
            });
        }
    }

    fn done(&mut self, done: Result<(GroupId, End), tokio::task::JoinError>) {
        match done {
            Ok((group, end)) => {
                self.busy.remove(&group);
                self.again |= end == End::Again;
                self.whole += usize::from(end == End::Whole);
            }
            Err(error) => {
                error!(%error, "a group's voters could not be changed");
                self.busy.clear();
            }
        }
        if !self.is_something_left() {
            let groups = std::mem::take(&mut self.whole);
            info!(
                groups,
                "replicas on new disks have taken the place of old ones"
            );
        }
    }
}

/// Goes step by step until the group is whole, can't go on, or its turn is over.
async fn reconcile(metadata: &Metadata, group: &Group, placed: &[ReplicaId]) -> End {
    let turn_ends = Instant::now() + TURN;
    loop {
        let status = group.status();
        if !status.ready {
            return End::Elsewhere;
        }
        let step = next_step(placed, &metadata.raft.peers(), &status);
        if !matches!(step, Step::Wait) {
            debug!(group = %group.id(), ?step, "following the placement");
        }
        let done = match step {
            Step::Whole => return End::Whole,
            Step::Absent => return End::Elsewhere,
            Step::Wait => {
                sleep(POLL).await;
                Ok(())
            }
            Step::Learn(new) => group.add_learners(new, CHANGE_TIMEOUT).await,
            Step::Vote(voters) => group.change_voters(voters, CHANGE_TIMEOUT).await,
            Step::Forget(old) => group.remove_learners(old, CHANGE_TIMEOUT).await,
        };
        if let Err(error) = done {
            warn!(group = %group.id(), %error, "the group's members could not be changed yet");
            sleep(RETRY).await;
            return End::Again;
        }
        if Instant::now() >= turn_ends {
            return End::Again;
        }
    }
}

/// What the group needs next, as its leader sees it.
fn next_step(placed: &[ReplicaId], peers: &[PeerStatus], status: &GroupStatus) -> Step {
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
fn is_lost(
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

/// What a group is, in words.
fn describe(image: &Image, group: GroupId) -> String {
    for topic in image.topics.values() {
        let mut partitions = topic.partitions.iter();
        if let Some(index) = partitions.position(|placed| placed.group == group.0) {
            return format!("{}-{index}", topic.name);
        }
    }
    format!("coordinator group {}", group.0)
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
