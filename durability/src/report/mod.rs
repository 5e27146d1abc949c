//! What a run of the benchmark leaves behind: one [`Report`], as JSON for
//! machines, as a page for people ([`html`]) and as rows for a terminal ([`table`]).
//!
//! The page needs nothing but itself: no other file, no network, and its
//! script only adds the figures under the pointer. All text in a report is
//! taken to come from outside: names, samples and errors are data, never markup.

mod axis;
mod lanes;
mod page;
mod plot;
mod scenario;
mod summary;
mod table;
mod units;

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::availability::Availability;
use crate::history::Fault;
use crate::judge::Verdict;

pub use page::html;
pub use summary::Standing;
pub use table::{TABLE_HEADER, table};

/// The format of the JSON. A reader refuses all others.
pub const FORMAT_VERSION: u32 = 2;

/// A report of more bytes is not read.
pub const REPORT_BYTES_MAX: u64 = 1 << 30;

/// What was run, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT_VERSION`] of who wrote it.
    pub version: u32,
    /// What the run was.
    pub title: String,
    /// When it began, in UTC.
    pub started: String,
    /// What the schedules followed from.
    pub seed: u64,
    /// The command that repeats it.
    pub command: String,
    /// Whom it was done to.
    pub targets: Vec<TargetReport>,
}

/// What one target did in all scenarios.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetReport {
    /// Its name, its version and how it was set up: `Kafka 4.3.1, fsync`.
    pub name: String,
    /// In the order in which they ran. Those of the same name are compared between targets.
    pub scenarios: Vec<ScenarioReport>,
}

/// What one target did in one scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScenarioReport {
    /// A few words.
    pub name: String,
    /// What is done to the cluster, and what is asked of it.
    pub description: String,
    /// What the judge says of the history.
    pub verdict: Verdict,
    /// When records were acknowledged, and how fast.
    pub availability: Availability,
    /// What was done, and when.
    pub faults: Vec<Fault>,
    /// What a reader must know besides.
    pub notes: Vec<String>,
    /// Why it was not run. The verdict means nothing then.
    pub skipped: Option<String>,
    /// Why it was not played to its end, if it was not: the cluster did not come
    /// back, say. The verdict is about what was seen until then.
    pub broken_off: Option<String>,
}

/// Why a report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes could not be had.
    #[error("the report cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The bytes are something else.
    #[error("this is no report of the durability benchmark: {0}")]
    Json(#[from] serde_json::Error),
    /// A report, but of another format.
    #[error(
        "the report has format version {found}, this program reads {FORMAT_VERSION}: \
         read it with the version of drave that wrote it"
    )]
    Version {
        /// What it says.
        found: u64,
    },
}

impl Report {
    /// Writes it as JSON, a line a value.
    pub fn to_writer(&self, mut writer: impl Write) -> std::io::Result<()> {
        serde_json::to_writer_pretty(&mut writer, self)?;
        writer.write_all(b"\n")?;
        writer.flush()
    }

    /// Reads what [`Report::to_writer`] wrote.
    pub fn from_reader(reader: impl Read) -> Result<Report, ReadError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let mut bytes = Vec::new();
        reader.take(REPORT_BYTES_MAX).read_to_end(&mut bytes)?;
        // First the version alone: of another one nothing else is known.
        let Version { version: found } = serde_json::from_slice(&bytes)?;
        if found != u64::from(FORMAT_VERSION) {
            return Err(ReadError::Version { found });
        }
        Ok(serde_json::from_slice(&bytes)?)
    }
}
