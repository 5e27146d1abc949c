//! Who was sent: a record's place among the writes, found by its id.

use std::collections::HashMap;

use super::verdict::{Findings, Kind};
use crate::history::{History, ProducerKind, Write};
use crate::record::RecordId;

/// The writes of a history by record id, and their producers.
pub(super) struct Index<'a> {
    writes: &'a [Write],
    /// Producer number to a place in `producers`.
    slots: HashMap<u32, usize>,
    producers: Vec<Producer>,
}

/// A record that somebody sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Its place among the writes.
    pub(super) place: usize,
    /// Its producer's slot.
    pub(super) slot: usize,
}

struct Producer {
    kind: ProducerKind,
    /// Places among the writes, in ascending sequence.
    by_sequence: Vec<usize>,
}

impl<'a> Index<'a> {
    /// Indexes a history; what contradicts itself is a finding.
    pub(super) fn new(history: &'a History, findings: &mut Findings) -> Self {
        let mut index = Self {
            writes: &history.writes,
            slots: HashMap::new(),
            producers: Vec::new(),
        };
        for kind in &history.producers {
            if index.slots.contains_key(&kind.producer) {
                findings.violation(Kind::BrokenHistory, || {
                    format!("producer {} is listed twice", kind.producer)
                });
            } else {
                index.insert(*kind);
            }
        }
        for (place, write) in history.writes.iter().enumerate() {
            let producer = write.id.producer;
            let slot = index.slots.get(&producer).copied().unwrap_or_else(|| {
                findings.violation(Kind::BrokenHistory, || {
                    format!("producer {producer} wrote, but is not listed")
                });
                // Whatever was promised to it, it is not taken for less.
                index.insert(ProducerKind {
                    producer,
                    acks: -1,
                    idempotent: true,
                })
            });
            index.producers[slot].by_sequence.push(place);
        }
        for producer in &mut index.producers {
            let sequence = |place: &usize| history.writes[*place].id.sequence;
            producer.by_sequence.sort_by_key(sequence);
            producer.by_sequence.dedup_by(|later, earlier| {
                let twice = sequence(later) == sequence(earlier);
                if twice {
                    findings.violation(Kind::BrokenHistory, || {
                        format!("{} was sent twice", name(history.writes[*later].id))
                    });
                }
                twice
            });
        }
        index
    }

    fn insert(&mut self, kind: ProducerKind) -> usize {
        let slot = self.producers.len();
        self.slots.insert(kind.producer, slot);
        self.producers.push(Producer {
            kind,
            by_sequence: Vec::new(),
        });
        slot
    }

    /// The record among the writes; `None`: nobody sent it.
    ///
    /// Sequences have no holes as a rule, so that the first guess is right.
    pub(super) fn find(&self, id: RecordId) -> Option<Known> {
        let slot = self.slot(id.producer)?;
        let places = &self.producers[slot].by_sequence;
        let sequence = |place: &usize| self.writes[*place].id.sequence;
        let guess = id.sequence.checked_sub(sequence(places.first()?))?;
        let guessed = usize::try_from(guess).ok().and_then(|it| places.get(it));
        if let Some(place) = guessed.filter(|place| sequence(place) == id.sequence) {
            return Some(Known {
                place: *place,
                slot,
            });
        }
        let found = places.binary_search_by_key(&id.sequence, sequence).ok()?;
        let place = places[found];
        Some(Known { place, slot })
    }

    /// A small number for a producer, below [`Self::producers`].
    fn slot(&self, producer: u32) -> Option<usize> {
        self.slots.get(&producer).copied()
    }

    /// How many producers there are.
    pub(super) fn producers(&self) -> usize {
        self.producers.len()
    }

    /// What the producer in a slot asked for.
    pub(super) fn kind(&self, slot: usize) -> ProducerKind {
        self.producers[slot].kind
    }
}

/// A record in words.
pub(super) fn name(id: RecordId) -> String {
    format!("producer {} sequence {}", id.producer, id.sequence)
}
