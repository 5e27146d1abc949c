//! Records that say who wrote them and whether they are whole.

/// Who wrote a record, and the how manyth of that producer it is, from 0.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub struct RecordId {
    /// Number of the producer.
    pub producer: u32,
    /// Ascends by one with each record of the producer, over all partitions.
    pub sequence: u64,
}

/// Bytes that every value has besides its filler.
pub const VALUE_BYTES_MIN: usize = 4 + 8 + 4;

/// The value of a record: its id, filler that follows from the id, and a CRC-32C of both.
pub fn encode(id: RecordId, bytes: usize) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes.max(VALUE_BYTES_MIN));
    value.extend(id.producer.to_be_bytes());
    value.extend(id.sequence.to_be_bytes());
    let mut state = (u64::from(id.producer) << 40) ^ id.sequence;
    while value.len() + 4 < bytes {
        // SplitMix64 (Steele, Lea, Flood 2014): no two values have much in common.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let word = (word ^ (word >> 31)).to_be_bytes();
        let left = (bytes - 4 - value.len()).min(word.len());
        value.extend(&word[..left]);
    }
    value.extend(crc32c::crc32c(&value).to_be_bytes());
    value
}

/// The id in a value, or what is wrong with it.
pub fn decode(value: &[u8]) -> Result<RecordId, String> {
    let Some((body, crc)) = value.split_last_chunk::<4>() else {
        return Err(format!("a value of {} bytes", value.len()));
    };
    let (Some((producer, rest)), true) = (
        body.split_first_chunk::<4>(),
        value.len() >= VALUE_BYTES_MIN,
    ) else {
        return Err(format!("a value of {} bytes", value.len()));
    };
    let (sequence, _) = rest.split_first_chunk::<8>().expect("long enough");
    let id = RecordId {
        producer: u32::from_be_bytes(*producer),
        sequence: u64::from_be_bytes(*sequence),
    };
    if u32::from_be_bytes(*crc) != crc32c::crc32c(body) || value != encode(id, value.len()) {
        return Err(format!(
            "a value of {} bytes whose checksum does not match",
            value.len()
        ));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_says_what_it_is_and_any_flipped_bit_shows() {
        for bytes in [0, 16, 17, 24, 100] {
            let id = RecordId {
                producer: 7,
                sequence: 1 << 33,
            };
            let value = encode(id, bytes);
            assert_eq!(value.len(), bytes.max(VALUE_BYTES_MIN));
            assert_eq!(decode(&value), Ok(id));
            for bit in 0..value.len() * 8 {
                let mut flipped = value.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(decode(&flipped).is_err(), "bit {bit}");
            }
            for length in 0..value.len() {
                assert!(decode(&value[..length]).is_err(), "{length} bytes");
            }
        }
    }
}
