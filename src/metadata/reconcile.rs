//! Makes the groups that this broker leads follow their placement.
//!
//! One task on every broker. A broker that comes back on an empty disk is
//! another replica, which the metadata puts in the place of the old one (see
//! [`super::image::Placement`]); the group's leader then lets it learn the log,
//! makes it a voter when it has caught up, and lets the old one go. Only groups
//! whose placement has ever changed are looked at, and only when the metadata,
//! the brokers' lives or what is led here has changed: at rest it costs nothing.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use drave_raft::{Group, GroupId, ReplicaId};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::Metadata;
use super::image::Image;
use super::replacement::{Step, is_lost, next_step};

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
            if self.busy.contains(&group) {
                continue;
            }
            let Some(open) = raft.group(group) else {
                // It is being opened.
                self.again |= placement.replicas.contains(&raft.replica());
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
                self.again = true;
            }
        }
        if !self.is_something_left() && self.whole > 0 {
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
