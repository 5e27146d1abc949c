//! Where new replicas go. Pure: the same load and the same request give the
//! same placement.
//!
//! Each partition's leader goes to the broker that leads least; each follower
//! to a rack the partition is not on yet, if there is one, and there to the
//! broker with the fewest replicas. Only unfenced brokers are candidates.

use std::collections::{BTreeMap, BTreeSet};

use drave_raft::ReplicaId;
use kafka_protocol::ResponseError;

use super::command::Refusal;
use super::image::Image;

/// Replicas that a partition gets unless told otherwise, if there are that many brokers.
pub const REPLICATION_FACTOR_DEFAULT_MAX: usize = 3;

/// Replicas that a partition gets unless told otherwise.
pub fn replication_factor_default(image: &Image) -> usize {
    let unfenced = image
        .brokers
        .values()
        .filter(|broker| !broker.fenced)
        .count();
    unfenced.clamp(1, REPLICATION_FACTOR_DEFAULT_MAX)
}

/// A broker that can take replicas, and what it holds already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The broker.
    pub replica: ReplicaId,
    /// Its rack; brokers without one are each their own.
    pub rack: Option<String>,
    /// Partitions it is the preferred leader of.
    pub leaders: usize,
    /// Replicas on it.
    pub replicas: usize,
}

/// The unfenced brokers with their present load.
pub fn candidates(image: &Image) -> Vec<Candidate> {
    let mut load: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for partition in image.topics.values().flat_map(|topic| &topic.partitions) {
        for (position, replica) in partition.replicas.iter().enumerate() {
            let (leaders, replicas) = load.entry(replica.broker).or_default();
            *leaders += usize::from(position == 0);
            *replicas += 1;
        }
    }
    (image.brokers.values().filter(|broker| !broker.fenced))
        .map(|broker| {
            let (leaders, replicas) = load
                .get(&broker.replica.broker)
                .copied()
                .unwrap_or_default();
            Candidate {
                replica: broker.replica,
                rack: broker.rack.clone(),
                leaders,
                replicas,
            }
        })
        .collect()
}

/// Places `partitions` new partitions and adds them to the candidates' load.
pub fn place(
    candidates: &mut [Candidate],
    partitions: usize,
    replication_factor: usize,
) -> Result<Vec<Vec<ReplicaId>>, Refusal> {
    if replication_factor == 0 || replication_factor > candidates.len() {
        return Err(Refusal::new(
            ResponseError::InvalidReplicationFactor,
            format!(
                "Replication factor: {replication_factor} larger than available brokers: {}.",
                candidates.len()
            ),
        ));
    }
    Ok((0..partitions)
        .map(|_| place_one(candidates, replication_factor))
        .collect())
}

fn place_one(candidates: &mut [Candidate], replication_factor: usize) -> Vec<ReplicaId> {
    let mut chosen: Vec<usize> = Vec::with_capacity(replication_factor);
    while chosen.len() < replication_factor {
        let leading = chosen.is_empty();
        let racks: BTreeSet<Option<&str>> = chosen
            .iter()
            .map(|&at| candidates[at].rack.as_deref())
            .collect();
        let best = (0..candidates.len())
            .filter(|at| !chosen.contains(at))
            .min_by_key(|&at| {
                let candidate = &candidates[at];
                let rack_used =
                    candidate.rack.is_some() && racks.contains(&candidate.rack.as_deref());
                let leaders = if leading { candidate.leaders } else { 0 };
                (leaders, rack_used, candidate.replicas, candidate.replica)
            });
        // There are at least as many candidates as replicas wanted.
        let Some(best) = best else { break };
        candidates[best].leaders += usize::from(leading);
        candidates[best].replicas += 1;
        chosen.push(best);
    }
    chosen
        .into_iter()
        .map(|at| candidates[at].replica)
        .collect()
}

/// Turns brokers chosen by the client, for each partition, into replicas.
pub fn assign(image: &Image, partitions: &[Vec<u32>]) -> Result<Vec<Vec<ReplicaId>>, Refusal> {
    let refuse = |message: String| Refusal::new(ResponseError::InvalidReplicaAssignment, message);
    let replication_factor = partitions.first().map_or(0, Vec::len);
    let mut placements = Vec::with_capacity(partitions.len());
    for (index, brokers) in partitions.iter().enumerate() {
        let distinct: BTreeSet<u32> = brokers.iter().copied().collect();
        if brokers.is_empty() || distinct.len() != brokers.len() {
            return Err(refuse(format!(
                "partition {index}: the assignment is empty or names a broker twice"
            )));
        }
        if brokers.len() != replication_factor {
            return Err(refuse(format!(
                "partition {index} has {} replicas, partition 0 has {replication_factor}",
                brokers.len()
            )));
        }
        let mut replicas = Vec::with_capacity(brokers.len());
        for broker in brokers {
            match image.brokers.get(broker) {
                Some(registration) => replicas.push(registration.replica),
                None => {
                    return Err(refuse(format!(
                        "partition {index}: broker {broker} is unknown"
                    )));
                }
            }
        }
        placements.push(replicas);
    }
    Ok(placements)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::metadata::image::BrokerRegistration;

    fn candidate(broker: u32, rack: Option<u32>) -> Candidate {
        Candidate {
            replica: ReplicaId {
                broker,
                directory: u128::from(broker),
            },
            rack: rack.map(|rack| format!("rack-{rack}")),
            leaders: 0,
            replicas: 0,
        }
    }

    fn spread(counts: impl Iterator<Item = usize> + Clone) -> usize {
        counts.clone().max().unwrap_or(0) - counts.min().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn replicas_are_distinct_spread_over_racks_and_balanced(
            racks in proptest::collection::vec(proptest::option::of(0u32..4), 1..9),
            partitions in 1usize..60,
            wanted in 1usize..5,
        ) {
            let mut brokers: Vec<Candidate> =
                racks.iter().zip(1..).map(|(&rack, id)| candidate(id, rack)).collect();
            let rack_of: BTreeMap<ReplicaId, String> = (brokers.iter())
                .map(|b| (b.replica, b.rack.clone().unwrap_or(format!("own-{}", b.replica))))
                .collect();
            let distinct_racks = rack_of.values().collect::<BTreeSet<_>>().len();
            let factor = wanted.min(brokers.len());
            let placements = place(&mut brokers, partitions, factor).unwrap();
            prop_assert_eq!(placements.len(), partitions);
            for replicas in &placements {
                prop_assert_eq!(replicas.iter().collect::<BTreeSet<_>>().len(), factor);
                let racks: BTreeSet<_> = replicas.iter().map(|r| &rack_of[r]).collect();
                prop_assert_eq!(racks.len(), factor.min(distinct_racks));
            }
            prop_assert!(spread(brokers.iter().map(|b| b.leaders)) <= 1);
            prop_assert_eq!(brokers.iter().map(|b| b.replicas).sum::<usize>(), partitions * factor);
            if racks.iter().all(Option::is_none) {
                prop_assert!(spread(brokers.iter().map(|b| b.replicas)) <= 2);
            }
        }

        #[test]
        fn existing_load_is_evened_out(
            loads in proptest::collection::vec(0usize..20, 2..6),
        ) {
            let mut brokers: Vec<Candidate> = loads.iter().zip(1..).map(|(&load, id)| {
                Candidate { leaders: load, replicas: load, ..candidate(id, None) }
            }).collect();
            place(&mut brokers, 20 * loads.len(), 1).unwrap();
            prop_assert!(spread(brokers.iter().map(|b| b.leaders)) <= 1);
        }
    }

    #[test]
    fn more_replicas_than_brokers_are_refused() {
        let mut brokers = vec![candidate(1, None), candidate(2, None)];
        let refusal = place(&mut brokers, 1, 3).unwrap_err();
        assert_eq!(refusal.code, ResponseError::InvalidReplicationFactor.code());
        assert!(place(&mut brokers, 1, 0).is_err());
        assert_eq!(brokers[0].replicas, 0);
    }

    fn image(brokers: u32, fenced: u32) -> Image {
        let registration = |broker: u32| BrokerRegistration {
            replica: ReplicaId {
                broker,
                directory: 1,
            },
            incarnation: 1,
            host: "localhost".into(),
            port: 1,
            peer_address: "127.0.0.1:1".parse().unwrap(),
            rack: None,
            fenced: broker == fenced,
        };
        let brokers = (1..=brokers)
            .map(|broker| (broker, Arc::new(registration(broker))))
            .collect();
        Image {
            brokers,
            ..Image::default()
        }
    }

    #[test]
    fn fenced_brokers_get_no_new_replicas() {
        let found: Vec<u32> = candidates(&image(3, 2))
            .iter()
            .map(|c| c.replica.broker)
            .collect();
        assert_eq!(found, [1, 3]);
    }

    #[test]
    fn a_manual_assignment_is_checked() {
        let image = image(3, 0);
        let placed = assign(&image, &[vec![3, 1], vec![1, 2]]).unwrap();
        assert_eq!(
            placed[0][0],
            ReplicaId {
                broker: 3,
                directory: 1
            }
        );
        for wrong in [
            vec![vec![]],
            vec![vec![1, 1]],
            vec![vec![1, 9]],
            vec![vec![1, 2], vec![1]],
        ] {
            let refusal = assign(&image, &wrong).unwrap_err();
            assert_eq!(
                refusal.code,
                ResponseError::InvalidReplicaAssignment.code(),
                "{wrong:?}"
            );
        }
    }
}
