//! A client that calls one broker at a time, and remembers what it asked and was told.
//!
//! Nothing is repeated for it: what a second try would be told hides what
//! became of the first one.

use std::time::Duration;

use drave_durability::operation::{Answer, Asked, Object, Operation};
use kafka_protocol::ResponseError;
use kafka_protocol::protocol::Request;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use tokio::sync::watch;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use super::clock::Clock;
use crate::client::{ClientError, Cluster, Connection};

/// A broker that does not answer is given up after this time.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_millis(2_500);
/// Time between a client's operations.
const PACE: Duration = Duration::from_millis(250);
const PAUSE: Duration = Duration::from_millis(100);

/// Such a client.
pub(super) struct Caller {
    client: u32,
    cluster: Cluster,
    clock: Clock,
    /// Ids of the brokers, as they were in the beginning.
    brokers: Vec<i32>,
    operations: Vec<Operation>,
    ticks: Interval,
    stop: watch::Receiver<bool>,
    /// Decides what is asked, and whom.
    pub(super) rng: StdRng,
}

impl Caller {
    pub(super) fn new(
        client: u32,
        cluster: Cluster,
        clock: Clock,
        stop: watch::Receiver<bool>,
    ) -> Caller {
        let mut ticks = interval(PACE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Caller {
            client,
            cluster,
            clock,
            brokers: Vec::new(),
            operations: Vec::new(),
            ticks,
            stop,
            rng: StdRng::seed_from_u64(u64::from(client)),
        }
    }

    /// Its number.
    pub(super) fn client(&self) -> u32 {
        self.client
    }

    /// Waits until it is time for the next operation; false: until it was told to stop.
    pub(super) async fn turn(&mut self) -> bool {
        loop {
            tokio::select! {
                _ = self.ticks.tick() => {}
                _ = self.stop.changed() => return false,
            }
            if !self.brokers.is_empty() {
                return true;
            }
            self.meet_brokers().await;
        }
    }

    /// All that it remembers.
    pub(super) fn operations(self) -> Vec<Operation> {
        self.operations
    }

    async fn meet_brokers(&mut self) {
        if let Ok(known) = self.cluster.metadata(Some(&[]), false).await {
            self.brokers = known.brokers.iter().map(|broker| *broker.node_id).collect();
        }
    }

    /// A connection to any broker. `None`: it could not be reached, and was asked nothing.
    pub(super) async fn any(&mut self) -> Option<(i32, Connection)> {
        let id = *self.brokers.choose(&mut self.rng)?;
        Some((id, self.broker(id).await?))
    }

    /// A connection to this broker.
    pub(super) async fn broker(&self, id: i32) -> Option<Connection> {
        let connected = self.cluster.broker(id).await;
        if connected.is_err() {
            sleep(PAUSE).await;
        }
        connected.ok()
    }

    /// Asks, and remembers. `told` says what an answer means.
    pub(super) async fn ask<R: Request>(
        &mut self,
        connection: &Connection,
        request: &R,
        object: &Object,
        asked: Asked,
        told: impl FnOnce(R::Response) -> Result<Answer, ClientError>,
    ) -> Answer {
        let called_us = self.clock.now_us();
        let answer = connection.call(request, ANSWER_WITHIN).await;
        let answered_us = self.clock.now_us();
        let answer = answer.and_then(told).unwrap_or_else(|error| open(&error));
        self.operations.push(Operation {
            client: self.client,
            object: object.clone(),
            asked,
            called_us,
            answered_us,
            answer: answer.clone(),
        });
        answer
    }
}

/// What an error leaves open. A client that is told to try again does not know
/// whether the first try has done it: brokers answer so when they lose the lead
/// with a change under way.
fn open(error: &ClientError) -> Answer {
    let refused = error.code().is_some_and(|code| {
        code != ResponseError::UnknownServerError.code() && !error.is_retriable()
    });
    match refused {
        true => Answer::Refused(error.to_string()),
        false => Answer::Unknown(error.to_string()),
    }
}

/// An answer that is about nothing that was asked.
pub(super) fn empty(connection: &Connection) -> ClientError {
    ClientError::Malformed {
        address: connection.address().to_owned(),
        reason: "an answer about nothing that was asked".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::check;

    #[test]
    fn only_a_final_refusal_says_that_nothing_was_done() {
        let told = |error: ResponseError| {
            open(&check(error.code(), || "t".to_owned(), None).expect_err("an error"))
        };
        for error in [
            ResponseError::NotController,
            ResponseError::NotCoordinator,
            ResponseError::RequestTimedOut,
            ResponseError::UnknownServerError,
        ] {
            assert!(matches!(told(error), Answer::Unknown(_)), "{error}");
        }
        for error in [
            ResponseError::InvalidReplicationFactor,
            ResponseError::IllegalGeneration,
        ] {
            assert!(matches!(told(error), Answer::Refused(_)), "{error}");
        }
        let lost = ClientError::TimedOut("127.0.0.1:9092".to_owned());
        assert!(matches!(open(&lost), Answer::Unknown(_)));
    }
}
