//! Which of the fetched batches are part of aborted transactions. A broker sends
//! them to readers of committed records too, with a list of those transactions:
//! each begins at an offset and ends with its producer's next abort marker.

use std::collections::HashSet;

use kafka_protocol::messages::fetch_response::AbortedTransaction;

use super::batch::Batch;

/// Takes the batches of aborted transactions out of what one answer has of a partition.
pub(super) fn leave_out_aborted(batches: &mut Vec<Batch>, mut aborted: Vec<AbortedTransaction>) {
    // The next one to begin is the last one here.
    aborted.sort_by_key(|it| std::cmp::Reverse(it.first_offset));
    // Producers in an aborted transaction.
    let mut open = HashSet::new();
    batches.retain(|batch| {
        while let Some(next) = aborted.pop_if(|it| it.first_offset <= batch.last_offset) {
            open.insert(*next.producer_id);
        }
        if batch.is_control() {
            if batch.is_abort_marker() {
                open.remove(&batch.producer_id);
            }
            return true;
        }
        !(batch.is_transactional() && open.contains(&batch.producer_id))
    });
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use kafka_protocol::messages::ProducerId;

    use super::*;
    use crate::client::batch::{BatchBuilder, Compression, batches};

    const COMMIT: i16 = 1;
    const ABORT: i16 = 0;

    enum Wrote {
        /// Two records in a transaction,
        Records,
        /// two that are in none,
        Plain,
        /// a marker.
        Marker(i16),
    }
    use Wrote::*;

    /// A log of batches, each from a producer.
    fn log(wrote: &[(i64, Wrote)]) -> Vec<Batch> {
        let mut bytes = BytesMut::new();
        let mut offset = 0i64;
        for (producer, wrote) in wrote {
            let mut builder = BatchBuilder::with_capacity(0);
            match wrote {
                Marker(says) => {
                    let key = [[0, 0], says.to_be_bytes()].concat();
                    builder.push(0, Some(&key), Some(&[0; 6]));
                }
                _ => (0..2).for_each(|_| builder.push(0, None, Some(b"record"))),
            }
            let records = i64::from(builder.records());
            if !matches!(wrote, Plain) {
                builder.set_transactional();
            }
            if matches!(wrote, Marker(_)) {
                builder.set_control();
            }
            let batch = builder.finish(Compression::None, *producer, 0, 0).unwrap();
            let mut batch = BytesMut::from(&batch[..]);
            batch[..8].copy_from_slice(&offset.to_be_bytes());
            bytes.extend(batch);
            offset += records;
        }
        batches(bytes.freeze()).unwrap()
    }

    fn aborted(all: &[(i64, i64)]) -> Vec<AbortedTransaction> {
        let all = all.iter().map(|(producer, first_offset)| {
            AbortedTransaction::default()
                .with_producer_id(ProducerId(*producer))
                .with_first_offset(*first_offset)
        });
        all.collect()
    }

    /// Offsets of the batches that are left, markers aside.
    fn left(mut batches: Vec<Batch>, listed: &[(i64, i64)]) -> Vec<i64> {
        leave_out_aborted(&mut batches, aborted(listed));
        let records = batches.iter().filter(|it| !it.is_control());
        records.map(|it| it.base_offset).collect()
    }

    #[test]
    fn an_aborted_transaction_is_left_out_up_to_its_marker_and_no_other() {
        let wrote = [
            (1, Records),        // 0: committed
            (2, Records),        // 2: aborted
            (1, Marker(COMMIT)), // 4
            (2, Plain),          // 5: in no transaction
            (2, Records),        // 7
            (1, Records),        // 9: aborted
            (2, Marker(ABORT)),  // 11
            (2, Records),        // 12: committed
            (1, Marker(ABORT)),  // 14
            (2, Marker(COMMIT)), // 15
            (1, Records),        // 16: committed
        ];
        let listed = [(1, 9), (2, 2)];
        assert_eq!(left(log(&wrote), &listed), [0, 5, 12, 16]);
        assert_eq!(left(log(&wrote), &[]), [0, 2, 5, 7, 9, 12, 16]);
    }

    #[test]
    fn a_transaction_that_began_before_the_fetch_is_left_out_too() {
        let wrote = [
            (1, Records),
            (1, Marker(ABORT)),
            (1, Records),
            (1, Marker(ABORT)),
        ];
        let listed = [(1, 0), (1, 3)];
        assert_eq!(left(log(&wrote), &listed), [0i64; 0]);
        // The first batch of the fetch is in the middle of the first transaction.
        assert_eq!(left(log(&wrote).split_off(1), &listed), [0i64; 0]);
        // A transaction that begins after all that was fetched concerns none of it.
        assert_eq!(left(log(&wrote), &[(1, 6)]), [0, 3]);
    }

    #[test]
    fn a_marker_reads_as_what_it_is() {
        let read = log(&[(1, Marker(COMMIT)), (1, Marker(ABORT)), (1, Records)]);
        let said: Vec<_> = read
            .iter()
            .map(|it| (it.is_control(), it.is_transactional(), it.is_abort_marker()))
            .collect();
        assert_eq!(
            said,
            [
                (true, true, false),
                (true, true, true),
                (false, true, false)
            ]
        );
        assert_eq!(read[0].producer_id, 1);
    }
}
