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
use crate::file::{self, ReadError};
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

impl Report {
    /// Writes it as JSON, a line a value.
    pub fn to_writer(&self, writer: impl Write) -> std::io::Result<()> {
        file::write(writer, self, true)
    }

    /// Reads what [`Report::to_writer`] wrote.
    pub fn from_reader(reader: impl Read) -> Result<Report, ReadError> {
        file::read(reader, REPORT_BYTES_MAX, FORMAT_VERSION)
    }
}
