//! A cluster that runs already, of any make: load and judgement are ours, its owner's command hurts it.

use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use drave_durability::history::{Fault, History};
use kafka_protocol::messages::DeleteTopicsRequest;
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::clients::{Clients, Load};
use super::clock::Clock;
use super::producers::Counters;
use super::progress::Progress;
use super::run::{CALM, Outcome, create_topic, ends};
use super::stage::settled;
use super::{committers, consumers};
use crate::client::{Cluster, topic_name};

/// How long the owner's command may take.
const COMMAND_WITHIN: Duration = Duration::from_secs(600);
/// How long a fault lasts between the two calls of the command.
const FAULT: Duration = Duration::from_secs(10);

/// A cluster of somebody else.
pub struct Given {
    /// Its brokers, HOST:PORT separated by commas.
    pub bootstrap: String,
    /// Run by `sh -c` at the begin and at the end of each fault.
    pub on_fault: Option<String>,
    /// What is done to it all the time.
    pub load: Load,
    /// How many faults.
    pub rounds: u32,
}

impl Given {
    /// Loads the cluster on a topic of our own, which is deleted afterwards.
    pub async fn run(&self, progress: &Progress) -> anyhow::Result<Outcome> {
        let cluster = || Cluster::new(&self.bootstrap, "drave-bench");
        let admin = cluster();
        let known = admin.metadata(Some(&[]), false).await?;
        let brokers = known.brokers.len();
        let replicas = brokers.min(3) as u32;
        let topic = format!("drave-durability-{}", uuid::Uuid::new_v4().simple());
        create_topic(&admin, &topic, self.load.partitions, replicas).await?;
        let outcome = self.hurt(&topic, brokers, &cluster, progress).await;
        let named = DeleteTopicState::default().with_name(Some(topic_name(&topic)));
        let request = DeleteTopicsRequest::default()
            .with_topics(vec![named])
            .with_topic_names(vec![topic_name(&topic)])
            .with_timeout_ms(30_000);
        let deleted = admin.call(&request).await;
        let mut outcome = outcome?;
        if let Err(error) = deleted {
            let note = format!("topic {topic} could not be deleted: {error}");
            outcome.notes.push(note);
        }
        Ok(outcome)
    }

    async fn hurt(
        &self,
        topic: &str,
        brokers: usize,
        cluster: &dyn Fn() -> Cluster,
        progress: &Progress,
    ) -> anyhow::Result<Outcome> {
        let (load, note) = self.load.prepare(topic, &cluster()).await?;
        committers::prepare(&cluster(), topic).await?;
        let clock = Clock::start();
        let counters = Arc::new(Counters::new(self.load.partitions));
        progress.scenario("given", &counters);
        let clients = Clients::start(&load, topic, brokers, cluster, clock, &counters);
        let mut history = History {
            partitions: self.load.partitions,
            ..History::default()
        };
        let mut notes: Vec<String> = note.into_iter().collect();
        let admin = cluster();
        sleep(CALM).await;
        for round in 1..=self.rounds {
            let Some(command) = &self.on_fault else {
                sleep(FAULT).await;
                break;
            };
            let name = format!("fault {round}");
            progress.fault(&name);
            let from_us = clock.now_us();
            self.call(command, round, "begin", topic).await?;
            sleep(FAULT).await;
            self.call(command, round, "end", topic).await?;
            if let Err(error) = settled(&admin, topic).await {
                notes.push(format!("after {name}: {error:#}"));
            }
            let until_us = clock.now_us();
            history.faults.push(Fault {
                name,
                from_us,
                until_us,
            });
            progress.fault("");
            sleep(CALM).await;
        }
        clients.stop(clock, &mut history, &mut notes).await?;
        progress.fault("reading everything back");
        history.finals =
            consumers::read_back(&admin, topic, "the cluster", None, &ends(&history)).await;
        Ok(Outcome {
            history,
            notes,
            broken_off: None,
        })
    }

    async fn call(
        &self,
        command: &str,
        round: u32,
        phase: &str,
        topic: &str,
    ) -> anyhow::Result<()> {
        let mut process = Command::new("sh")
            .args(["-c", command])
            .env("DRAVE_FAULT", phase)
            .env("DRAVE_ROUND", round.to_string())
            .env("DRAVE_TOPIC", topic)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("sh can't be run")?;
        let ended = timeout(COMMAND_WITHIN, process.wait()).await;
        let status = ended.with_context(|| format!("`{command}` does not end"))??;
        ensure!(status.success(), "`{command}` ended with {status}");
        Ok(())
    }
}
