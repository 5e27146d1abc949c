//! Requests that are complete, counted for each API.
//!
//! Every connection's task counts here: a few relaxed additions for each
//! request, never a lock, nothing for each record.

use std::sync::atomic::{AtomicU64, Ordering};

use drave_storage::{DurationCounts, DurationHistogram};
use kafka_protocol::messages::ApiKey;

use crate::protocol::api_versions::APIS;
use crate::server::Served;

#[derive(Debug, Default)]
struct Counters {
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    durations: DurationHistogram,
}

/// The counters of all served APIs.
#[derive(Debug)]
pub struct Requests {
    /// One for each of [`APIS`].
    counters: Vec<Counters>,
}

/// The requests of one API since the broker started.
#[derive(Clone, Debug)]
pub struct ApiRequests {
    /// Which API.
    pub api: ApiKey,
    /// Bytes of the requests, with their length and header.
    pub request_bytes: u64,
    /// Bytes of the replies, with their length and header.
    pub response_bytes: u64,
    /// From a request read to its reply ready to be sent.
    pub durations: DurationCounts,
}

impl Default for Requests {
    fn default() -> Requests {
        Requests {
            counters: APIS.iter().map(|_| Counters::default()).collect(),
        }
    }
}

impl Requests {
    /// Counts a request that is complete.
    pub fn count(&self, served: &Served) {
        let place = APIS.iter().position(|api| api.key as i16 == served.api_key);
        let Some(counters) = place.map(|place| &self.counters[place]) else {
            return;
        };
        let add = |counter: &AtomicU64, bytes: usize| {
            counter.fetch_add(bytes as u64, Ordering::Relaxed);
        };
        add(&counters.request_bytes, served.request_bytes);
        add(&counters.response_bytes, served.response_bytes);
        counters.durations.observe(served.took);
    }

    /// What was counted so far, for every served API.
    pub fn counted(&self) -> Vec<ApiRequests> {
        let counted = APIS.iter().zip(&self.counters);
        counted
            .map(|(api, counters)| ApiRequests {
                api: api.key,
                request_bytes: counters.request_bytes.load(Ordering::Relaxed),
                response_bytes: counters.response_bytes.load(Ordering::Relaxed),
                durations: counters.durations.counts(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_request_counts_for_its_api_only_and_an_unknown_one_for_none() {
        let requests = Requests::default();
        for api_key in [ApiKey::Fetch as i16, ApiKey::Fetch as i16, i16::MAX, -1] {
            requests.count(&Served {
                api_key,
                request_bytes: 10,
                response_bytes: 300,
                took: Duration::from_millis(250),
            });
        }
        let counted = requests.counted();
        assert_eq!(counted.len(), APIS.len());
        for counted in counted {
            let times = if counted.api == ApiKey::Fetch { 2 } else { 0 };
            assert_eq!(counted.durations.count(), times, "{:?}", counted.api);
            assert_eq!(counted.request_bytes, 10 * times);
            assert_eq!(counted.response_bytes, 300 * times);
            let seconds = 0.25 * times as f64;
            assert!((counted.durations.sum_seconds - seconds).abs() < 1e-9);
        }
    }
}
