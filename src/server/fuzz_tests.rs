//! Whatever a client sends, its bytes are cut into frames or refused.

use std::time::Duration;

use proptest::prelude::*;

use super::budget::Budget;
use super::frame::{FrameError, FrameReader};
use super::pace::Pace;
use crate::corpus::{config, edited, edits, noise};
use crate::protocol::header;

const FRAME_BYTES_MAX: usize = 1 << 20;

/// Reads frames and their headers until the bytes end or are none; how many
/// frames there were, and why there was no other.
fn read_all(bytes: &[u8], bytes_max: usize) -> (usize, FrameError) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_time().build().expect("a runtime");
    let budget = Budget::of(bytes_max);
    let mut frames = FrameReader::new(bytes, budget, bytes_max, Pace::default());
    let mut count = 0;
    loop {
        match runtime.block_on(frames.next(Duration::from_secs(10))) {
            Ok(frame) => {
                header::decode(&frame.bytes).ok();
                count += 1;
            }
            Err(error) => return (count, error),
        }
    }
}

/// Requests of several sizes, one after the other.
fn good() -> Vec<u8> {
    let request = |length: usize| {
        let header = [0, 3, 0, 9, 0, 0, 0, 1, 0, 2, b'm', b'e', 0];
        let body = [&header[..], &vec![7; length]].concat();
        [&(body.len() as u32).to_be_bytes()[..], &body].concat()
    };
    [0, 1, 200, 5_000, 40_000].map(request).concat()
}

#[test]
fn what_is_edited_below_is_good_as_it_is() {
    let (frames, end) = read_all(&good(), FRAME_BYTES_MAX);
    assert!(frames == 5 && matches!(end, FrameError::Closed), "{end:?}");
}

/// What is only announced is neither allocated nor charged: the budget would
/// not suffice for two of these, and memory not for all of them.
#[test]
fn a_length_that_is_only_announced_costs_nothing() {
    let bytes_max = i32::MAX as usize;
    for length in [i32::MAX, i32::MAX - 1, 1 << 30] {
        for _ in 0..300 {
            let (frames, end) = read_all(&length.to_be_bytes(), bytes_max);
            assert!(
                frames == 0 && matches!(end, FrameError::Truncated),
                "{end:?}"
            );
        }
    }
}

proptest! {
    #![proptest_config(config(2_000))]

    #[test]
    fn noise_is_read_without_panic(bytes in noise(300)) {
        read_all(&bytes, FRAME_BYTES_MAX);
        // Behind a small length, so that the frame is whole and its header is looked at.
        let length = (bytes.len() as u32).to_be_bytes();
        let (frames, _) = read_all(&[&length, &bytes[..]].concat(), FRAME_BYTES_MAX);
        prop_assert_eq!(frames, 1);
    }

    #[test]
    fn edited_streams_are_read_without_panic(edits in edits()) {
        read_all(&edited(&good(), &edits), FRAME_BYTES_MAX);
    }
}
