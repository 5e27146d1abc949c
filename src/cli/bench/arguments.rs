//! What `drave bench durability` can be told.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use drave_durability::disk::{NamesPolicy, Torn};

use crate::cli::output::OutputArgs;
use crate::durability::{Kind, Load, Runner, Scenario};

/// Flags of `drave bench durability`.
#[derive(Args)]
pub(in crate::cli) struct DurabilityArgs {
    /// Whose brokers to start; may be repeated, for a report side by side
    #[arg(
        long,
        value_enum,
        default_value = "drave",
        conflicts_with = "bootstrap"
    )]
    pub(super) target: Vec<Target>,
    /// Folder of Apache Kafka's jars
    #[arg(
        long,
        env = "DRAVE_KAFKA_LIBS",
        value_name = "DIR",
        default_value = "/opt/kafka/libs"
    )]
    kafka_libs: PathBuf,
    /// What to do to them; may be repeated [default: everything]
    #[arg(long, value_enum, conflicts_with = "bootstrap")]
    scenario: Vec<Scenario>,
    /// Load and judge this running cluster instead, HOST:PORT separated by commas
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) bootstrap: Option<String>,
    /// Shell command that hurts the cluster of --bootstrap when DRAVE_FAULT is `begin` and mends it when it is `end`
    #[arg(long, value_name = "COMMAND", requires = "bootstrap")]
    pub(super) on_fault: Option<String>,
    /// How often a fault is repeated
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) rounds: u32,
    /// Decides whom faults hit, and when [default: another one each time]
    #[arg(long)]
    pub(super) seed: Option<u64>,
    /// What a power cut leaves of bytes that were written and not synced
    #[arg(
        long,
        value_enum,
        default_value = "pages",
        conflicts_with = "bootstrap"
    )]
    torn: TornWrites,
    /// A power cut also takes names (create, rename, unlink) whose folder was not synced
    #[arg(long, conflicts_with = "bootstrap")]
    lose_names: bool,
    /// Partitions of the topic
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    partitions: u32,
    /// Idempotent producers with acks=all
    #[arg(long, default_value_t = 2)]
    producers: u32,
    /// Producers with acks=all that are not idempotent
    #[arg(long, default_value_t = 1)]
    plain_producers: u32,
    /// Producers with acks=1, whose losses are told but tolerated
    #[arg(long, default_value_t = 0)]
    acks1_producers: u32,
    /// Idempotent producers that write in transactions, where the brokers have them
    #[arg(long, default_value_t = 1)]
    transactional_producers: u32,
    /// Consumers that read along
    #[arg(long, default_value_t = 2)]
    consumers: u32,
    /// Records a second of all producers together
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: u32,
    /// Bytes of a record's value
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(16..=900_000))]
    value_bytes: u32,
    /// Folder for the report
    #[arg(long, value_name = "DIR", default_value = "durability-report")]
    pub(super) report: PathBuf,
    /// Keep what clients asked, were told and saw, in the folder of the report, for `drave bench judge`
    #[arg(long)]
    pub(super) histories: bool,
    /// Folder for the brokers' data and logs, kept [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    #[command(flatten)]
    pub(super) output: OutputArgs,
}

/// Brokers that can be started.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Target {
    /// This program
    Drave,
    /// Apache Kafka as it comes: it acknowledges before it syncs
    Kafka,
    /// Apache Kafka that syncs before it acknowledges
    KafkaFsync,
}

/// What a power cut leaves.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TornWrites {
    /// Nothing
    Lost,
    /// A random half of the pages of 4096 bytes
    Pages,
    /// A random half of the sectors of 512 bytes
    Sectors,
}

impl DurabilityArgs {
    /// What is done to the brokers all the time.
    pub(super) fn load(&self) -> Load {
        Load {
            partitions: self.partitions,
            producers: self.producers,
            plain_producers: self.plain_producers,
            acks1_producers: self.acks1_producers,
            transactional_producers: self.transactional_producers,
            consumers: self.consumers,
            rate: self.rate,
            value_bytes: self.value_bytes as usize,
        }
    }

    /// Who hurts brokers of a target.
    pub(super) fn runner(&self, target: Target, seed: u64) -> Runner {
        Runner {
            kind: target.kind(&self.kafka_libs),
            load: self.load(),
            rounds: self.rounds,
            seed,
            torn: match self.torn {
                TornWrites::Lost => Torn::No,
                TornWrites::Pages => Torn::Pages,
                TornWrites::Sectors => Torn::Sectors,
            },
            names: match self.lose_names {
                true => NamesPolicy::LostUnlessSynced,
                false => NamesPolicy::Durable,
            },
        }
    }

    /// What to do to them, in order.
    pub(super) fn scenarios(&self) -> &[Scenario] {
        match self.scenario.as_slice() {
            [] => Scenario::all(),
            chosen => chosen,
        }
    }
}

impl Target {
    fn kind(self, libs: &Path) -> Kind {
        match self {
            Target::Drave => Kind::Drave,
            Target::Kafka | Target::KafkaFsync => Kind::Kafka {
                libs: libs.to_owned(),
                fsync: self == Target::KafkaFsync,
            },
        }
    }

    /// Its name on the command line.
    pub(super) fn name(self) -> String {
        let value = self.to_possible_value().expect("none is skipped");
        value.get_name().to_owned()
    }
}
