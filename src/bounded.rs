//! bincode whose lengths are not believed.
//!
//! The crate sets a string's memory aside by the length that the bytes claim,
//! before it looks whether they are there: nine bytes can ask for any size. A
//! limit stops that, but it is fixed when the program is compiled, and the
//! records here may be of any size. So the limit is chosen by the size at hand.

use bincode::config::standard;
use bincode::error::DecodeError;
use bincode::serde::decode_from_slice;
use serde::de::DeserializeOwned;

const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
/// A number that takes one byte counts for up to 16 against the limit.
const COUNTED_PER_BYTE_MAX: usize = 16;

/// Decodes a record at the start of `bytes`, and says how many bytes it takes.
/// No more than 1 MiB, or 512 times the bytes, is set aside for what is not there.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
    let counted_max = bytes.len().saturating_mul(COUNTED_PER_BYTE_MAX);
    if counted_max <= MIB {
        decode_from_slice(bytes, standard().with_limit::<MIB>())
    } else if counted_max <= 32 * MIB {
        decode_from_slice(bytes, standard().with_limit::<{ 32 * MIB }>())
    } else if counted_max <= GIB {
        decode_from_slice(bytes, standard().with_limit::<GIB>())
    } else {
        decode_from_slice(bytes, standard().with_limit::<{ 32 * GIB }>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(value: &(Vec<u8>, String)) -> Vec<u8> {
        bincode::serde::encode_to_vec(value, standard()).unwrap()
    }

    #[test]
    fn records_of_every_size_are_decoded() {
        for length in [0, 1, 65_535, 65_536, 70_000, 3 << 20] {
            let value = (vec![200; length], "x".repeat(length));
            let bytes = encoded(&value);
            let decoded: (Vec<u8>, String) = decode(&bytes).unwrap().0;
            assert!(decoded == value, "of twice {length} bytes");
        }
    }

    #[test]
    fn small_numbers_count_for_more_than_their_bytes_and_still_fit() {
        let value: Vec<u128> = vec![1; 66_000];
        let bytes = bincode::serde::encode_to_vec(&value, standard()).unwrap();
        assert_eq!(decode::<Vec<u128>>(&bytes).unwrap(), (value, bytes.len()));
    }

    #[test]
    fn a_length_that_is_only_claimed_is_refused() {
        for length in [1u64 << 22, 1 << 40, 1 << 63, u64::MAX] {
            let bytes = [&[0xfd][..], &length.to_le_bytes()].concat();
            for _ in 0..1_000 {
                assert!(decode::<String>(&bytes).is_err());
                assert!(decode::<Vec<String>>(&bytes).is_err());
            }
        }
    }
}
