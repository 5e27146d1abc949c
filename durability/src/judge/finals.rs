//! What the final reads show: each by itself, and beside each other.

use super::Case;
use super::index::{Known, name};
use super::log::{Log, describe_all};
use super::verdict::Kind;
use crate::history::Outcome;
use crate::record::RecordId;

impl<'a> Case<'a> {
    /// Sorts the final reads by partition; those that failed are findings.
    pub(super) fn open_finals(&mut self) {
        let mut read = vec![false; self.logs.len()];
        for final_read in &self.history.finals {
            let (from, partition) = (final_read.from.as_str(), final_read.partition);
            let Some(logs) = self.logs.get_mut(partition as usize) else {
                self.findings.violation(Kind::BrokenHistory, || {
                    format!("{from} was read for partition {partition}")
                });
                continue;
            };
            read[partition as usize] = true;
            match &final_read.seen {
                Ok(seen) => logs.push(Log::new(from, partition, seen, &mut self.findings)),
                Err(why) => self.findings.violation(Kind::Unreadable, || {
                    format!("partition {partition} from {from}: {why}")
                }),
            }
        }
        for (partition, _) in read.iter().enumerate().filter(|(_, read)| !**read) {
            self.findings.violation(Kind::Unreadable, || {
                format!("partition {partition} has no final read")
            });
        }
    }

    /// Goes through every log: what is in it, how often, in which order.
    pub(super) fn read_finals(&mut self) {
        let logs = std::mem::take(&mut self.logs);
        let mut read = 0;
        for (partition, logs) in (0..).zip(&logs) {
            for log in logs {
                read += 1;
                self.read_log(partition, log, read);
            }
        }
        self.logs = logs;
    }

    fn read_log(&mut self, partition: u32, log: &Log<'a>, read: u32) {
        // Of each producer: its latest record so far, and where.
        let mut latest: Vec<Option<(u64, i64)>> = vec![None; self.index.producers()];
        for seen in log.seen.iter() {
            let reader = || log.from.to_owned();
            let Some(Known { place, slot }) =
                self.identify(partition, seen.offset, &seen.record, true, reader)
            else {
                continue;
            };
            self.uncommitted(place, None, reader);
            let (write, fate) = (&self.history.writes[place], &mut self.fates[place]);
            let kind = self.index.kind(slot);
            if let Outcome::Acknowledged { offset } = write.outcome {
                fate.at_acknowledged_offset |= offset == Some(seen.offset);
            }
            if fate.read == read {
                if !fate.duplicated {
                    fate.duplicated = true;
                    self.findings.add(Kind::Duplicated, kind.idempotent, || {
                        describe_duplicate(write.id, partition, log)
                    });
                }
                continue;
            }
            fate.read = read;
            match latest[slot] {
                Some((sequence, offset)) if write.id.sequence < sequence => {
                    if !fate.reordered {
                        fate.reordered = true;
                        self.findings.add(Kind::Reordered, kind.idempotent, || {
                            format!(
                                "{} is in partition {partition} at offset {}, after sequence {sequence} at offset {offset}, as {} has it",
                                name(write.id),
                                seen.offset,
                                log.from,
                            )
                        });
                    }
                }
                _ => latest[slot] = Some((write.id.sequence, seen.offset)),
            }
        }
    }

    /// Compares the replicas of every partition, offset by offset.
    pub(super) fn compare_replicas(&mut self) {
        for (partition, logs) in self.logs.iter().enumerate() {
            if logs.len() < 2 {
                continue;
            }
            let mut places = vec![0; logs.len()];
            loop {
                let next = logs.iter().zip(&places).map(|(log, it)| log.seen.get(*it));
                let Some(offset) = next.clone().flatten().map(|it| it.offset).min() else {
                    break;
                };
                // Corrupted bytes are told of as such, and differ from nothing.
                let mut sound = next
                    .map(|it| it.filter(|it| it.offset == offset).map(|it| &it.record))
                    .filter(|it| !matches!(it, Some(Err(_))));
                let first = sound.next();
                if sound.any(|it| Some(it) != first) {
                    self.findings.violation(Kind::ReplicasDisagree, || {
                        let all = describe_all(logs, offset);
                        format!("partition {partition} offset {offset}: {all}")
                    });
                }
                for (log, place) in logs.iter().zip(&mut places) {
                    while log.seen.get(*place).is_some_and(|it| it.offset == offset) {
                        *place += 1;
                    }
                }
            }
        }
    }
}

fn describe_duplicate(id: RecordId, partition: u32, log: &Log<'_>) -> String {
    let same = log.seen.iter().filter(|it| it.record == Ok(id));
    let offsets: Vec<_> = same.take(4).map(|it| it.offset.to_string()).collect();
    format!(
        "{} is in partition {partition} at offsets {}, as {} has it",
        name(id),
        offsets.join(", "),
        log.from,
    )
}
