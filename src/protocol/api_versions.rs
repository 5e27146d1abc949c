//! Which APIs are served in which versions: the one table that requests are
//! checked against and that ApiVersions advertises.

use kafka_protocol::messages::ApiKey;

/// A served API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Api {
    /// Which.
    pub key: ApiKey,
    /// The lowest version served.
    pub min: i16,
    /// The highest version served.
    pub max: i16,
    /// The first version with compact lengths and tagged fields.
    pub flexible_from: i16,
}

const fn api(key: ApiKey, min: i16, max: i16, flexible_from: i16) -> Api {
    Api {
        key,
        min,
        max,
        flexible_from,
    }
}

/// Every served API, by its number.
pub const APIS: &[Api] = &[
    api(ApiKey::Produce, 3, 13, 9),
    api(ApiKey::Fetch, 4, 18, 12),
    api(ApiKey::ListOffsets, 1, 10, 6),
    api(ApiKey::Metadata, 0, 13, 9),
    api(ApiKey::OffsetCommit, 2, 9, 8),
    api(ApiKey::OffsetFetch, 1, 9, 6),
    api(ApiKey::FindCoordinator, 0, 6, 3),
    api(ApiKey::JoinGroup, 0, 9, 6),
    api(ApiKey::Heartbeat, 0, 4, 4),
    api(ApiKey::LeaveGroup, 0, 5, 4),
    api(ApiKey::SyncGroup, 0, 5, 4),
    api(ApiKey::DescribeGroups, 0, 6, 5),
    api(ApiKey::ListGroups, 0, 5, 3),
    api(ApiKey::ApiVersions, 0, 4, 3),
    api(ApiKey::CreateTopics, 2, 7, 5),
    api(ApiKey::DeleteTopics, 1, 6, 4),
    api(ApiKey::DeleteRecords, 0, 2, 2),
    api(ApiKey::InitProducerId, 0, 5, 2),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4, 4),
    api(ApiKey::DescribeConfigs, 1, 4, 4),
    api(ApiKey::AlterConfigs, 0, 2, 2),
    api(ApiKey::DescribeLogDirs, 1, 4, 2),
    api(ApiKey::CreatePartitions, 0, 3, 2),
    api(ApiKey::DeleteGroups, 0, 2, 2),
    api(ApiKey::IncrementalAlterConfigs, 0, 1, 1),
    api(ApiKey::OffsetDelete, 0, 0, i16::MAX),
    api(ApiKey::DescribeCluster, 0, 2, 0),
    api(ApiKey::DescribeTopicPartitions, 0, 0, 0),
];

/// The served API of that number.
pub fn find(key: i16) -> Option<&'static Api> {
    APIS.iter().find(|api| api.key as i16 == key)
}

impl Api {
    /// Whether that version is served.
    pub fn serves(&self, version: i16) -> bool {
        (self.min..=self.max).contains(&version)
    }

    /// The lowest version advertised. Produce says 0 and serves 3: told 3,
    /// librdkafka 2.0 silently sends gzip, snappy and lz4 uncompressed.
    pub fn advertised_min(&self) -> i16 {
        if self.key == ApiKey::Produce {
            0
        } else {
            self.min
        }
    }

    /// Whether that version has compact lengths and tagged fields.
    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible_from
    }

    /// Whether a reply's header ends in tagged fields. ApiVersions' never does,
    /// so that a client that knows no versions yet can read it.
    pub fn has_flexible_reply_header(&self, version: i16) -> bool {
        self.is_flexible(version) && self.key != ApiKey::ApiVersions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_agrees_with_the_schemas_of_every_version() {
        for api in APIS {
            let schema = api.key.valid_versions();
            assert!(
                schema.min <= api.min && api.max <= schema.max,
                "{:?}",
                api.key
            );
            for version in api.min..=api.max {
                let flexible = api.key.request_header_version(version) == 2;
                assert_eq!(
                    api.is_flexible(version),
                    flexible,
                    "{:?} v{version}",
                    api.key
                );
                let reply = api.key.response_header_version(version) == 1;
                assert_eq!(
                    api.has_flexible_reply_header(version),
                    reply,
                    "{:?} v{version}",
                    api.key
                );
            }
        }
        assert!(APIS.is_sorted_by_key(|api| api.key as i16));
    }

    #[test]
    fn the_documents_list_every_served_version() {
        let document = include_str!("../../docs/PROTOCOL.md");
        for api in APIS {
            let row = format!(
                "| {:?} | {} | {}-{} |",
                api.key, api.key as i16, api.min, api.max
            );
            assert!(document.contains(&row), "docs/PROTOCOL.md lacks {row}");
        }
    }
}
