//! The guard's tables against kafka-protocol's decoders: requests are made up
//! from the tables, and the decoders must read exactly what was made up.

use bytes::{BufMut, BytesMut};
use kafka_protocol::messages::*;
use kafka_protocol::protocol::{Decodable, Encodable};
use proptest::prelude::*;

use super::super::api_versions::{APIS, find};
use super::*;

/// Decodes and encodes again; an error when that fails or leaves bytes over.
fn again<T: Decodable + Encodable>(mut body: Bytes, version: i16) -> Result<Bytes, String> {
    let message = T::decode(&mut body, version).map_err(|error| error.to_string())?;
    if !body.is_empty() {
        return Err(format!("{} bytes left over", body.len()));
    }
    let mut buffer = BytesMut::new();
    message
        .encode(&mut buffer, version)
        .map_err(|error| error.to_string())?;
    Ok(buffer.freeze())
}

fn decode_again(key: ApiKey, body: Bytes, version: i16) -> Result<Bytes, String> {
    match key {
        ApiKey::ListOffsets => again::<ListOffsetsRequest>(body, version),
        ApiKey::Metadata => again::<MetadataRequest>(body, version),
        ApiKey::OffsetCommit => again::<OffsetCommitRequest>(body, version),
        ApiKey::OffsetFetch => again::<OffsetFetchRequest>(body, version),
        ApiKey::FindCoordinator => again::<FindCoordinatorRequest>(body, version),
        ApiKey::JoinGroup => again::<JoinGroupRequest>(body, version),
        ApiKey::Heartbeat => again::<HeartbeatRequest>(body, version),
        ApiKey::LeaveGroup => again::<LeaveGroupRequest>(body, version),
        ApiKey::SyncGroup => again::<SyncGroupRequest>(body, version),
        ApiKey::DescribeGroups => again::<DescribeGroupsRequest>(body, version),
        ApiKey::ListGroups => again::<ListGroupsRequest>(body, version),
        ApiKey::ApiVersions => again::<ApiVersionsRequest>(body, version),
        ApiKey::CreateTopics => again::<CreateTopicsRequest>(body, version),
        ApiKey::DeleteTopics => again::<DeleteTopicsRequest>(body, version),
        ApiKey::DeleteRecords => again::<DeleteRecordsRequest>(body, version),
        ApiKey::InitProducerId => again::<InitProducerIdRequest>(body, version),
        ApiKey::OffsetForLeaderEpoch => again::<OffsetForLeaderEpochRequest>(body, version),
        ApiKey::DescribeConfigs => again::<DescribeConfigsRequest>(body, version),
        ApiKey::AlterConfigs => again::<AlterConfigsRequest>(body, version),
        ApiKey::DescribeLogDirs => again::<DescribeLogDirsRequest>(body, version),
        ApiKey::CreatePartitions => again::<CreatePartitionsRequest>(body, version),
        ApiKey::DeleteGroups => again::<DeleteGroupsRequest>(body, version),
        ApiKey::IncrementalAlterConfigs => again::<IncrementalAlterConfigsRequest>(body, version),
        ApiKey::OffsetDelete => again::<OffsetDeleteRequest>(body, version),
        ApiKey::DescribeCluster => again::<DescribeClusterRequest>(body, version),
        ApiKey::DescribeTopicPartitions => again::<DescribeTopicPartitionsRequest>(body, version),
        other => panic!("{other:?} is not in this test"),
    }
}

/// Makes requests up; every choice comes from `seed`.
struct Maker {
    seed: u64,
    flexible: bool,
    version: i16,
    body: BytesMut,
}

impl Maker {
    fn next(&mut self, below: u64) -> u64 {
        self.seed = self
            .seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.seed >> 33) % below
    }

    fn length(&mut self, short: bool) -> u64 {
        let length = self.next(4);
        match (self.flexible, short) {
            (true, _) => self.body.put_u8(length as u8 + 1),
            (false, true) => self.body.put_i16(length as i16),
            (false, false) => self.body.put_i32(length as i32),
        }
        length
    }

    fn text(&mut self, short: bool) {
        let length = self.length(short);
        self.body.put_bytes(b'a', length as usize);
    }

    fn structure(&mut self, fields: &[Field]) {
        let version = self.version;
        for field in fields
            .iter()
            .filter(|field| (field.from..=field.to).contains(&version))
        {
            self.field(field);
        }
        if self.flexible {
            let tags = self.next(3) as u8;
            self.body.put_u8(tags);
            for tag in 0..tags {
                self.body.put_slice(&[100 + tag, 2, 0xaa, 0xbb]);
            }
        }
    }

    fn field(&mut self, field: &Field) {
        match field.kind {
            // 0 and 1 are booleans too.
            Kind::Fixed(bytes) => {
                self.body.put_bytes(0, bytes - 1);
                let last = self.next(2) as u8;
                self.body.put_u8(last);
            }
            Kind::String | Kind::Name => self.text(true),
            Kind::Bytes => self.text(false),
            Kind::Scalars(element) => (0..self.length(false)).for_each(|_| self.field(element)),
            Kind::Array(element) => (0..self.length(false)).for_each(|_| self.structure(element)),
            Kind::Optional(element) => {
                let there = self.next(2);
                self.body.put_i8(if there == 1 { 1 } else { -1 });
                if there == 1 {
                    self.structure(element);
                }
            }
        }
    }
}

/// A request of that API and version, made up from its table.
pub(crate) fn make(api: &Api, version: i16, seed: u64) -> Bytes {
    let fields = fields(api.key).unwrap();
    let mut maker = Maker {
        seed,
        flexible: api.is_flexible(version),
        version,
        body: BytesMut::new(),
    };
    maker.structure(fields);
    maker.body.freeze()
}

fn guarded() -> impl Iterator<Item = (&'static Api, i16)> {
    let apis = APIS.iter().filter(|api| knows(api.key));
    apis.flat_map(|api| (api.min..=api.max).map(move |version| (api, version)))
}

#[test]
fn every_control_api_has_a_table() {
    for api in APIS {
        assert_ne!(
            knows(api.key),
            matches!(api.key, ApiKey::Produce | ApiKey::Fetch),
            "{:?}",
            api.key
        );
    }
}

#[test]
fn a_huge_count_is_refused_before_it_is_decoded() {
    let metadata = find(ApiKey::Metadata as i16).unwrap();
    let body = Bytes::from_static(&[0x7f, 0xff, 0xff, 0xff, 0, 1]);
    assert_eq!(check(metadata, 1, &body), Err(Malformed::Truncated));
    let body = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 1]);
    assert_eq!(check(metadata, 12, &body), Err(Malformed::Truncated));
}

#[test]
fn more_elements_than_the_bound_are_refused() {
    let groups = find(ApiKey::DeleteGroups as i16).unwrap();
    let count = crate::limits::REQUEST_ELEMENTS_MAX + 1;
    let mut body = BytesMut::new();
    body.put_i32(count as i32);
    body.put_bytes(0, 2 * count);
    assert_eq!(
        check(groups, 1, &body.freeze()),
        Err(Malformed::TooManyElements)
    );
}

#[test]
fn null_is_let_pass_for_the_decoder_to_judge() {
    let metadata = find(ApiKey::Metadata as i16).unwrap();
    assert_eq!(check(metadata, 1, &Bytes::from_static(&[0xff; 4])), Ok(()));
}

proptest! {
    #[test]
    fn the_tables_are_the_decoders_own(seed: u64) {
        for (api, version) in guarded() {
            let body = make(api, version, seed);
            prop_assert_eq!(check(api, version, &body), Ok(()), "{:?} v{}", api.key, version);
            let again = decode_again(api.key, body.clone(), version);
            prop_assert_eq!(again, Ok(body), "{:?} v{}", api.key, version);
        }
    }

    #[test]
    fn what_the_guard_lets_pass_decodes_without_abort_or_panic(
        seed: u64, at: prop::sample::Index, bytes in prop::collection::vec(any::<u8>(), 1..5)
    ) {
        for (api, version) in guarded() {
            let mut body = BytesMut::from(&make(api, version, seed)[..]);
            if body.is_empty() {
                continue;
            }
            let at = at.index(body.len());
            let end = body.len().min(at + bytes.len());
            body[at..end].copy_from_slice(&bytes[..end - at]);
            let body = body.freeze();
            if check(api, version, &body).is_ok() {
                // Its verdict does not matter; that it comes to one does.
                drop(decode_again(api.key, body, version));
            }
        }
    }
}
