//! The commands of a partition's log. Persisted: tags are never reused.

use bytes::Bytes;
use drave_raft::Command;

use super::encoding::{Malformed, Reader, Writer};

/// Kinds of commands; at least [`Command::TAG_MIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandTag {
    /// Record batches of magic 2, one after the other, as the producers sent
    /// them. `stamp` is the leader's clock.
    Append = 16,
    /// The log starts at a later offset: a version, then the offset.
    TrimPrefix = 17,
}

const TRIM_VERSION: u8 = 1;

/// The command that appends `batches` at the time `stamp` of the leader's clock.
pub fn append(stamp: i64, batches: Bytes) -> Command {
    Command {
        tag: CommandTag::Append as u8,
        stamp,
        payload: batches,
    }
}

/// The command that lets the log start at `offset`.
pub fn trim_prefix(stamp: i64, offset: i64) -> Command {
    let mut payload = Writer::default();
    payload.u8(TRIM_VERSION);
    payload.i64(offset);
    Command {
        tag: CommandTag::TrimPrefix as u8,
        stamp,
        payload: payload.finish(),
    }
}

/// The offset of a command of [`trim_prefix`].
pub fn trimmed_to(payload: &[u8]) -> Result<i64, Malformed> {
    let mut reader = Reader::of(payload);
    if reader.u8()? != TRIM_VERSION {
        return Err(Malformed("version of a trim"));
    }
    let offset = reader.i64()?;
    reader.finish()?;
    Ok(offset)
}

/// Whether an entry's tag says that it carries record batches.
pub fn is_append(tag: u8) -> bool {
    tag == CommandTag::Append as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_payloads_never_change() {
        let command = append(7, Bytes::from_static(b"batches"));
        assert_eq!(
            (command.tag, command.stamp, &command.payload[..]),
            (16, 7, &b"batches"[..])
        );
        let trim = trim_prefix(7, 258);
        assert_eq!(
            (trim.tag, &trim.payload[..]),
            (17, &[1, 0, 0, 0, 0, 0, 0, 1, 2][..])
        );
        assert_eq!(trimmed_to(&trim.payload).expect("our own"), 258);
        assert!(trimmed_to(&trim.payload[..8]).is_err());
        const { assert!(CommandTag::Append as u8 >= Command::TAG_MIN) };
    }
}
