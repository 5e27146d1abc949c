//! How far a broker's replicas have been rebuilt, as `drave cluster status` asks it.
//!
//! Kafka has no field for it: it is a tagged field of DescribeCluster's answer,
//! which every other client skips. Format: one byte [`FORMAT`], then two
//! big-endian numbers.

use bytes::{Buf, BufMut, Bytes};

/// The tag in DescribeClusterResponse, far from those that Kafka may come to use.
pub const TAG: i32 = 7_283;
const FORMAT: u8 = 1;

/// What a broker says of its own replicas, those of internal groups too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReplicaProgress {
    /// Replicas placed on it.
    pub placed: u32,
    /// Those of them that don't vote yet, or know of no leader.
    pub catching_up: u32,
}

impl ReplicaProgress {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = vec![FORMAT];
        bytes.put_u32(self.placed);
        bytes.put_u32(self.catching_up);
        bytes.into()
    }

    /// Reads what [`ReplicaProgress::encode`] wrote; `None` for another format.
    pub fn decode(mut bytes: &[u8]) -> Option<ReplicaProgress> {
        if bytes.len() != 9 || bytes.get_u8() != FORMAT {
            return None;
        }
        Some(ReplicaProgress {
            placed: bytes.get_u32(),
            catching_up: bytes.get_u32(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_bytes_are_fixed() {
        let progress = ReplicaProgress {
            placed: 258,
            catching_up: 3,
        };
        let bytes = [1, 0, 0, 1, 2, 0, 0, 0, 3];
        assert_eq!(progress.encode()[..], bytes);
        assert_eq!(ReplicaProgress::decode(&bytes), Some(progress));
        assert_eq!(ReplicaProgress::decode(&bytes[..8]), None);
        assert_eq!(ReplicaProgress::decode(&[2, 0, 0, 1, 2, 0, 0, 0, 3]), None);
    }
}
