//! The table from API to handler: one line each.

use std::future::ready;
use std::sync::Arc;

use kafka_protocol::messages::ApiKey;

use super::groups::Client;
use super::{
    api, api_versions, cluster, configs, control, delete_records, fetch, group_admin,
    group_offsets, groups, metadata, offsets, produce, producer_ids, records, topics,
};
use crate::node::Broker;
use crate::server::{CloseConnection, Connection, Dispatch, Pending, Request, Served};

/// What requests mean on a broker.
pub struct Handlers(pub Arc<Broker>);

impl Dispatch for Handlers {
    fn dispatch(&self, connection: &Arc<Connection>, request: Request) -> Pending {
        dispatch(&self.0, connection, request)
    }

    fn served(&self, served: &Served) {
        self.0.requests.count(served);
    }
}

/// Begins a request. Produce has queued what it appends when this returns.
pub fn dispatch(broker: &Arc<Broker>, connection: &Arc<Connection>, request: Request) -> Pending {
    /// A handler that is given the broker and the connection.
    macro_rules! broker {
        ($handler:path) => {{
            let (broker, connection) = (broker.clone(), connection.clone());
            control(request, move |version, body| async move {
                $handler(&broker, &connection, version, body).await
            })
        }};
    }
    /// A handler that is given the consumer groups.
    macro_rules! groups {
        ($handler:path) => {{
            let broker = broker.clone();
            control(request, move |version, body| async move {
                $handler(&broker.groups, version, body).await
            })
        }};
    }
    /// A handler that is given the partitions.
    macro_rules! partitions {
        ($handler:path) => {{
            let partitions = broker.partitions.clone();
            control(request, move |version, body| async move {
                $handler(&partitions, version, body).await
            })
        }};
    }
    match api(&request.header).key {
        // Begun here and now, so that what is appended keeps its order.
        ApiKey::Produce => records::produce(request, |version, body| {
            produce::produce(&broker.partitions, version, body)
        }),
        ApiKey::Fetch => {
            let partitions = broker.partitions.clone();
            records::fetch(request, move |version, body| async move {
                fetch::fetch(&partitions, version, body).await
            })
        }
        ApiKey::ListOffsets => partitions!(offsets::list_offsets),
        ApiKey::OffsetForLeaderEpoch => partitions!(offsets::offset_for_leader_epoch),
        ApiKey::DeleteRecords => partitions!(delete_records::delete_records),
        ApiKey::InitProducerId => broker!(producer_ids::init_producer_id),

        ApiKey::ApiVersions => api_versions::api_versions(connection, request),
        ApiKey::Metadata => broker!(metadata::metadata),
        ApiKey::DescribeTopicPartitions => broker!(metadata::describe_topic_partitions),
        ApiKey::DescribeCluster => broker!(cluster::describe_cluster),
        ApiKey::DescribeLogDirs => broker!(cluster::describe_log_dirs),

        ApiKey::CreateTopics => broker!(topics::create_topics),
        ApiKey::DeleteTopics => broker!(topics::delete_topics),
        ApiKey::CreatePartitions => broker!(topics::create_partitions),
        ApiKey::DescribeConfigs => broker!(configs::describe_configs),
        ApiKey::AlterConfigs => broker!(configs::alter_configs),
        ApiKey::IncrementalAlterConfigs => broker!(configs::incremental_alter_configs),

        ApiKey::FindCoordinator => groups!(group_admin::find_coordinator),
        ApiKey::DescribeGroups => groups!(group_admin::describe_groups),
        ApiKey::ListGroups => groups!(group_admin::list_groups),
        ApiKey::DeleteGroups => groups!(group_admin::delete_groups),
        ApiKey::OffsetCommit => groups!(group_offsets::offset_commit),
        ApiKey::OffsetFetch => groups!(group_offsets::offset_fetch),
        ApiKey::OffsetDelete => groups!(group_offsets::offset_delete),
        ApiKey::SyncGroup => groups!(groups::sync_group),
        ApiKey::Heartbeat => groups!(groups::heartbeat),
        ApiKey::LeaveGroup => groups!(groups::leave_group),
        ApiKey::JoinGroup => {
            let id = request
                .header
                .client_id
                .as_deref()
                .unwrap_or_default()
                .to_owned();
            let client = Client {
                id,
                host: format!("/{}", connection.peer.ip()),
            };
            let broker = broker.clone();
            control(request, move |version, body| async move {
                groups::join_group(&broker.groups, client, version, body).await
            })
        }
        other => Box::pin(ready(Err(CloseConnection::because(format_args!(
            "no handler for {other:?}"
        ))))),
    }
}
