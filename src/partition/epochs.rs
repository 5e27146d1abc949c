//! Where each leader epoch starts: what clients ask to find out whether their
//! log and the leader's are still the same.

use super::encoding::{Malformed, Reader, Writer};

/// The oldest epochs are forgotten beyond this count.
pub const EPOCHS_MAX: usize = 4096;

/// The first offset of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The epoch: the Raft term.
    pub epoch: i32,
    /// The offset of its first record, or of the next one if it has none.
    pub offset: i64,
}

/// The epochs of a partition, ascending by epoch and by offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Epochs {
    starts: Vec<EpochStart>,
}

impl Epochs {
    /// The newest epoch, -1 if there is none.
    pub fn latest(&self) -> i32 {
        self.starts.last().map_or(-1, |start| start.epoch)
    }

    /// Notes the epoch of an entry that is applied while `next_offset` is the
    /// next offset. True if the epoch is new.
    pub fn observe(&mut self, epoch: i32, next_offset: i64) -> bool {
        if epoch <= self.latest() {
            return false;
        }
        // An epoch without records leaves no trace, as in Kafka.
        while self
            .starts
            .last()
            .is_some_and(|last| last.offset >= next_offset)
        {
            self.starts.pop();
        }
        if self.starts.len() == EPOCHS_MAX {
            self.starts.remove(0);
        }
        self.starts.push(EpochStart {
            epoch,
            offset: next_offset,
        });
        true
    }

    /// The epoch of the record at `offset`, -1 if unknown.
    pub fn at(&self, offset: i64) -> i32 {
        let after = self.starts.partition_point(|start| start.offset <= offset);
        after
            .checked_sub(1)
            .map_or(-1, |position| self.starts[position].epoch)
    }

    /// The largest epoch not above `epoch` and the offset at which it ends, as
    /// Kafka answers it; (-1, -1) if that can't be told.
    pub fn end_of(&self, epoch: i32, next_offset: i64) -> (i32, i64) {
        if epoch < 0 || epoch > self.latest() {
            return (-1, -1);
        }
        if epoch == self.latest() {
            return (epoch, next_offset);
        }
        let after = self.starts.partition_point(|start| start.epoch <= epoch);
        let end = self.starts[after].offset;
        match after.checked_sub(1) {
            Some(position) => (self.starts[position].epoch, end),
            None => (epoch, end),
        }
    }

    /// Writes them into a checkpoint.
    pub fn encode(&self, writer: &mut Writer) {
        writer.count(self.starts.len());
        for start in &self.starts {
            writer.i32(start.epoch);
            writer.i64(start.offset);
        }
    }

    /// Reads them from a checkpoint.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Epochs, Malformed> {
        let mut starts = Vec::new();
        for _ in 0..reader.count()? {
            starts.push(EpochStart {
                epoch: reader.i32()?,
                offset: reader.i64()?,
            });
        }
        if !starts.is_sorted_by(|a, b| a.epoch < b.epoch && a.offset < b.offset) {
            return Err(Malformed("epochs"));
        }
        Ok(Epochs { starts })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epochs(starts: &[(i32, i64)]) -> Epochs {
        let mut epochs = Epochs::default();
        for (epoch, offset) in starts {
            assert!(epochs.observe(*epoch, *offset));
        }
        epochs
    }

    #[test]
    fn an_epoch_ends_where_the_next_one_starts() {
        let epochs = epochs(&[(1, 0), (3, 10), (7, 25)]);
        assert_eq!(epochs.end_of(1, 30), (1, 10));
        assert_eq!(epochs.end_of(2, 30), (1, 10));
        assert_eq!(epochs.end_of(5, 30), (3, 25));
        assert_eq!(epochs.end_of(7, 30), (7, 30));
        assert_eq!(epochs.end_of(8, 30), (-1, -1));
        assert_eq!(epochs.end_of(-1, 30), (-1, -1));
        assert_eq!(epochs.end_of(0, 30), (0, 0));
    }

    #[test]
    fn an_epoch_without_records_leaves_no_trace() {
        let epochs = epochs(&[(1, 0), (2, 5), (3, 5), (4, 9)]);
        assert_eq!(epochs.end_of(2, 9), (1, 5));
        assert_eq!(epochs.at(5), 3);
        assert_eq!(epochs.at(4), 1);
    }

    #[test]
    fn an_old_epoch_changes_nothing() {
        let mut epochs = epochs(&[(4, 0)]);
        assert!(!epochs.observe(4, 3));
        assert!(!epochs.observe(2, 3));
        assert_eq!(epochs.end_of(4, 3), (4, 3));
    }
}
