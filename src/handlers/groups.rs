//! JoinGroup, SyncGroup, Heartbeat, LeaveGroup: what members of a consumer group say.
//!
//! Only translates between the wire and [`crate::groups`]. Owns nothing.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::{
    HeartbeatRequest, HeartbeatResponse, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest,
    LeaveGroupResponse, SyncGroupRequest, SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use crate::groups::Groups;
use crate::groups::membership::{Identity, Join, JoinRefused, Joined, Sync};

/// Who sends a request, as tools will show it.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Client id of the request's header.
    pub id: String,
    /// Address of its connection, in Kafka's form `/127.0.0.1`.
    pub host: String,
}

/// JoinGroup, versions 0 to 9. Waits for the rebalance.
pub async fn join_group(
    groups: &Groups,
    client: Client,
    version: i16,
    request: JoinGroupRequest,
) -> JoinGroupResponse {
    let member_id = request.member_id.to_string();
    let joined = match check_join(groups, &request) {
        Ok(()) => join(groups, client, version, request).await,
        Err(error) => Err(JoinRefused { error, member_id }),
    };
    match joined {
        Ok(joined) => JoinGroupResponse::default()
            .with_generation_id(joined.generation)
            .with_protocol_type(Some(text(joined.protocol_type)))
            .with_protocol_name(Some(text(joined.protocol)))
            .with_leader(text(joined.leader))
            .with_skip_assignment(joined.skip_assignment)
            .with_member_id(text(joined.member_id))
            .with_members(
                joined
                    .members
                    .into_iter()
                    .map(|member| {
                        JoinGroupResponseMember::default()
                            .with_member_id(text(member.member_id))
                            .with_group_instance_id(member.instance_id.map(text))
                            .with_metadata(member.metadata)
                    })
                    .collect(),
            ),
        Err(refused) => JoinGroupResponse::default()
            .with_error_code(refused.error.code())
            .with_generation_id(-1)
            // Null only where the schema allows it.
            .with_protocol_name((version < 7).then(StrBytes::default))
            .with_member_id(text(refused.member_id)),
    }
}

fn check_join(groups: &Groups, request: &JoinGroupRequest) -> Result<(), ResponseError> {
    let config = groups.config();
    let sessions = config.session_timeout_ms_min..=config.session_timeout_ms_max;
    if request.group_id.is_empty() {
        Err(ResponseError::InvalidGroupId)
    } else if !sessions.contains(&request.session_timeout_ms) {
        Err(ResponseError::InvalidSessionTimeout)
    } else {
        Ok(())
    }
}

async fn join(
    groups: &Groups,
    client: Client,
    version: i16,
    request: JoinGroupRequest,
) -> Result<Joined, JoinRefused> {
    let instance_id = request.group_instance_id.as_ref().map(|id| id.to_string());
    let prefix = instance_id.as_deref().unwrap_or(&client.id);
    let fresh_id = format!("{prefix}-{}", Uuid::new_v4());
    let rebalance_timeout_ms = match version {
        0 => request.session_timeout_ms,
        _ => request.rebalance_timeout_ms,
    };
    let protocols = request.protocols.into_iter();
    let join = Join {
        identity: Identity {
            member_id: request.member_id.to_string(),
            instance_id,
        },
        fresh_id,
        client_id: client.id,
        client_host: client.host,
        session_timeout_ms: request.session_timeout_ms,
        rebalance_timeout_ms,
        protocol_type: request.protocol_type.to_string(),
        protocols: protocols
            .map(|protocol| (protocol.name.to_string(), protocol.metadata))
            .collect(),
        knows_member_id_required: version >= 4,
        knows_skip_assignment: version >= 9,
    };
    match groups.coordinator(&request.group_id) {
        Ok(coordinator) => coordinator.join(&request.group_id, join).await,
        Err(error) => Err(JoinRefused {
            error,
            member_id: join.identity.member_id,
        }),
    }
}

/// SyncGroup, versions 0 to 5. Waits for the leader's assignment.
pub async fn sync_group(
    groups: &Groups,
    _version: i16,
    request: SyncGroupRequest,
) -> SyncGroupResponse {
    let sync = Sync {
        identity: identity(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id,
        protocol_type: request.protocol_type.map(|said| said.to_string()),
        protocol: request.protocol_name.map(|said| said.to_string()),
        assignments: request
            .assignments
            .into_iter()
            .map(|assignment| (assignment.member_id.to_string(), assignment.assignment))
            .collect(),
    };
    let synced = match groups.coordinator(&request.group_id) {
        Ok(coordinator) => coordinator.sync(&request.group_id, sync).await,
        Err(error) => Err(error),
    };
    match synced {
        Ok(synced) => SyncGroupResponse::default()
            .with_protocol_type(Some(text(synced.protocol_type)))
            .with_protocol_name(Some(text(synced.protocol)))
            .with_assignment(synced.assignment),
        Err(error) => SyncGroupResponse::default().with_error_code(error.code()),
    }
}

/// Heartbeat, versions 0 to 4.
pub async fn heartbeat(
    groups: &Groups,
    _version: i16,
    request: HeartbeatRequest,
) -> HeartbeatResponse {
    let member = identity(&request.member_id, request.group_instance_id.as_ref());
    let alive = groups
        .coordinator(&request.group_id)
        .and_then(|coordinator| {
            coordinator.heartbeat(&request.group_id, &member, request.generation_id)
        });
    HeartbeatResponse::default().with_error_code(code(alive))
}

/// LeaveGroup, versions 0 to 5; from 3 on for several members at once.
pub async fn leave_group(
    groups: &Groups,
    version: i16,
    request: LeaveGroupRequest,
) -> LeaveGroupResponse {
    let members: Vec<Identity> = match version {
        ..=2 => vec![identity(&request.member_id, None)],
        _ => request
            .members
            .iter()
            .map(|member| identity(&member.member_id, member.group_instance_id.as_ref()))
            .collect(),
    };
    let left = groups
        .coordinator(&request.group_id)
        .and_then(|coordinator| coordinator.leave(&request.group_id, &members));
    let results = match left {
        Ok(results) => results,
        Err(error) => return LeaveGroupResponse::default().with_error_code(error.code()),
    };
    if version <= 2 {
        let only = results
            .into_iter()
            .next()
            .unwrap_or(Err(ResponseError::UnknownMemberId));
        return LeaveGroupResponse::default().with_error_code(code(only));
    }
    let members = members.into_iter().zip(results).map(|(member, result)| {
        MemberResponse::default()
            .with_member_id(text(result.as_ref().cloned().unwrap_or(member.member_id)))
            .with_group_instance_id(member.instance_id.map(text))
            .with_error_code(code(result))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

pub(super) fn identity(member_id: &StrBytes, instance_id: Option<&StrBytes>) -> Identity {
    Identity {
        member_id: member_id.to_string(),
        instance_id: instance_id.map(|id| id.to_string()),
    }
}

pub(super) fn text(text: String) -> StrBytes {
    StrBytes::from_string(text)
}

pub(super) fn code<T>(result: Result<T, ResponseError>) -> i16 {
    result.map_or_else(|error| error.code(), |_| 0)
}
