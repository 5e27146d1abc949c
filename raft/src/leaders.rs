//! Who leads which group, cluster-wide: nodes tell each other what they lead.
//!
//! A leadership is announced when its leader is ready to serve. The highest term
//! wins; what a dead or restarted node led is forgotten.

use std::collections::HashMap;
use std::sync::{Mutex, RwLock};

use drave_storage::GroupId;
use tokio::sync::{Notify, watch};

use crate::types::{Leadership, ReplicaId};

/// The table, and what is still to be announced.
#[derive(Default)]
pub(crate) struct Leaders {
    table: RwLock<HashMap<GroupId, Leadership>>,
    unannounced: Mutex<Vec<(u64, u64)>>,
    wake: Notify,
    /// How many leaderships this node has won.
    won: watch::Sender<u64>,
}

impl Leaders {
    /// The leader of a group.
    pub(crate) fn get(&self, group: GroupId) -> Option<Leadership> {
        self.table
            .read()
            .expect("never poisoned")
            .get(&group)
            .copied()
    }

    /// Learns of a leadership; older terms are ignored.
    pub(crate) fn learn(&self, group: GroupId, leadership: Leadership) {
        let mut table = self.table.write().expect("never poisoned");
        let known = table.entry(group).or_insert(leadership);
        if known.term <= leadership.term {
            *known = leadership;
        }
    }

    /// This replica leads a group and is ready: learns and announces it.
    pub(crate) fn announce(&self, group: GroupId, leadership: Leadership) {
        self.learn(group, leadership);
        self.unannounced
            .lock()
            .expect("never poisoned")
            .push((group.0, leadership.term));
        self.wake.notify_one();
        self.won.send_modify(|won| *won += 1);
    }

    /// Changes whenever this node has won a leadership and is ready.
    pub(crate) fn watch_won(&self) -> watch::Receiver<u64> {
        self.won.subscribe()
    }

    /// Waits for something to announce. Bounded by the number of groups.
    pub(crate) async fn unannounced(&self) -> Vec<(u64, u64)> {
        loop {
            let taken = std::mem::take(&mut *self.unannounced.lock().expect("never poisoned"));
            if !taken.is_empty() {
                return taken;
            }
            self.wake.notified().await;
        }
    }

    /// Everything that `replica` leads.
    pub(crate) fn led_by(&self, replica: ReplicaId) -> Vec<(u64, u64)> {
        let table = self.table.read().expect("never poisoned");
        let led = table.iter().filter(|(_, known)| known.leader == replica);
        led.map(|(group, known)| (group.0, known.term)).collect()
    }

    /// A broker's process is gone, and with it what it led.
    pub(crate) fn forget_broker(&self, broker: u32) {
        let mut table = self.table.write().expect("never poisoned");
        table.retain(|_, known| known.leader.broker != broker);
    }

    /// A group is gone.
    pub(crate) fn forget_group(&self, group: GroupId) {
        self.table.write().expect("never poisoned").remove(&group);
    }
}
