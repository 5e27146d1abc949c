//! The commands of a partition's log. Persisted: tags are never reused.

use bytes::Bytes;
use drave_raft::Command;

/// Kinds of commands; at least [`Command::TAG_MIN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandTag {
    /// Record batches of magic 2, one after the other, as the producers sent
    /// them. `stamp` is the leader's clock.
    Append = 16,
}

/// The command that appends `batches` at the time `stamp` of the leader's clock.
pub fn append(stamp: i64, batches: Bytes) -> Command {
    Command {
        tag: CommandTag::Append as u8,
        stamp,
        payload: batches,
    }
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
        const { assert!(CommandTag::Append as u8 >= Command::TAG_MIN) };
    }
}
