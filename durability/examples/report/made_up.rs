//! A run that never was: histories that follow from a few lines about each
//! scenario, judged and measured as those of a real run are.

use drave_durability::availability::{self, Availability, OUTAGE_US_DEFAULT};
use drave_durability::history::{
    Fault, FinalRead, History, LiveRead, Outcome, ProducerKind, Seen, Write,
};
use drave_durability::judge::{Verdict, judge};
use drave_durability::operation::{Answer, Asked, Object, Operation};
use drave_durability::record::RecordId;
use drave_durability::report::{FORMAT_VERSION, Report, ScenarioReport, TargetReport};

const PARTITIONS: u32 = 12;
const BROKERS: u32 = 3;
const RECORDS: u64 = 15_000;
/// Between two records.
const PACE_US: u64 = 2_000;
/// What a producer waits for an acknowledgement.
const TIMEOUT_US: u64 = 5_000_000;

/// What happens in a scenario.
#[derive(Clone, Default)]
struct Plan {
    name: &'static str,
    description: &'static str,
    notes: Vec<&'static str>,
    skipped: Option<&'static str>,
    /// Median time to acknowledgement; 0: never.
    latency_us: u64,
    blows: Vec<Blow>,
}

/// A fault, and what it does.
#[derive(Clone, Default)]
struct Blow {
    name: &'static str,
    at_us: u64,
    lasts_us: u64,
    /// How long partitions take no record.
    outage_us: u64,
    /// Whose; `None`: all.
    leader: Option<u32>,
    /// Records at the end of each log that are forgotten.
    forgets: usize,
    /// An offset of partition 0 that is damaged on one replica.
    flips: Option<usize>,
}

/// The report of two targets.
pub(crate) fn report() -> Report {
    let target = |name: &str, plans: Vec<Plan>| TargetReport {
        name: name.to_owned(),
        scenarios: plans.iter().map(scenario).collect(),
    };
    Report {
        version: FORMAT_VERSION,
        title: "Durability of drave and Kafka".to_owned(),
        started: "2026-11-23 06:10:00 UTC".to_owned(),
        seed: 4_711,
        command:
            "drave bench durability --seed 4711 --target drave --target kafka --html report.html"
                .to_owned(),
        targets: vec![
            target("drave 0.1.0", plans(1_700, 560_000, 0)),
            target("Kafka 4.3.1, default settings", plans(3_100, 9_200_000, 40)),
        ],
    }
}

/// The scenarios of a target that acknowledges after `latency_us`, elects a leader
/// in `outage_us`, and forgets `unsynced` records of each partition when power fails.
fn plans(latency_us: u64, outage_us: u64, unsynced: usize) -> Vec<Plan> {
    let kill = |name, at_us, leader| Blow {
        name,
        at_us,
        lasts_us: 4_000_000,
        outage_us,
        leader: Some(leader),
        ..Blow::default()
    };
    let plan = |name, description, blows| Plan {
        name,
        description,
        latency_us,
        blows,
        ..Plan::default()
    };
    let mut plans = vec![
        plan(
            "kill -9 of leaders",
            "A broker that leads partitions is killed and started again 4 s later, then another one.",
            vec![
                kill("kill -9 of broker 1", 6_000_000, 1),
                kill("kill -9 of broker 2", 18_000_000, 2),
            ],
        ),
        plan(
            "power cut of all brokers",
            "All brokers lose power at once, and with it everything that was not flushed. They start again 2 s later.",
            vec![Blow {
                name: "power cut of brokers 0, 1 and 2",
                at_us: 10_000_000,
                lasts_us: 2_000_000,
                outage_us: 2_000_000 + outage_us,
                forgets: unsynced,
                ..Blow::default()
            }],
        ),
        plan(
            "graceful rolling restart",
            "Every broker is told to stop and started again, one after the other.",
            (0..BROKERS)
                .map(|broker| Blow {
                    name: [
                        "restart of broker 0",
                        "restart of broker 1",
                        "restart of broker 2",
                    ][broker as usize],
                    at_us: 5_000_000 + u64::from(broker) * 7_000_000,
                    lasts_us: 3_000_000,
                    outage_us: 120_000,
                    leader: Some(broker),
                    ..Blow::default()
                })
                .collect(),
        ),
        plan(
            "bytes flipped in a stopped broker's data",
            "Broker 0 is stopped, one byte in the middle of each of its data files is changed, and it is started again.",
            vec![Blow {
                flips: (unsynced > 0).then_some(300),
                ..kill("stop, flip and start of broker 0", 9_000_000, 0)
            }],
        ),
    ];
    plans.push(Plan {
        notes: vec!["Delay is made by a switch in user space: this kernel has no netem."],
        latency_us: latency_us * 20,
        ..plan(
            "packets delayed by 20 ms",
            "Every packet between brokers is delayed by 20 ms, from the beginning to the end.",
            vec![Blow {
                name: "20 ms of delay",
                lasts_us: RECORDS * PACE_US,
                ..Blow::default()
            }],
        )
    });
    plans.push(Plan {
        skipped: (unsynced > 0).then_some("the JVM cannot be given a clock of its own here"),
        ..plan(
            "clock jump",
            "The clock of one broker jumps an hour ahead.",
            vec![Blow {
                name: "clock of broker 1 an hour ahead",
                at_us: 8_000_000,
                lasts_us: 10_000_000,
                ..Blow::default()
            }],
        )
    });
    plans.push(Plan {
        notes: vec!["All links stay cut to the end: no promise can be made, and none be broken."],
        latency_us: 0,
        ..plan(
            "every link cut",
            "No broker reaches another one, from the beginning to the end.",
            vec![Blow {
                name: "all links cut",
                lasts_us: RECORDS * PACE_US,
                outage_us: RECORDS * PACE_US,
                ..Blow::default()
            }],
        )
    });
    if unsynced == 0 {
        plans.push(plan(
            "wiped disk",
            "All files of one broker are removed while it is stopped.",
            vec![kill("broker 2 stopped and wiped", 12_000_000, 2)],
        ));
    }
    plans
}

fn scenario(plan: &Plan) -> ScenarioReport {
    let history = match plan.skipped {
        None => history(plan),
        Some(_) => History::default(),
    };
    let (verdict, availability) = match plan.skipped {
        None => (
            judge(&history),
            availability::measure(&history, OUTAGE_US_DEFAULT),
        ),
        Some(_) => (Verdict::default(), Availability::default()),
    };
    ScenarioReport {
        name: plan.name.to_owned(),
        description: plan.description.to_owned(),
        verdict,
        availability,
        faults: history.faults,
        notes: plan.notes.iter().map(|note| (*note).to_owned()).collect(),
        skipped: plan.skipped.map(str::to_owned),
        broken_off: None,
    }
}

/// What clients of `plan` are told and see: three producers in turn, one consumer a partition.
fn history(plan: &Plan) -> History {
    let mut chance = Chance(0x5eed);
    let mut logs = vec![Vec::<RecordId>::new(); PARTITIONS as usize];
    let mut live: Vec<LiveRead> = (0..PARTITIONS)
        .map(|partition| LiveRead {
            consumer: partition,
            partition,
            seen: Vec::new(),
        })
        .collect();
    let mut writes = Vec::new();
    let mut forgotten = 0;
    for number in 0..RECORDS {
        let sent_us = number * PACE_US;
        // Each in its turn, and each producer to all of them.
        let turn = number + number / u64::from(PARTITIONS);
        let partition = (turn % u64::from(PARTITIONS)) as u32;
        let id = RecordId {
            producer: (number % 3) as u32,
            sequence: number / 3,
        };
        if let Some(blow) = plan.blows.get(forgotten)
            && sent_us >= blow.at_us
        {
            forgotten += 1;
            for log in &mut logs {
                log.truncate(log.len() - blow.forgets.min(log.len()));
            }
        }
        let log = &mut logs[partition as usize];
        let free_us = plan.free_us(sent_us, partition);
        let answered_us = free_us + chance.latency_us(plan.latency_us);
        let given_up = plan.latency_us == 0 || answered_us - sent_us > TIMEOUT_US;
        let outcome = if given_up {
            Outcome::GivenUp {
                error: format!("partition {partition}: no acknowledgement within 5 s"),
            }
        } else {
            let offset = log.len() as i64;
            log.push(id);
            let seen = &mut live[partition as usize].seen;
            let last = seen
                .last()
                .map_or(-1, |(_, seen): &(u64, Seen)| seen.offset);
            if offset > last {
                let record = Ok(id);
                seen.push((answered_us + 4_000, Seen { offset, record }));
            }
            Outcome::Acknowledged {
                offset: Some(offset),
            }
        };
        writes.push(Write {
            id,
            partition,
            transaction: None,
            sent_us,
            answered_us: answered_us.min(sent_us + TIMEOUT_US),
            outcome,
        });
    }
    let stopped_us = writes.iter().map(|write| write.answered_us).max();
    History {
        partitions: PARTITIONS,
        producers: (0..3)
            .map(|producer| ProducerKind {
                producer,
                acks: -1,
                idempotent: true,
            })
            .collect(),
        writes,
        transactions: Vec::new(),
        repeated: [("NOT_LEADER_OR_FOLLOWER".to_owned(), 12)].into(),
        live,
        finals: finals(plan, &logs),
        operations: operations(plan),
        faults: plan.blows.iter().map(Blow::fault).collect(),
        stopped_us: stopped_us.unwrap_or_default(),
    }
}

/// Two clients in turn commit an offset and fetch it. With the records, the newest is forgotten.
fn operations(plan: &Plan) -> Vec<Operation> {
    let mut committed = None;
    let mut forgotten = 0;
    let mut operations = Vec::new();
    for (number, called_us) in (0..RECORDS * PACE_US).step_by(250_000).enumerate() {
        if let Some(blow) = plan.blows.get(forgotten)
            && called_us >= blow.at_us
        {
            forgotten += 1;
            let lost = committed.filter(|_| blow.forgets > 0);
            committed = lost.map_or(committed, |offset: i64| Some(offset - 2));
        }
        let (asked, answer) = if number % 2 == 0 {
            committed = Some(number as i64);
            (Asked::CommitOffset(number as i64), Answer::Done)
        } else {
            (Asked::FetchOffset, Answer::Offset(committed))
        };
        operations.push(Operation {
            client: number as u32 % 2,
            object: Object::CommittedOffset {
                group: "readers".to_owned(),
                partition: 0,
            },
            asked,
            called_us,
            answered_us: called_us + 2_000,
            answer,
        });
    }
    operations
}

/// What every replica holds in the end.
fn finals(plan: &Plan, logs: &[Vec<RecordId>]) -> Vec<FinalRead> {
    let mut finals = Vec::new();
    for broker in 0..BROKERS {
        for (partition, log) in (0..).zip(logs) {
            let flips = plan.blows.iter().filter_map(|blow| blow.flips);
            let flipped: Vec<usize> = flips.filter(|_| (broker, partition) == (0, 0)).collect();
            let seen = log.iter().enumerate().map(|(offset, id)| Seen {
                offset: offset as i64,
                record: match flipped.contains(&offset) {
                    true => Err("a value of 100 bytes whose checksum does not match".to_owned()),
                    false => Ok(*id),
                },
            });
            finals.push(FinalRead {
                from: format!("broker {broker}"),
                partition,
                seen: Ok(seen.collect()),
            });
        }
    }
    finals
}

impl Plan {
    /// When `partition` next takes a record.
    fn free_us(&self, sent_us: u64, partition: u32) -> u64 {
        let hits = self.blows.iter().filter(|blow| {
            blow.leader
                .is_none_or(|leader| partition % BROKERS == leader)
                && (blow.at_us..blow.at_us + blow.outage_us).contains(&sent_us)
        });
        // Partitions come back one after the other.
        let back = hits.map(|blow| blow.at_us + blow.outage_us + u64::from(partition) * 9_000);
        back.max().unwrap_or(sent_us)
    }
}

impl Blow {
    fn fault(&self) -> Fault {
        Fault {
            name: self.name.to_owned(),
            from_us: self.at_us,
            until_us: self.at_us + self.lasts_us,
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Around `median_us`, now and then much more.
    fn latency_us(&mut self, median_us: u64) -> u64 {
        let luck = 1.0 - self.below(100_000) as f64 / 100_001.0;
        (median_us as f64 * (0.7 + 0.21 / luck.sqrt())) as u64
    }
}
