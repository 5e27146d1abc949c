//! A history in a file, so that somebody else can judge it again.

use std::io::{Read, Write};

use serde::{Deserialize, Serialize};

use crate::file::{self, ReadError};
use crate::history::History;

/// The format of the file. A reader refuses all others.
pub const FORMAT_VERSION: u32 = 1;

/// A file of more bytes is not read.
pub const HISTORY_BYTES_MAX: u64 = 4 << 30;

/// What was run, and everything that its clients asked, were told and saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// [`FORMAT_VERSION`] of who wrote it.
    pub version: u32,
    /// Whom it was done to, as in the report.
    pub target: String,
    /// What was done.
    pub scenario: String,
    /// All that is judged.
    pub history: History,
}

impl Saved {
    /// Writes it as JSON.
    pub fn to_writer(&self, writer: impl Write) -> std::io::Result<()> {
        file::write(writer, self, false)
    }

    /// Reads what [`Saved::to_writer`] wrote.
    pub fn from_reader(reader: impl Read) -> Result<Saved, ReadError> {
        file::read(reader, HISTORY_BYTES_MAX, FORMAT_VERSION)
    }
}
