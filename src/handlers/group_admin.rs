//! FindCoordinator, DescribeGroups, ListGroups, DeleteGroups: finding and
//! looking after consumer groups.
//!
//! Only translates between the wire and [`crate::groups`]. Owns nothing.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    BrokerId, DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest,
    DescribeGroupsResponse, FindCoordinatorRequest, FindCoordinatorResponse, GroupId,
    ListGroupsRequest, ListGroupsResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::groups::{code, text};
use crate::groups::coordinator::Description;
use crate::groups::{CoordinatorAddress, Groups};

/// Key types of FindCoordinator.
const GROUP_KEY: i8 = 0;
const TRANSACTION_KEY: i8 = 1;
/// The type of groups that the classic protocol makes.
const CLASSIC: &str = "classic";

/// FindCoordinator, versions 0 to 6; from 4 on for several keys at once.
pub async fn find_coordinator(
    groups: &Groups,
    version: i16,
    request: FindCoordinatorRequest,
) -> FindCoordinatorResponse {
    let find = |key: &str| match request.key_type {
        GROUP_KEY => groups.find(key),
        // Where transactions will be coordinated; clients try again.
        TRANSACTION_KEY => Err(ResponseError::CoordinatorNotAvailable),
        _ => Err(ResponseError::InvalidRequest),
    };
    if version >= 4 {
        let keys = request.coordinator_keys.iter();
        let coordinators = keys.map(|key| {
            let found = find(key);
            let error_code = found.as_ref().map_or_else(|error| error.code(), |_| 0);
            let (broker, host, port) = address(found.ok());
            Coordinator::default()
                .with_key(key.clone())
                .with_node_id(broker)
                .with_host(host)
                .with_port(port)
                .with_error_code(error_code)
        });
        return FindCoordinatorResponse::default().with_coordinators(coordinators.collect());
    }
    let found = find(&request.key);
    let error_code = found.as_ref().map_or_else(|error| error.code(), |_| 0);
    let (broker, host, port) = address(found.ok());
    FindCoordinatorResponse::default()
        .with_node_id(broker)
        .with_host(host)
        .with_port(port)
        .with_error_code(error_code)
}

fn address(found: Option<CoordinatorAddress>) -> (BrokerId, StrBytes, i32) {
    match found {
        Some(at) => {
            let broker = i32::try_from(at.broker).unwrap_or(-1);
            (BrokerId(broker), text(at.host), i32::from(at.port))
        }
        None => (BrokerId(-1), StrBytes::default(), -1),
    }
}

/// DescribeGroups, versions 0 to 6.
pub async fn describe_groups(
    groups: &Groups,
    version: i16,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let describe = |id: GroupId| {
        let described = groups
            .coordinator(&id)
            .and_then(|coordinator| coordinator.describe(&id));
        let response = DescribedGroup::default().with_group_id(id);
        match described {
            Ok(Some(description)) => describe_group(response, description),
            Ok(None) if version >= 6 => response
                .with_error_code(ResponseError::GroupIdNotFound.code())
                .with_error_message(Some(StrBytes::from_static_str("no such group")))
                .with_group_state(StrBytes::from_static_str("Dead")),
            Ok(None) => response.with_group_state(StrBytes::from_static_str("Dead")),
            Err(error) => response.with_error_code(error.code()),
        }
    };
    DescribeGroupsResponse::default()
        .with_groups(request.groups.into_iter().map(describe).collect())
}

fn describe_group(response: DescribedGroup, description: Description) -> DescribedGroup {
    let stable = description.state == "Stable";
    let members = description.members.into_iter().map(|member| {
        let mut protocols = member.protocols.into_iter();
        let metadata = protocols
            .find(|(name, _)| stable && *name == description.protocol)
            .map(|(_, metadata)| metadata);
        DescribedGroupMember::default()
            .with_member_id(text(member.id))
            .with_group_instance_id(member.instance_id.map(text))
            .with_client_id(text(member.client_id))
            .with_client_host(text(member.client_host))
            .with_member_metadata(metadata.unwrap_or_default())
            .with_member_assignment(if stable {
                member.assignment
            } else {
                Default::default()
            })
    });
    response
        .with_members(members.collect())
        .with_group_state(StrBytes::from_static_str(description.state))
        .with_protocol_type(text(description.protocol_type))
        .with_protocol_data(text(if stable {
            description.protocol
        } else {
            String::new()
        }))
}

/// ListGroups, versions 0 to 5: the groups that this broker coordinates.
pub async fn list_groups(
    groups: &Groups,
    _version: i16,
    request: ListGroupsRequest,
) -> ListGroupsResponse {
    let allows = |filter: &[StrBytes], value: &str| {
        filter.is_empty()
            || filter
                .iter()
                .any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    if !allows(&request.types_filter, CLASSIC) {
        return ListGroupsResponse::default();
    }
    let mut listed = Vec::new();
    for coordinator in groups.coordinators() {
        let described = match coordinator.list() {
            Ok(described) => described,
            // Another broker lists those.
            Err(ResponseError::NotCoordinator) => continue,
            Err(error) => return ListGroupsResponse::default().with_error_code(error.code()),
        };
        for (id, description) in described {
            if allows(&request.states_filter, description.state) {
                listed.push(
                    ListedGroup::default()
                        .with_group_id(GroupId(text(id)))
                        .with_protocol_type(text(description.protocol_type))
                        .with_group_state(StrBytes::from_static_str(description.state))
                        .with_group_type(StrBytes::from_static_str(CLASSIC)),
                );
            }
        }
    }
    ListGroupsResponse::default().with_groups(listed)
}

/// DeleteGroups, versions 0 to 2: groups without members, and their offsets.
pub async fn delete_groups(
    groups: &Groups,
    _version: i16,
    request: DeleteGroupsRequest,
) -> DeleteGroupsResponse {
    let mut results = Vec::with_capacity(request.groups_names.len());
    for id in request.groups_names {
        let deleted = match groups.coordinator(&id) {
            Ok(coordinator) => coordinator.delete(&id).await,
            Err(error) => Err(error),
        };
        results.push(
            DeletableGroupResult::default()
                .with_group_id(id)
                .with_error_code(code(deleted)),
        );
    }
    DeleteGroupsResponse::default().with_results(results)
}
