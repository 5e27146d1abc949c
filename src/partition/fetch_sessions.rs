//! Fetch sessions (KIP-227): a client says once which partitions it reads, and
//! after that only what changes.
//!
//! Owned by [`super::Partitions`]. Bounded in sessions and partitions; a client
//! without a session says everything each time, and is served all the same.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kafka_protocol::ResponseError;
use uuid::Uuid;

use crate::protocol::fetch::{FetchPartition, FetchRequest};
use crate::protocol::wire::TopicRef;

/// Sessions at the same time; Kafka's `max.incremental.fetch.session.cache.slots`.
pub const SESSIONS_MAX: usize = 1000;
/// Partitions in all sessions together.
pub const PARTITIONS_MAX: usize = 1_000_000;
/// A session that has been idle for this long gives way to a new one.
pub const IDLE_MIN: Duration = Duration::from_secs(120);

const NO_SESSION: i32 = 0;
const EPOCH_INITIAL: i32 = 0;
const EPOCH_FINAL: i32 = -1;

/// A partition that a client reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its topic.
    pub topic: TopicRef,
    /// From where, and how much.
    pub partition: FetchPartition,
    /// The high watermark and log start offset that the client was last told
    /// in this session; such a partition is left out while nothing changes.
    pub told: Option<(i64, i64)>,
}

/// What one request is to read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The session to name in the reply, 0 for none.
    pub session_id: i32,
    /// The partitions.
    pub asked: Vec<Asked>,
    /// Where among them to begin, so that none starves.
    pub first: usize,
    /// The epoch of the request within its session.
    epoch: i32,
}

struct Session {
    /// The epoch of the next request.
    epoch: i32,
    used: Instant,
    asked: Vec<Asked>,
    places: HashMap<(TopicRef, i32), usize>,
    first: usize,
}

impl Session {
    fn new() -> Session {
        Session {
            epoch: EPOCH_INITIAL + 1,
            used: Instant::now(),
            asked: Vec::new(),
            places: HashMap::new(),
            first: 0,
        }
    }

    fn update(&mut self, request: &FetchRequest) {
        for asked in all_of(request) {
            let key = (asked.topic.clone(), asked.partition.index);
            match self.places.get(&key) {
                Some(place) => self.asked[*place].partition = asked.partition,
                None => {
                    self.places.insert(key, self.asked.len());
                    self.asked.push(asked);
                }
            }
        }
        let forgotten: Vec<(TopicRef, i32)> = request
            .forgotten_topics
            .iter()
            .flat_map(|gone| {
                gone.partitions
                    .iter()
                    .map(|index| (gone.topic.clone(), *index))
            })
            .filter(|key| self.places.contains_key(key))
            .collect();
        if forgotten.is_empty() {
            return;
        }
        for key in &forgotten {
            self.places.remove(key);
        }
        let places = &self.places;
        self.asked
            .retain(|asked| places.contains_key(&(asked.topic.clone(), asked.partition.index)));
        for (place, asked) in self.asked.iter().enumerate() {
            self.places
                .insert((asked.topic.clone(), asked.partition.index), place);
        }
        self.first = 0;
    }

    fn reading(&self, session_id: i32, epoch: i32) -> Reading {
        Reading {
            session_id,
            asked: self.asked.clone(),
            first: self.first,
            epoch,
        }
    }
}

fn all_of(request: &FetchRequest) -> impl Iterator<Item = Asked> + '_ {
    request.topics.iter().flat_map(|topic| {
        topic.partitions.iter().map(|partition| Asked {
            topic: topic.topic.clone(),
            partition: partition.clone(),
            told: None,
        })
    })
}

/// The sessions of all clients of this broker.
#[derive(Default)]
pub struct FetchSessions(Mutex<HashMap<i32, Session>>);

impl FetchSessions {
    fn lock(&self) -> MutexGuard<'_, HashMap<i32, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What `request` is to read, by its session.
    pub fn open(&self, request: &FetchRequest) -> Result<Reading, ResponseError> {
        let mut sessions = self.lock();
        if matches!(request.session_epoch, EPOCH_INITIAL | EPOCH_FINAL) {
            sessions.remove(&request.session_id);
            let asked: Vec<Asked> = all_of(request).collect();
            let wanted = request.session_epoch == EPOCH_INITIAL && !asked.is_empty();
            if !wanted || !make_room(&mut sessions, asked.len()) {
                let session_id = NO_SESSION;
                return Ok(Reading {
                    session_id,
                    asked,
                    first: 0,
                    epoch: EPOCH_FINAL,
                });
            }
            let session_id = unused_id(&sessions);
            let mut session = Session::new();
            session.update(request);
            let reading = session.reading(session_id, EPOCH_INITIAL);
            sessions.insert(session_id, session);
            return Ok(reading);
        }
        let held: usize = sessions.values().map(|session| session.asked.len()).sum();
        let session = sessions
            .get_mut(&request.session_id)
            .ok_or(ResponseError::FetchSessionIdNotFound)?;
        if session.epoch != request.session_epoch {
            return Err(ResponseError::InvalidFetchSessionEpoch);
        }
        if by_id(session.asked.iter().map(|asked| &asked.topic))
            .zip(by_id(request.topics.iter().map(|topic| &topic.topic)))
            .is_some_and(|(before, now)| before != now)
        {
            return Err(ResponseError::FetchSessionTopicIdError);
        }
        let added: usize = request
            .topics
            .iter()
            .map(|topic| topic.partitions.len())
            .sum();
        if held + added > PARTITIONS_MAX {
            sessions.remove(&request.session_id);
            return Err(ResponseError::FetchSessionIdNotFound);
        }
        session.update(request);
        session.used = Instant::now();
        session.epoch = if session.epoch == i32::MAX {
            1
        } else {
            session.epoch + 1
        };
        Ok(session.reading(request.session_id, request.session_epoch))
    }

    /// Notes what the client is told of the partitions at these places, and
    /// where to begin the next time.
    pub fn told(&self, reading: &Reading, told: &[(usize, Option<(i64, i64)>)], first: usize) {
        if reading.session_id == NO_SESSION {
            return;
        }
        let mut sessions = self.lock();
        let Some(session) = sessions.get_mut(&reading.session_id) else {
            return;
        };
        let next = if reading.epoch == i32::MAX {
            1
        } else {
            reading.epoch + 1
        };
        if session.epoch != next || session.asked.len() != reading.asked.len() {
            return;
        }
        for (place, told) in told {
            session.asked[*place].told = *told;
        }
        session.first = first;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

/// Whether the first topic is named by id; `None` without topics.
fn by_id<'a>(mut topics: impl Iterator<Item = &'a TopicRef>) -> Option<bool> {
    topics.next().map(|topic| matches!(topic, TopicRef::Id(_)))
}

fn make_room(sessions: &mut HashMap<i32, Session>, partitions: usize) -> bool {
    let held: usize = sessions.values().map(|session| session.asked.len()).sum();
    if sessions.len() < SESSIONS_MAX && held + partitions <= PARTITIONS_MAX {
        return true;
    }
    let oldest = sessions.iter().min_by_key(|(_, session)| session.used);
    match oldest.map(|(id, session)| (*id, session.used.elapsed(), session.asked.len())) {
        Some((id, idle, freed)) if idle >= IDLE_MIN => {
            sessions.remove(&id);
            held - freed + partitions <= PARTITIONS_MAX
        }
        _ => false,
    }
}

fn unused_id(sessions: &HashMap<i32, Session>) -> i32 {
    loop {
        let id = (Uuid::new_v4().as_u128() & i32::MAX as u128) as i32;
        if id != NO_SESSION && !sessions.contains_key(&id) {
            return id;
        }
    }
}

#[cfg(test)]
mod tests {
    use kafka_protocol::protocol::StrBytes;

    use super::*;
    use crate::protocol::fetch::{FetchTopic, ForgottenTopic};

    fn name(name: &str) -> TopicRef {
        TopicRef::Name(StrBytes::from_string(name.to_owned()))
    }

    fn request(session_id: i32, session_epoch: i32, read: &[(&str, i32, i64)]) -> FetchRequest {
        let topic = |(topic, index, fetch_offset): &(&str, i32, i64)| FetchTopic {
            topic: name(topic),
            partitions: vec![FetchPartition {
                index: *index,
                current_leader_epoch: -1,
                fetch_offset: *fetch_offset,
                last_fetched_epoch: -1,
                log_start_offset: -1,
                max_bytes: 1000,
            }],
        };
        FetchRequest {
            replica_id: -1,
            max_wait_ms: 0,
            min_bytes: 1,
            max_bytes: 1000,
            read_committed: false,
            session_id,
            session_epoch,
            topics: read.iter().map(topic).collect(),
            forgotten_topics: Vec::new(),
            rack_id: StrBytes::default(),
        }
    }

    fn read(reading: &Reading) -> Vec<(TopicRef, i32, i64)> {
        let asked = reading.asked.iter();
        asked
            .map(|a| (a.topic.clone(), a.partition.index, a.partition.fetch_offset))
            .collect()
    }

    #[test]
    fn a_session_remembers_what_is_not_said_again() {
        let sessions = FetchSessions::default();
        let opened = sessions
            .open(&request(0, 0, &[("a", 0, 5), ("b", 1, 6)]))
            .expect("opened");
        assert_ne!(opened.session_id, 0);
        let next = request(opened.session_id, 1, &[("b", 1, 9), ("c", 0, 1)]);
        let next = sessions.open(&next).expect("in session");
        assert_eq!(
            read(&next),
            [(name("a"), 0, 5), (name("b"), 1, 9), (name("c"), 0, 1)]
        );
        let mut last = request(opened.session_id, 2, &[]);
        last.forgotten_topics = vec![ForgottenTopic {
            topic: name("a"),
            partitions: vec![0],
        }];
        let last = sessions.open(&last).expect("in session");
        assert_eq!(read(&last), [(name("b"), 1, 9), (name("c"), 0, 1)]);
    }

    #[test]
    fn what_was_told_is_remembered_and_an_old_epoch_is_refused() {
        let sessions = FetchSessions::default();
        let opened = sessions
            .open(&request(0, 0, &[("a", 0, 5)]))
            .expect("opened");
        sessions.told(&opened, &[(0, Some((7, 0)))], 0);
        let next = request(opened.session_id, 1, &[]);
        assert_eq!(
            sessions.open(&next).expect("in session").asked[0].told,
            Some((7, 0))
        );
        assert_eq!(
            sessions.open(&next),
            Err(ResponseError::InvalidFetchSessionEpoch)
        );
        let unknown = request(opened.session_id ^ 1, 1, &[]);
        assert_eq!(
            sessions.open(&unknown),
            Err(ResponseError::FetchSessionIdNotFound)
        );
    }

    #[test]
    fn the_final_epoch_ends_a_session_and_reads_what_it_says() {
        let sessions = FetchSessions::default();
        let opened = sessions
            .open(&request(0, 0, &[("a", 0, 5)]))
            .expect("opened");
        let last = request(opened.session_id, -1, &[("a", 0, 6)]);
        let last = sessions.open(&last).expect("sessionless");
        assert_eq!((last.session_id, read(&last)), (0, vec![(name("a"), 0, 6)]));
        assert!(sessions.is_empty());
    }

    #[test]
    fn topics_are_named_one_way_within_a_session() {
        let sessions = FetchSessions::default();
        let opened = sessions
            .open(&request(0, 0, &[("a", 0, 5)]))
            .expect("opened");
        let mut next = request(opened.session_id, 1, &[("a", 0, 6)]);
        next.topics[0].topic = TopicRef::Id(Uuid::from_u128(1));
        assert_eq!(
            sessions.open(&next),
            Err(ResponseError::FetchSessionTopicIdError)
        );
    }

    #[test]
    fn a_client_without_room_for_a_session_is_served_without_one() {
        let sessions = FetchSessions::default();
        for _ in 0..SESSIONS_MAX {
            assert_ne!(
                sessions
                    .open(&request(0, 0, &[("a", 0, 5)]))
                    .expect("opened")
                    .session_id,
                0
            );
        }
        let refused = sessions
            .open(&request(0, 0, &[("a", 0, 5)]))
            .expect("served");
        assert_eq!((refused.session_id, refused.asked.len()), (0, 1));
        assert_eq!(sessions.len(), SESSIONS_MAX);
    }
}
