//! One scenario from an empty cluster to a history.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use drave_durability::disk::{NamesPolicy, Options, Torn};
use drave_durability::history::{self, History};
use kafka_protocol::messages::CreateTopicsRequest;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use super::brokers::{BROKERS, Brokers};
use super::clients::{Clients, Load};
use super::clock::Clock;
use super::committers;
use super::consumers::read_back;
use super::kind::Kind;
use super::producers::Counters;
use super::progress::Progress;
use super::scenario::Scenario;
use super::stage::Stage;
use crate::client::{Cluster, check, topic_name};

/// Time without a fault before the first and after the last.
pub(super) const CALM: Duration = Duration::from_secs(3);
/// How long a new topic may take.
const TOPIC_WITHIN: Duration = Duration::from_secs(60);
const TOPIC: &str = "durability";

/// Runs scenarios against clusters of one kind.
pub struct Runner {
    /// Whose brokers.
    pub kind: Kind,
    /// What is done to them all the time.
    pub load: Load,
    /// How often a scenario's fault is repeated.
    pub rounds: u32,
    /// Decides whom faults hit, and when.
    pub seed: u64,
    /// What a power cut leaves of bytes that were not synced,
    pub torn: Torn,
    /// and of names.
    pub names: NamesPolicy,
}

/// What came of a scenario.
#[derive(Debug, Default)]
pub struct Outcome {
    /// What its clients asked, were told and saw.
    pub history: History,
    /// Remarks for the report.
    pub notes: Vec<String>,
    /// Why it did not come to its end, if it did not; the history is that of the time until then.
    pub broken_off: Option<String>,
}

impl Runner {
    /// Plays a scenario on a new cluster below `folder`. An error: the cluster did not even start.
    pub async fn run(
        &self,
        scenario: Scenario,
        folder: &Path,
        progress: &Progress,
    ) -> anyhow::Result<Outcome> {
        let folder = folder.join(scenario.name());
        let seed = self.seed ^ scenario as u64;
        let surroundings = scenario.surroundings(Options {
            seed,
            torn: self.torn,
            names: self.names,
        });
        let mut brokers = Brokers::start(&self.kind, &folder, surroundings).await?;
        let bootstrap = brokers.bootstrap();
        let cluster = || Cluster::new(&bootstrap, "drave-bench");
        create_topic(&cluster(), TOPIC, self.load.partitions, BROKERS).await?;
        let (load, note) = self.load.prepare(TOPIC, &cluster()).await?;
        committers::prepare(&cluster(), TOPIC).await?;
        brokers.settle_disks()?;
        let clock = Clock::start();
        let counters = Arc::new(Counters::new(self.load.partitions));
        progress.scenario(&scenario.name(), &counters);
        let clients = Clients::start(&load, TOPIC, BROKERS as usize, &cluster, clock, &counters);
        sleep(CALM).await;
        let mut stage = Stage {
            brokers: &mut brokers,
            cluster: cluster(),
            topic: TOPIC,
            clock,
            rng: StdRng::seed_from_u64(seed),
            progress,
            faults: Vec::new(),
            notes: note.into_iter().collect(),
            flipped: Vec::new(),
        };
        let played = scenario.play(&mut stage, self.rounds).await;
        sleep(CALM).await;
        let mut history = History {
            partitions: self.load.partitions,
            ..History::default()
        };
        clients.stop(clock, &mut history, &mut stage.notes).await?;
        progress.fault("reading everything back");
        let read = match played {
            Ok(()) => self.read_replicas(&mut stage, &mut history, &cluster).await,
            Err(error) => {
                // The fault goes on, and there is a verdict on what can still be read.
                if let Some(fault) = stage.faults.last_mut() {
                    fault.until_us = history.stopped_us;
                }
                let from = "what is left of the cluster";
                history.finals = read_back(&cluster(), TOPIC, from, None, &ends(&history)).await;
                Err(error)
            }
        };
        stage.tell_of_flipped_bits();
        history.faults = std::mem::take(&mut stage.faults);
        progress.fault("");
        Ok(Outcome {
            history,
            notes: std::mem::take(&mut stage.notes),
            broken_off: read.err().map(|error| format!("{error:#}")),
        })
    }

    /// Reads everything from every replica: from each broker, or, where only leaders serve, while each
    /// broker in turn is stopped, so that every replica leads once at least.
    async fn read_replicas(
        &self,
        stage: &mut Stage<'_>,
        history: &mut History,
        cluster: &dyn Fn() -> Cluster,
    ) -> anyhow::Result<()> {
        stage.settled().await?;
        let expected = ends(history);
        history.finals = read_back(&cluster(), TOPIC, "all brokers", None, &expected).await;
        for id in 1..=BROKERS {
            if self.kind.followers_serve() {
                let from = format!("broker {id}");
                let reads = read_back(&cluster(), TOPIC, &from, Some(id), &expected).await;
                history.finals.extend(reads);
                continue;
            }
            if let Err(error) = stage.brokers.stop(id).await {
                stage.notes.push(format!("{error:#}"));
            }
            let from = format!("all but broker {id}");
            let reads = read_back(&cluster(), TOPIC, &from, None, &expected).await;
            history.finals.extend(reads);
            stage.brokers.run(id)?;
            stage.brokers.wait_ready().await?;
            stage.settled().await?;
        }
        Ok(())
    }
}

/// Of each partition, the offset after the last record that was acknowledged by all replicas,
/// those aside that need not be there because their transaction was not committed.
pub(super) fn ends(history: &History) -> Vec<i64> {
    let mut ends = vec![0; history.partitions as usize];
    let durable = |producer: u32| {
        let kind = history
            .producers
            .iter()
            .find(|kind| kind.producer == producer);
        kind.is_some_and(|kind| kind.acks == -1)
    };
    let committed = |number: u32| {
        let places = &history.transactions;
        let place = places.binary_search_by_key(&number, |it| it.number);
        place.is_ok_and(|place| matches!(places[place].ending, history::Ending::Committed { .. }))
    };
    for write in &history.writes {
        if let history::Outcome::Acknowledged {
            offset: Some(offset),
        } = write.outcome
            && durable(write.id.producer)
            && write.transaction.is_none_or(committed)
        {
            let end = &mut ends[write.partition as usize];
            *end = (*end).max(offset + 1);
        }
    }
    ends
}

/// Creates a topic, and waits until it has leaders.
pub(super) async fn create_topic(
    cluster: &Cluster,
    name: &str,
    partitions: u32,
    replicas: u32,
) -> anyhow::Result<()> {
    let topic = CreatableTopic::default()
        .with_name(topic_name(name))
        .with_num_partitions(partitions as i32)
        .with_replication_factor(replicas as i16);
    let request = CreateTopicsRequest::default()
        .with_topics(vec![topic])
        .with_timeout_ms(30_000);
    let answer = cluster
        .retry(TOPIC_WITHIN, || cluster.call(&request))
        .await?;
    for made in &answer.topics {
        check(made.error_code, || format!("topic {name}"), None)?;
    }
    let deadline = Instant::now() + TOPIC_WITHIN;
    loop {
        if let Ok(leaders) = cluster.leaders(name, false).await
            && leaders.len() == partitions as usize
            && leaders.iter().all(|leader| *leader > 0)
        {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "topic {name} has no leaders after {} s",
                TOPIC_WITHIN.as_secs()
            );
        }
        sleep(Duration::from_millis(50)).await;
    }
}
