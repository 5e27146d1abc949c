//! What can be wrong with a history, one thing at a time.

use drave_durability::history::{FinalRead, History, LiveRead, Outcome, Seen, Write};
use drave_durability::judge::Kind;
use drave_durability::record::RecordId;

use super::{choose, edit_all, end, logs, transactions, whole};

/// Something to go wrong. All find their record by a number that may be any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Defect {
    Lost,
    LostTail,
    Moved,
    Duplicated,
    DuplicatedGivenUp,
    Reordered,
    CorruptedEverywhere,
    CorruptedInOneReplica,
    CorruptedOnTheWay,
    DirtyAndGone,
    DirtyAndChanged,
    Backwards,
    FinalBackwards,
    Skipped,
    ReplicaLacks,
    ReplicaDiffers,
    Unreadable,
    NeverRead,
    NobodySentIt,
    SentElsewhere,
    SentTwice,
    UnlistedProducer,
    /// The rest is in [`super::transactions`].
    LostOfTransaction,
    HalfIsMissing,
    HalfIsThere,
    AbortedAndThere,
    AbortedAndSeen,
    SeenBeforeCommit,
    UnlistedTransaction,
    CommittedWithoutRecord,
}

impl Defect {
    pub(crate) const ALL: [Self; 30] = [
        Self::Lost,
        Self::LostTail,
        Self::Moved,
        Self::Duplicated,
        Self::DuplicatedGivenUp,
        Self::Reordered,
        Self::CorruptedEverywhere,
        Self::CorruptedInOneReplica,
        Self::CorruptedOnTheWay,
        Self::DirtyAndGone,
        Self::DirtyAndChanged,
        Self::Backwards,
        Self::FinalBackwards,
        Self::Skipped,
        Self::ReplicaLacks,
        Self::ReplicaDiffers,
        Self::Unreadable,
        Self::NeverRead,
        Self::NobodySentIt,
        Self::SentElsewhere,
        Self::SentTwice,
        Self::UnlistedProducer,
        Self::LostOfTransaction,
        Self::HalfIsMissing,
        Self::HalfIsThere,
        Self::AbortedAndThere,
        Self::AbortedAndSeen,
        Self::SeenBeforeCommit,
        Self::UnlistedTransaction,
        Self::CommittedWithoutRecord,
    ];

    /// As what the judge must tell of it.
    pub(crate) fn kinds(self) -> Vec<Kind> {
        let kind = match self {
            Self::Lost | Self::LostTail => Kind::AcknowledgedAndLost,
            Self::Moved => Kind::AcknowledgedAtAnotherOffset,
            Self::Duplicated | Self::DuplicatedGivenUp => Kind::Duplicated,
            Self::Reordered => Kind::Reordered,
            Self::CorruptedEverywhere | Self::CorruptedInOneReplica | Self::CorruptedOnTheWay => {
                Kind::Corrupted
            }
            Self::DirtyAndGone | Self::DirtyAndChanged => Kind::DirtyRead,
            Self::Backwards | Self::FinalBackwards => Kind::OffsetsBackwards,
            Self::Skipped => Kind::RecordsSkipped,
            Self::ReplicaLacks | Self::ReplicaDiffers => Kind::ReplicasDisagree,
            Self::Unreadable | Self::NeverRead => Kind::Unreadable,
            Self::NobodySentIt | Self::SentElsewhere => Kind::FromNowhere,
            Self::SentTwice
            | Self::UnlistedProducer
            | Self::UnlistedTransaction
            | Self::CommittedWithoutRecord => Kind::BrokenHistory,
            // A promise to the producer, and one to the readers.
            Self::LostOfTransaction => {
                return vec![Kind::AcknowledgedAndLost, Kind::HalfTransaction];
            }
            Self::HalfIsMissing | Self::HalfIsThere => Kind::HalfTransaction,
            Self::AbortedAndThere | Self::AbortedAndSeen | Self::SeenBeforeCommit => {
                Kind::UncommittedRead
            }
        };
        vec![kind]
    }

    /// Makes one thing wrong, at one place. The history is one that [`clean`] made, with two
    /// partitions at least, a replica at least, and in partition 0 three records of producer 0
    /// that are acknowledged with their offsets, one that was given up and is there, and one
    /// that was given up and is not; and a whole transaction of each ending.
    pub(crate) fn plant(self, history: &mut History, pick: usize) {
        match self {
            Self::Lost => {
                let (partition, offset, _) = choose(acknowledged(history), pick);
                edit_all(history, partition, |log| {
                    log.retain(|it| it.offset != offset)
                });
            }
            Self::LostTail => {
                // The log ends with the lost record, so that nothing of it is left. Transactions
                // would be torn, which is another defect.
                transactions::forget(history);
                let (partition, offset, _) = choose(acknowledged(history), pick);
                let lost = |write: &Write| {
                    let at = (logs(history, partition).iter())
                        .find(|it| it.record == Ok(write.id))
                        .map(|it| it.offset);
                    write.partition == partition && at.is_some_and(|at| at > offset)
                };
                let later: Vec<_> = (history.writes.iter().filter(|it| lost(it)))
                    .map(|it| it.id)
                    .collect();
                edit_all(history, partition, |log| {
                    log.retain(|it| it.offset < offset)
                });
                for write in &mut history.writes {
                    if later.contains(&write.id) {
                        let error = "timed out".to_owned();
                        write.outcome = Outcome::GivenUp { error };
                    }
                }
            }
            Self::Moved => {
                let (partition, offset, id) = choose(acknowledged(history), pick);
                let end = end(history, partition);
                let away = (offset + 1 + pick as i64 % (end + 1)) % (end + 2);
                for write in history.writes.iter_mut().filter(|it| it.id == id) {
                    let offset = Some(away);
                    write.outcome = Outcome::Acknowledged { offset };
                }
            }
            Self::Duplicated => {
                let (partition, _, id) = choose(acknowledged(history), pick);
                append_final(history, partition, Ok(id));
            }
            Self::DuplicatedGivenUp => {
                let (partition, id) = choose(given_up(history, true), pick);
                append_final(history, partition, Ok(id));
            }
            Self::Reordered => {
                let (partition, one, other) = choose(neighbours(history), pick);
                let there = |offset: i64| {
                    let mut log = logs(history, partition).iter();
                    log.find(|it| it.offset == offset).cloned()
                };
                let (first, second) = there(one).zip(there(other)).expect("they are there");
                edit_all(history, partition, |log| {
                    for seen in log {
                        if seen.offset == one {
                            seen.record = second.record.clone();
                        } else if seen.offset == other {
                            seen.record = first.record.clone();
                        }
                    }
                });
                let swapped = |offset| match offset {
                    _ if offset == one => other,
                    _ if offset == other => one,
                    _ => offset,
                };
                for write in &mut history.writes {
                    if let Outcome::Acknowledged { offset: Some(it) } = &mut write.outcome
                        && write.partition == partition
                    {
                        *it = swapped(*it);
                    }
                }
            }
            Self::CorruptedEverywhere => {
                let (partition, offset, _) = choose(acknowledged(history), pick);
                edit_all(history, partition, |log| corrupt(log, offset));
            }
            Self::CorruptedInOneReplica => {
                let (partition, offset, _) = choose(acknowledged(history), pick);
                edit_replica(history, partition, pick, |log| corrupt(log, offset));
            }
            Self::CorruptedOnTheWay => {
                let (_, seen) = consumer(history, pick);
                seen[pick % 3].1.record = Err("a value of 3 bytes".to_owned());
            }
            Self::DirtyAndGone => {
                let (partition, id) = choose(given_up(history, false), pick);
                let offset = end(history, partition);
                let record = Ok(id);
                let seen = Seen { offset, record };
                let live = whole(history, partition);
                live.seen.push((9, seen));
            }
            Self::DirtyAndChanged => {
                let (_, seen) = consumer(history, pick);
                let (one, other) = (pick % 3, (pick + 1) % 3);
                seen[one].1.record = seen[other].1.record.clone();
            }
            Self::Backwards => {
                let (_, seen) = consumer(history, pick);
                let again = seen[seen.len() - 1 - pick % 3].clone();
                seen.push(again);
            }
            Self::FinalBackwards => edit_replica(history, 0, pick, |log| {
                let place = pick % (log.len() - 1);
                log.swap(place, place + 1);
            }),
            Self::Skipped => {
                let (_, seen) = consumer(history, pick);
                seen.remove(1 + pick % (seen.len() - 2));
            }
            Self::ReplicaLacks => {
                let (partition, offset, _) = choose(acknowledged(history), pick);
                two_replicas(history);
                edit_replica(history, partition, pick, |log| {
                    log.retain(|it| it.offset != offset);
                });
            }
            Self::ReplicaDiffers => {
                let (_, written) = choose(given_up(history, true), pick);
                let (partition, other) = choose(given_up(history, false), pick);
                two_replicas(history);
                // Nobody was told of either record, and both were sent to this partition.
                let here = |it: &&Seen| it.record == Ok(written);
                let Some(offset) = logs(history, partition).iter().find(here) else {
                    return Self::ReplicaLacks.plant(history, pick);
                };
                let offset = offset.offset;
                let ascending = |log: &[Seen]| {
                    let ids = log.iter().filter_map(|it| it.record.as_ref().ok());
                    let ids = ids.filter(|id| id.producer == other.producer);
                    ids.map(|id| id.sequence).is_sorted()
                };
                let mut log = logs(history, partition).to_vec();
                for seen in log.iter_mut().filter(|it| it.offset == offset) {
                    seen.record = Ok(other);
                }
                if !ascending(&log) {
                    return Self::ReplicaLacks.plant(history, pick);
                }
                edit_replica(history, partition, pick, |it| *it = log.clone());
            }
            Self::Unreadable => {
                let place = pick % history.finals.len();
                history.finals[place].seen = Err("timed out".to_owned());
            }
            Self::NeverRead => {
                let partition = pick as u32 % history.partitions;
                history.finals.retain(|it| it.partition != partition);
            }
            Self::NobodySentIt => {
                let producer = pick as u32 % (history.producers.len() as u32 + 1);
                let sequence = history.writes.len() as u64;
                let partition = pick as u32 % history.partitions;
                append_final(history, partition, Ok(RecordId { producer, sequence }));
            }
            Self::SentElsewhere => {
                let (partition, _, id) = choose(acknowledged(history), pick);
                append_final(history, (partition + 1) % history.partitions, Ok(id));
            }
            Self::SentTwice => {
                let again = history.writes[pick % history.writes.len()].clone();
                history.writes.push(again);
            }
            Self::UnlistedProducer => {
                history.producers.remove(0);
            }
            Self::LostOfTransaction
            | Self::HalfIsMissing
            | Self::HalfIsThere
            | Self::AbortedAndThere
            | Self::AbortedAndSeen
            | Self::SeenBeforeCommit
            | Self::UnlistedTransaction
            | Self::CommittedWithoutRecord => transactions::plant(self, history, pick),
        }
    }
}

/// Partition, offset and id of what producer 0 was told is written.
fn acknowledged(history: &History) -> Vec<(u32, i64, RecordId)> {
    let told = history.writes.iter().filter_map(|write| {
        let Outcome::Acknowledged { offset } = write.outcome else {
            return None;
        };
        (write.id.producer == 0).then_some((write.partition, offset?, write.id))
    });
    told.collect()
}

/// Partition and offsets of what producer 0 has in one partition without another in between.
fn neighbours(history: &History) -> Vec<(u32, i64, i64)> {
    let all = (0..history.partitions).flat_map(|partition| {
        let ours = |it: &&Seen| it.record.as_ref().is_ok_and(|id| id.producer == 0);
        let ours: Vec<_> = logs(history, partition).iter().filter(ours).collect();
        let pair = |pair: &[&Seen]| (partition, pair[0].offset, pair[1].offset);
        ours.windows(2).map(pair).collect::<Vec<_>>()
    });
    all.collect()
}

/// What producer 0 gave up, and whether it is there.
fn given_up(history: &History, written: bool) -> Vec<(u32, RecordId)> {
    let given_up = history.writes.iter().filter(|write| {
        let there = logs(history, write.partition).iter();
        write.id.producer == 0
            && matches!(write.outcome, Outcome::GivenUp { .. })
            && written == there.map(|it| &it.record).any(|it| *it == Ok(write.id))
    });
    given_up.map(|write| (write.partition, write.id)).collect()
}

fn corrupt(log: &mut [Seen], offset: i64) {
    for seen in log.iter_mut().filter(|it| it.offset == offset) {
        seen.record = Err("a value of 3 bytes".to_owned());
    }
}

fn append_final(history: &mut History, partition: u32, record: Result<RecordId, String>) {
    let offset = end(history, partition);
    for read in history
        .finals
        .iter_mut()
        .filter(|it| it.partition == partition)
    {
        let seen = read.seen.as_mut().expect("readable");
        let record = record.clone();
        seen.push(Seen { offset, record });
    }
}

/// Changes the log of one replica.
fn edit_replica(
    history: &mut History,
    partition: u32,
    pick: usize,
    edit: impl FnOnce(&mut Vec<Seen>),
) {
    let reads = (history.finals.iter_mut()).filter(|it| it.partition == partition);
    let read = choose(reads.collect(), pick);
    edit(read.seen.as_mut().expect("readable"));
}

fn two_replicas(history: &mut History) {
    for partition in 0..history.partitions {
        let more = FinalRead {
            from: "another broker".to_owned(),
            partition,
            seen: Ok(logs(history, partition).to_vec()),
        };
        history.finals.push(more);
    }
}

/// A consumer that was given three records at least.
fn consumer(history: &mut History, pick: usize) -> (u32, &mut Vec<(u64, Seen)>) {
    let ample = |it: &LiveRead| it.seen.len() >= 3;
    let ample: Vec<_> = (0..history.live.len())
        .filter(|place| ample(&history.live[*place]))
        .collect();
    let live = match ample.is_empty() {
        true => whole(history, 0),
        false => &mut history.live[ample[pick % ample.len()]],
    };
    (live.partition, &mut live.seen)
}
