//! Files of the benchmark: one JSON value that begins with the version of its format.

use std::io::{Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Why a report or a history cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes could not be had.
    #[error("the file cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// The bytes are something else.
    #[error("this is no such file of the durability benchmark: {0}")]
    Json(#[from] serde_json::Error),
    /// One of another format.
    #[error(
        "the file has format version {found}, this program reads {reads}: \
         read it with the version of drave that wrote it"
    )]
    Version {
        /// What it says.
        found: u64,
        /// What would be understood.
        reads: u32,
    },
}

/// Writes a value as JSON, a line a value if it is to be read by people too.
pub(crate) fn write(
    mut writer: impl Write,
    value: &impl Serialize,
    pretty: bool,
) -> std::io::Result<()> {
    match pretty {
        true => serde_json::to_writer_pretty(&mut writer, value)?,
        false => serde_json::to_writer(&mut writer, value)?,
    }
    writer.write_all(b"\n")?;
    writer.flush()
}

/// Reads a value of this version, of so many bytes at most.
pub(crate) fn read<T: DeserializeOwned>(
    reader: impl Read,
    bytes_max: u64,
    version: u32,
) -> Result<T, ReadError> {
    #[derive(Deserialize)]
    struct Version {
        version: u64,
    }
    let mut bytes = Vec::new();
    reader.take(bytes_max).read_to_end(&mut bytes)?;
    // First the version alone: of another one nothing else is known.
    let Version { version: found } = serde_json::from_slice(&bytes)?;
    if found != u64::from(version) {
        return Err(ReadError::Version {
            found,
            reads: version,
        });
    }
    Ok(serde_json::from_slice(&bytes)?)
}
