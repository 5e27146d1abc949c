//! What becomes of packets, without a clock or a socket of its own: each
//! direction has its [`Link`], its chances, its packets under way and its counts.
//! Packets of one direction leave in the order in which they came.

use super::{Link, Traffic};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Packets under way in one direction; of more, the newest are dropped. Enough for
/// 80 MB/s in packets of 1500 bytes that are under way for 70 ms.
const UNDER_WAY_MAX: usize = 4096;

/// A packet's way: the broker that sent it and the one that it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) from: u32,
    pub(super) to: u32,
}

/// All directions between brokers. Brokers count from 1.
#[derive(Debug)]
pub(super) struct Links {
    brokers: u32,
    directions: Vec<Direction>,
}

#[derive(Debug)]
struct Direction {
    way: Way,
    link: Link,
    chance: StdRng,
    under_way: VecDeque<UnderWay>,
    traffic: Traffic,
}

#[derive(Debug)]
struct UnderWay {
    due: Instant,
    packet: Vec<u8>,
}

impl Links {
    /// Everything passes at once.
    pub(super) fn new(brokers: u32, seed: u64) -> Links {
        let pairs = (1..=brokers).flat_map(|from| (1..=brokers).map(move |to| Way { from, to }));
        let directions = pairs.zip(0..).map(|(way, number)| Direction {
            way,
            link: Link::default(),
            // A direction's chances don't depend on what the others carry.
            chance: StdRng::seed_from_u64(seed.wrapping_add(number)),
            under_way: VecDeque::new(),
            traffic: Traffic::default(),
        });
        Links {
            brokers,
            directions: directions.collect(),
        }
    }

    /// Says what happens to packets that come from now on.
    pub(super) fn set(&mut self, way: Way, link: Link) {
        self.direction(way).expect("brokers of this network").link = link;
    }

    /// All pairs of different brokers.
    pub(super) fn ways(&self) -> Vec<Way> {
        let ways = self.directions.iter().map(|direction| direction.way);
        ways.filter(|way| way.from != way.to).collect()
    }

    /// Packets so far.
    pub(super) fn traffic(&self, way: Way) -> Traffic {
        let direction = self.directions.iter().find(|found| found.way == way);
        direction.expect("brokers of this network").traffic
    }

    /// Takes a packet that a broker sent. Says whom to give it to, if that is now.
    pub(super) fn take(&mut self, from: u32, packet: &[u8], now: Instant) -> Option<Way> {
        let way = Way {
            from,
            to: receiver(packet)?,
        };
        let direction = self.direction(way)?;
        direction.take(packet, now).then_some(way)
    }

    /// The next packet that is due, and whom to give it to.
    pub(super) fn due(&mut self, now: Instant) -> Option<(Way, Vec<u8>)> {
        let waiting = |direction: &&mut Direction| direction.due().is_some_and(|due| due <= now);
        let mut directions = self.directions.iter_mut();
        let direction = directions.find(waiting)?;
        let next = direction.under_way.pop_front()?;
        Some((direction.way, next.packet))
    }

    /// When [`Links::due`] has something next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.directions.iter().filter_map(Direction::due).min()
    }

    /// Counts a packet that was given to its receiver, who took it or did not.
    pub(super) fn given(&mut self, way: Way, taken: bool) {
        let direction = self.direction(way).expect("brokers of this network");
        match taken {
            true => direction.traffic.passed += 1,
            false => direction.traffic.dropped += 1,
        }
    }

    fn direction(&mut self, way: Way) -> Option<&mut Direction> {
        let known = |id: u32| (1..=self.brokers).contains(&id);
        if !known(way.from) || !known(way.to) {
            return None;
        }
        let index = (way.from - 1) * self.brokers + (way.to - 1);
        self.directions.get_mut(index as usize)
    }
}

impl Direction {
    /// Whether the packet goes on at once.
    fn take(&mut self, packet: &[u8], now: Instant) -> bool {
        if self.link.lost > 0.0 && self.chance.random::<f64>() < self.link.lost {
            self.traffic.lost += 1;
            return false;
        }
        let due = now + self.delay();
        // Not before those that are before it.
        let last = self.under_way.back().map(|last| last.due);
        let due = last.map_or(due, |last| last.max(due));
        if due <= now && self.under_way.is_empty() {
            return true;
        }
        if self.under_way.len() == UNDER_WAY_MAX {
            self.traffic.dropped += 1;
            return false;
        }
        let packet = packet.to_vec();
        self.under_way.push_back(UnderWay { due, packet });
        false
    }

    fn delay(&mut self) -> Duration {
        let Link { delay, jitter, .. } = self.link;
        if jitter.is_zero() {
            return delay;
        }
        let (least, most) = (delay.saturating_sub(jitter), delay + jitter);
        least + (most - least).mul_f64(self.chance.random())
    }

    fn due(&self) -> Option<Instant> {
        self.under_way.front().map(|next| next.due)
    }
}

/// The broker that a packet is for: the last octet of its address. Only IPv4 is spoken here.
fn receiver(packet: &[u8]) -> Option<u32> {
    let version = packet.first()? >> 4;
    let octet = packet.get(19)?;
    (version == 4).then(|| u32::from(*octet))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAY: Way = Way { from: 1, to: 2 };

    /// To broker 2, with a number.
    fn packet(number: u32) -> Vec<u8> {
        let mut packet = vec![0; 24];
        packet[0] = 0x45;
        packet[16..20].copy_from_slice(&[10, 127, 0, 2]);
        packet[20..].copy_from_slice(&number.to_be_bytes());
        packet
    }

    fn links(seed: u64, link: Link) -> Links {
        let mut links = Links::new(3, seed);
        links.set(WAY, link);
        links
    }

    fn milliseconds(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_packet_passes_at_once_where_nothing_is_said() {
        let mut links = Links::new(3, 0);
        let now = Instant::now();
        assert_eq!(links.take(1, &packet(0), now), Some(WAY));
        assert_eq!(links.next_due(), None);
        links.given(WAY, true);
        links.given(WAY, false);
        let traffic = links.traffic(WAY);
        assert_eq!((traffic.passed, traffic.lost, traffic.dropped), (1, 0, 1));
    }

    #[test]
    fn a_cut_loses_everything_in_its_direction_and_nothing_in_another() {
        let mut links = links(0, Link::CUT);
        let now = Instant::now();
        for number in 0..1_000 {
            assert_eq!(links.take(1, &packet(number), now), None);
            assert!(links.take(3, &packet(number), now).is_some());
        }
        assert_eq!(links.traffic(WAY).lost, 1_000);
        assert_eq!(links.due(now + milliseconds(1)), None);
    }

    #[test]
    fn a_seed_says_which_packets_are_lost() {
        let fates = |seed| -> Vec<bool> {
            let lost = 0.1;
            let mut links = links(
                seed,
                Link {
                    lost,
                    ..Link::default()
                },
            );
            let now = Instant::now();
            let taken = (0..10_000).map(|number| links.take(1, &packet(number), now).is_some());
            taken.collect()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let lost = fates(7).iter().filter(|passed| !**passed).count();
        assert!((900..1_100).contains(&lost), "{lost} of 10000");
    }

    #[test]
    fn packets_arrive_within_the_jitter_and_in_their_order() {
        let link = Link {
            delay: milliseconds(50),
            jitter: milliseconds(20),
            ..Link::default()
        };
        let mut links = links(3, link);
        let began = Instant::now();
        let sent = |number: u32| began + milliseconds(u64::from(number));
        for number in 0..200 {
            assert_eq!(links.take(1, &packet(number), sent(number)), None);
        }
        let mut delays = Vec::new();
        for number in 0..200 {
            let due = links.next_due().expect("one more");
            assert_eq!(links.due(due - Duration::from_nanos(1)), None);
            assert_eq!(links.due(due), Some((WAY, packet(number))));
            delays.push(due - sent(number));
        }
        assert_eq!(links.due(began + milliseconds(1_000)), None);
        assert!(delays.iter().all(|delay| *delay >= milliseconds(30)));
        assert!(delays.iter().all(|delay| *delay <= milliseconds(70)));
        assert_ne!(delays.iter().min(), delays.iter().max());
    }

    #[test]
    fn a_packet_does_not_overtake_those_that_were_delayed_before_it() {
        let delay = milliseconds(50);
        let mut links = links(
            0,
            Link {
                delay,
                ..Link::default()
            },
        );
        let now = Instant::now();
        assert_eq!(links.take(1, &packet(0), now), None);
        links.set(WAY, Link::default());
        assert_eq!(links.take(1, &packet(1), now), None);
        assert_eq!(links.due(now), None);
        assert_eq!(links.due(now + delay), Some((WAY, packet(0))));
        assert_eq!(links.due(now + delay), Some((WAY, packet(1))));
        assert_eq!(links.take(1, &packet(2), now + delay), Some(WAY));
    }

    #[test]
    fn no_more_packets_are_under_way_than_may_be() {
        let delay = milliseconds(50);
        let mut links = links(
            0,
            Link {
                delay,
                ..Link::default()
            },
        );
        let now = Instant::now();
        for number in 0..UNDER_WAY_MAX as u32 + 5 {
            assert_eq!(links.take(1, &packet(number), now), None);
        }
        assert_eq!(links.traffic(WAY).dropped, 5);
        let arrived = std::iter::from_fn(|| links.due(now + delay)).count();
        assert_eq!(arrived, UNDER_WAY_MAX);
    }

    #[test]
    fn what_is_for_nobody_goes_nowhere() {
        let mut links = Links::new(3, 0);
        let now = Instant::now();
        let mut stranger = packet(0);
        stranger[19] = 4;
        let mut ipv6 = packet(0);
        ipv6[0] = 0x60;
        for unknown in [&stranger[..], &ipv6, &packet(0)[..10], &[]] {
            assert_eq!(links.take(1, unknown, now), None);
        }
        assert_eq!(links.next_due(), None);
    }
}
