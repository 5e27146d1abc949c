//! Whatever the body of a request is, decoding it comes to a verdict, and sets
//! no memory aside for what the body only claims to hold.

use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::messages::*;
use proptest::prelude::*;

use super::decode;
use crate::corpus::{config, edited, edits, noise};
use crate::protocol::api_versions::{APIS, Api};
use crate::protocol::codec_tests::{fetch_body, produce_body};
use crate::protocol::fetch::FetchRequest;
use crate::protocol::guard;
use crate::protocol::produce::ProduceRequest;
use crate::server::{Request, RequestHeader};

/// All edited requests of all versions together may take so long; a count that
/// is believed once costs more.
const ALL_LENGTHS_MAX: Duration = Duration::from_secs(15);

/// Decodes a body as its handler does; whether it is let pass.
fn judge(api: &Api, api_version: i16, body: Bytes) -> bool {
    macro_rules! decoded {
        ($($key:ident => $request:ty,)+) => {
            match api.key {
                ApiKey::Produce => ProduceRequest::decode(&body, api_version).is_ok(),
                ApiKey::Fetch => FetchRequest::decode(&body, api_version).is_ok(),
                $(ApiKey::$key => {
                    let header = RequestHeader {
                        api_key: api.key as i16,
                        api_version,
                        correlation_id: 1,
                        client_id: None,
                    };
                    decode::<$request>(&Request { header, body }).is_ok()
                })+
                other => panic!("{other:?} is served and not tried here"),
            }
        };
    }
    decoded! {
        ListOffsets => ListOffsetsRequest,
        Metadata => MetadataRequest,
        OffsetCommit => OffsetCommitRequest,
        OffsetFetch => OffsetFetchRequest,
        FindCoordinator => FindCoordinatorRequest,
        JoinGroup => JoinGroupRequest,
        Heartbeat => HeartbeatRequest,
        LeaveGroup => LeaveGroupRequest,
        SyncGroup => SyncGroupRequest,
        DescribeGroups => DescribeGroupsRequest,
        ListGroups => ListGroupsRequest,
        ApiVersions => ApiVersionsRequest,
        CreateTopics => CreateTopicsRequest,
        DeleteTopics => DeleteTopicsRequest,
        DeleteRecords => DeleteRecordsRequest,
        InitProducerId => InitProducerIdRequest,
        OffsetForLeaderEpoch => OffsetForLeaderEpochRequest,
        DescribeConfigs => DescribeConfigsRequest,
        AlterConfigs => AlterConfigsRequest,
        DescribeLogDirs => DescribeLogDirsRequest,
        CreatePartitions => CreatePartitionsRequest,
        DeleteGroups => DeleteGroupsRequest,
        IncrementalAlterConfigs => IncrementalAlterConfigsRequest,
        OffsetDelete => OffsetDeleteRequest,
        DescribeCluster => DescribeClusterRequest,
        DescribeTopicPartitions => DescribeTopicPartitionsRequest,
    }
}

/// Every version of every API that is served.
fn served() -> impl Iterator<Item = (&'static Api, i16)> {
    let versions = |api: &'static Api| (api.min..=api.max).map(move |version| (api, version));
    APIS.iter().flat_map(versions)
}

fn good(api: &Api, version: i16, seed: u64) -> Bytes {
    match api.key {
        ApiKey::Produce => produce_body(version),
        ApiKey::Fetch => fetch_body(version),
        _ => guard::tests::make(api, version, seed),
    }
}

#[test]
fn what_is_edited_below_is_good_as_it_is() {
    for (api, version) in served() {
        let body = good(api, version, 3);
        assert!(judge(api, version, body), "{:?} v{version}", api.key);
    }
}

/// kafka-protocol sets memory aside by the count of an array as it is sent, and
/// 2^31 elements end the process. So [`guard`] looks at every count first.
#[test]
fn no_length_that_is_only_claimed_is_believed_wherever_it_stands() {
    let begun = Instant::now();
    let huge: [&[u8]; 3] = [
        &[0x7f, 0xff, 0xff, 0xff],
        &[0xff, 0xff, 0xff, 0xff, 0x07],
        &[0xff, 0xff, 0xff, 0x7f],
    ];
    for (api, version) in served() {
        for seed in 0..4 {
            let body = good(api, version, seed);
            for at in 0..body.len().min(160) {
                for claim in huge {
                    let end = body.len().min(at + claim.len());
                    judge(
                        api,
                        version,
                        [&body[..at], claim, &body[end..]].concat().into(),
                    );
                }
            }
        }
    }
    assert!(begun.elapsed() < ALL_LENGTHS_MAX, "{:?}", begun.elapsed());
}

#[test]
fn every_beginning_of_a_request_is_judged_without_panic() {
    for (api, version) in served() {
        let body = good(api, version, 5);
        for end in 0..body.len() {
            judge(api, version, body.slice(..end));
        }
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn edited_requests_are_judged_without_panic(seed: u64, edits in edits()) {
        for (api, version) in served() {
            judge(api, version, edited(&good(api, version, seed), &edits).into());
        }
    }

    #[test]
    fn requests_of_noise_are_judged_without_panic(body in noise(120)) {
        let body = Bytes::from(body);
        for (api, version) in served() {
            judge(api, version, body.clone());
        }
    }
}
