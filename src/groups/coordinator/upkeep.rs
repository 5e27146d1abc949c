//! What a coordinator does by itself: taking over, deadlines, old and orphaned offsets.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use kafka_protocol::ResponseError;
use tokio::time::Instant;
use tracing::{debug, info};

use super::volatile::Volatile;
use super::{Coordinator, wall_clock};
use crate::groups::command::{DropTopics, ExpireOffsets, GroupCommand};
use crate::groups::membership::Membership;
use crate::metadata::image::Image;

impl Coordinator {
    /// Takes over the groups as they are stored; whoever waits is told to look for the coordinator.
    pub(super) fn load(&self, volatile: &mut Volatile, term: u64) {
        *volatile = Volatile {
            term: Some(term),
            ..Volatile::default()
        };
        let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        for (id, group) in &state.groups {
            if let Some(record) = group
                .record
                .as_ref()
                .filter(|record| !record.members.is_empty())
            {
                volatile
                    .groups
                    .insert(id.clone(), Membership::restore(self.limits, record, now));
                volatile.reschedule(id);
            }
        }
        info!(
            coordinator = %self.group.id(), term, groups = volatile.groups.len(),
            "coordinator serves"
        );
        self.rescheduled.notify_one();
    }

    /// Looks at its leadership: loads the groups as a new leader, forgets them
    /// when deposed. False: leads, but must not serve yet.
    pub(in crate::groups) fn follow_leadership(&self) -> bool {
        match self.serving() {
            Ok(_) => true,
            Err(ResponseError::CoordinatorLoadInProgress) => false,
            Err(_) => {
                *self.volatile.lock().unwrap_or_else(PoisonError::into_inner) = Volatile::default();
                true
            }
        }
    }
    /// When the timer has to ring next.
    pub(in crate::groups) fn next_deadline(&self) -> Option<Instant> {
        let volatile = self.volatile.lock().unwrap_or_else(PoisonError::into_inner);
        let (at, _) = volatile.deadlines.first()?;
        Some(self.epoch + Duration::from_millis(*at))
    }

    /// Lets every group act whose deadline has come.
    pub(in crate::groups) fn tick(self: &Arc<Self>) {
        let Ok(mut volatile) = self.serving() else {
            self.follow_leadership();
            return;
        };
        let now = self.now();
        while let Some((at, group)) = volatile.deadlines.first().cloned() {
            if at > now {
                break;
            }
            volatile.deadlines.pop_first();
            volatile.deadline_of.remove(&group);
            debug!(coordinator = %self.group.id(), group, "group deadline");
            self.with(&mut volatile, &group, |membership, now| {
                membership.tick(now)
            });
        }
    }

    /// Forgets offsets that are older than `retention`, of groups without members.
    pub(in crate::groups) async fn expire_offsets(&self, retention: Duration) {
        let retention_ms = i64::try_from(retention.as_millis()).unwrap_or(i64::MAX);
        let groups: Vec<String> = {
            let Ok(mut volatile) = self.serving() else {
                return;
            };
            volatile
                .groups
                .retain(|_, membership| !membership.is_idle());
            let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
            let now = wall_clock();
            let expired = state.groups.iter().filter(|(id, group)| {
                group.has_something_expired(now, retention_ms) && !volatile.groups.contains_key(*id)
            });
            expired.map(|(id, _)| id.clone()).collect()
        };
        if !groups.is_empty() {
            let count = groups.len();
            let expire = GroupCommand::ExpireOffsets(ExpireOffsets {
                retention_ms,
                groups,
            });
            let outcome = self.propose(expire).await;
            info!(coordinator = %self.group.id(), count, ?outcome, "old offsets expired");
        }
    }

    /// Forgets offsets of topics that are gone according to this metadata.
    pub(in crate::groups) async fn drop_deleted_topics(&self, image: &Image) {
        let gone: BTreeSet<uuid::Uuid> = {
            let Ok(_volatile) = self.serving() else {
                return;
            };
            let state = self.view.read().unwrap_or_else(PoisonError::into_inner);
            let topics = state.groups.values().flat_map(|group| &group.topics);
            topics
                .filter(|(id, topic)| {
                    topic.metadata_index <= image.applied_index
                        && !image.topic_names.contains_key(*id)
                })
                .map(|(id, _)| *id)
                .collect()
        };
        if !gone.is_empty() {
            let topics: Vec<_> = gone.into_iter().collect();
            let count = topics.len();
            let drop = GroupCommand::DropTopics(DropTopics { topics });
            let outcome = self.propose(drop).await;
            info!(coordinator = %self.group.id(), count, ?outcome, "offsets of deleted topics dropped");
        }
    }
}
