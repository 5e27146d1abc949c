//! Stories of one group, told with made-up times.

use std::collections::BTreeMap;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    initial_rebalance_delay_ms: 0,
    members_max: 10,
    bytes_max: 1000,
};
const SESSION: Millis = 10_000;

/// A group, its clock, and every answer so far.
struct Story {
    group: Membership,
    now: Millis,
    last_token: Token,
    answers: BTreeMap<Token, Answer>,
    stores: Vec<(GroupRecord, Then)>,
    /// The newest record that was stored: what a new leader starts from.
    stored: GroupRecord,
}

fn request(id: &str) -> Join {
    Join {
        identity: Identity {
            member_id: id.into(),
            instance_id: None,
        },
        fresh_id: format!("fresh-{id}"),
        session_timeout_ms: SESSION as i32,
        rebalance_timeout_ms: 30_000,
        protocol_type: "consumer".into(),
        protocols: vec![("range".into(), Bytes::from_static(b"topics"))],
        ..Join::default()
    }
}

fn static_request(instance: &str, fresh: &str) -> Join {
    let identity = Identity {
        member_id: String::new(),
        instance_id: Some(instance.into()),
    };
    Join {
        identity,
        fresh_id: fresh.into(),
        knows_skip_assignment: true,
        ..request("")
    }
}

fn member(id: &str) -> Identity {
    Identity {
        member_id: id.into(),
        instance_id: None,
    }
}

impl Story {
    fn new() -> Story {
        Story::from(LIMITS, GroupRecord::default())
    }

    fn from(limits: Limits, stored: GroupRecord) -> Story {
        Story {
            group: Membership::restore(limits, &stored, 0),
            now: 0,
            last_token: 0,
            answers: BTreeMap::new(),
            stores: Vec::new(),
            stored,
        }
    }

    fn collect(&mut self) {
        for effect in self.group.take_effects() {
            match effect {
                Effect::Answer(token, answer) => {
                    assert!(
                        self.answers.insert(token, answer).is_none(),
                        "answered twice"
                    );
                }
                Effect::Store(record, then) => self.stores.push((record, then)),
            }
        }
    }

    /// The log takes everything that is on its way.
    fn store_all(&mut self) {
        while !self.stores.is_empty() {
            let (record, then) = self.stores.remove(0);
            self.stored = record;
            self.group.stored(then, Ok(()), self.now);
            self.collect();
        }
    }

    fn join(&mut self, request: Join) -> Token {
        self.last_token += 1;
        self.group.join(request, self.last_token, self.now);
        self.collect();
        self.last_token
    }

    fn sync(&mut self, id: &str, generation: i32, assignments: &[(&str, &'static str)]) -> Token {
        self.last_token += 1;
        let assignments = assignments
            .iter()
            .map(|(id, bytes)| (id.to_string(), (*bytes).into()));
        let sync = Sync {
            identity: member(id),
            generation,
            assignments: assignments.collect(),
            ..Sync::default()
        };
        self.group.sync(sync, self.last_token, self.now);
        self.collect();
        self.last_token
    }

    fn wait(&mut self, ms: Millis) {
        self.now += ms;
        self.group.tick(self.now);
        self.collect();
    }

    fn heartbeat(&mut self, id: &str, generation: i32) -> Result<(), ResponseError> {
        self.group.heartbeat(&member(id), generation, self.now)
    }

    fn leave(&mut self, id: &str) {
        self.group.leave(&member(id), self.now).unwrap();
        self.collect();
    }

    fn joined(&self, token: Token) -> Joined {
        match self.answers.get(&token) {
            Some(Answer::Join(Ok(joined))) => joined.clone(),
            other => panic!("not joined: {other:?}"),
        }
    }

    fn refused(&self, token: Token) -> JoinRefused {
        match self.answers.get(&token) {
            Some(Answer::Join(Err(refused))) => refused.clone(),
            other => panic!("not refused: {other:?}"),
        }
    }

    fn synced(&self, token: Token) -> Result<Bytes, ResponseError> {
        match self.answers.get(&token) {
            Some(Answer::Sync(answer)) => answer.clone().map(|synced| synced.assignment),
            other => panic!("no sync answer: {other:?}"),
        }
    }

    /// A stable group of two: generation 2, `fresh-a` leads.
    fn of_two() -> Story {
        let mut story = Story::new();
        let join = |name: &str| Join {
            fresh_id: format!("fresh-{name}"),
            ..request("")
        };
        let first = story.join(join("a"));
        assert_eq!(story.joined(first).generation, 1);
        story.sync("fresh-a", 1, &[("fresh-a", "all")]);
        story.store_all();
        story.join(join("b"));
        assert_eq!(
            story.heartbeat("fresh-a", 1),
            Err(ResponseError::RebalanceInProgress)
        );
        story.join(request("fresh-a"));
        story.settle(2);
        story
    }

    /// Both members of [`Story::of_two`] sync.
    fn settle(&mut self, generation: i32) {
        let b = self.sync("fresh-b", generation, &[]);
        assert!(!self.answers.contains_key(&b), "waits for the leader");
        let a = self.sync(
            "fresh-a",
            generation,
            &[("fresh-a", "one"), ("fresh-b", "two")],
        );
        assert!(!self.answers.contains_key(&a), "waits for the log");
        self.store_all();
        assert_eq!(self.synced(a), Ok("one".into()));
        assert_eq!(self.synced(b), Ok("two".into()));
        assert_eq!(self.group.phase(), Phase::Stable);
    }
}

#[test]
fn two_members_share_and_one_goes_on_alone_when_the_other_leaves() {
    let mut story = Story::of_two();
    story.leave("fresh-b");
    assert_eq!(
        story.heartbeat("fresh-a", 2),
        Err(ResponseError::RebalanceInProgress)
    );
    let again = story.join(request("fresh-a"));
    let joined = story.joined(again);
    assert_eq!((joined.generation, joined.members.len()), (3, 1));
    assert_eq!(joined.leader, "fresh-a");
}

#[test]
fn only_the_leader_is_told_of_everybody() {
    let story = Story::of_two();
    let joins: Vec<Joined> = story
        .answers
        .values()
        .filter_map(|answer| match answer {
            Answer::Join(Ok(joined)) if joined.generation == 2 => Some(joined.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(joins.len(), 2);
    for joined in joins {
        let expected = if joined.member_id == joined.leader {
            2
        } else {
            0
        };
        assert_eq!(joined.members.len(), expected);
    }
}

#[test]
fn a_member_learns_its_id_first_when_its_client_knows_how() {
    let mut story = Story::new();
    let token = story.join(Join {
        knows_member_id_required: true,
        ..request("")
    });
    let refused = story.refused(token);
    assert_eq!(refused.error, ResponseError::MemberIdRequired);
    assert_eq!(refused.member_id, "fresh-");
    let token = story.join(request("fresh-"));
    assert_eq!(story.joined(token).member_id, "fresh-");
    let unknown = story.join(request("somebody"));
    assert_eq!(story.refused(unknown).error, ResponseError::UnknownMemberId);
}

#[test]
fn a_rebalance_completes_when_the_last_member_has_rejoined() {
    let mut story = Story::of_two();
    let leader = story.join(request("fresh-a"));
    story.wait(100);
    assert!(!story.answers.contains_key(&leader));
    let other = story.join(request("fresh-b"));
    assert_eq!(story.joined(leader).generation, 3);
    assert_eq!(story.joined(other).generation, 3);
}

#[test]
fn a_rebalance_goes_on_without_members_that_miss_its_time_out() {
    let mut story = Story::of_two();
    let token = story.join(request("fresh-a"));
    // The other one is alive all the time, but does not join.
    for _ in 0..4 {
        story.wait(9_000);
        let _alive = story.heartbeat("fresh-b", 2);
    }
    assert_eq!(story.joined(token).members.len(), 1);
    assert_eq!(
        story.heartbeat("fresh-b", 3),
        Err(ResponseError::UnknownMemberId)
    );
}

#[test]
fn a_member_that_leaves_completes_the_join_that_waited_for_it() {
    let mut story = Story::of_two();
    let token = story.join(request("fresh-a"));
    assert!(!story.answers.contains_key(&token));
    story.leave("fresh-b");
    assert_eq!(story.joined(token).members.len(), 1);
}

#[test]
fn a_silent_member_is_removed_after_its_session_and_an_emptied_group_is_stored() {
    let mut story = Story::of_two();
    story.wait(SESSION - 1);
    assert_eq!(story.heartbeat("fresh-a", 2), Ok(()));
    story.wait(1);
    assert_eq!(
        story.heartbeat("fresh-b", 2),
        Err(ResponseError::UnknownMemberId)
    );
    assert_eq!(
        story.heartbeat("fresh-a", 2),
        Err(ResponseError::RebalanceInProgress)
    );
    assert_eq!(story.group.next_deadline(), Some(story.now + SESSION));
    story.wait(SESSION);
    assert_eq!(story.group.phase(), Phase::Empty);
    assert_eq!(
        story.group.next_deadline(),
        None,
        "nothing ticks without members"
    );
    story.store_all();
    assert_eq!(
        (story.stored.generation, story.stored.members.len()),
        (3, 0)
    );
    assert!(story.group.is_idle());
}

#[test]
fn members_that_join_but_never_sync_are_removed() {
    let mut story = Story::of_two();
    story.join(request("fresh-a"));
    story.join(request("fresh-b"));
    for _ in 0..4 {
        story.wait(9_000);
        let _alive = (story.heartbeat("fresh-a", 3), story.heartbeat("fresh-b", 3));
    }
    assert_eq!(story.group.phase(), Phase::Empty);
}

#[test]
fn a_static_member_that_restarts_keeps_its_assignment_without_a_rebalance() {
    let mut story = Story::new();
    story.join(static_request("i", "first"));
    story.sync("first", 1, &[("first", "all")]);
    story.store_all();
    let token = story.join(static_request("i", "second"));
    assert!(
        !story.answers.contains_key(&token),
        "its new id must be stored first"
    );
    story.store_all();
    let joined = story.joined(token);
    assert_eq!((joined.generation, joined.skip_assignment), (1, true));
    assert_eq!(
        (joined.leader.as_str(), joined.members.len()),
        ("second", 1)
    );
    let sync = story.sync("second", 1, &[]);
    assert_eq!(story.synced(sync), Ok("all".into()));
    assert_eq!(story.stored.members[0].id, "second");
}

#[test]
fn an_older_client_that_returns_as_static_leader_is_not_told_that_it_leads() {
    let mut story = Story::new();
    story.join(static_request("i", "first"));
    story.sync("first", 1, &[("first", "all")]);
    story.store_all();
    let older = Join {
        knows_skip_assignment: false,
        ..static_request("i", "second")
    };
    let token = story.join(older);
    story.store_all();
    let joined = story.joined(token);
    assert_eq!((joined.leader.as_str(), joined.members.len()), ("first", 0));
}

#[test]
fn the_replaced_static_member_is_fenced() {
    let mut story = Story::new();
    story.join(static_request("i", "first"));
    story.sync("first", 1, &[("first", "all")]);
    story.store_all();
    story.join(static_request("i", "second"));
    let old = Identity {
        member_id: "first".into(),
        instance_id: Some("i".into()),
    };
    let fenced = Err(ResponseError::FencedInstanceId);
    assert_eq!(story.group.heartbeat(&old, 1, story.now), fenced);
    assert_eq!(story.group.check_commit(&old, 1, story.now), fenced);
    assert_eq!(
        story.group.leave(&old, story.now),
        Err(ResponseError::FencedInstanceId)
    );
    let rejoin = Join {
        identity: old,
        ..static_request("i", "x")
    };
    let token = story.join(rejoin);
    assert_eq!(story.refused(token).error, ResponseError::FencedInstanceId);
    let by_admin = Identity {
        member_id: String::new(),
        instance_id: Some("i".into()),
    };
    assert_eq!(story.group.leave(&by_admin, story.now), Ok("second".into()));
}

#[test]
fn a_new_leader_lets_members_go_on_with_their_generation() {
    let before = Story::of_two();
    let mut after = Story::from(LIMITS, before.stored.clone());
    assert_eq!(after.heartbeat("fresh-a", 2), Ok(()));
    assert_eq!(after.heartbeat("fresh-b", 2), Ok(()));
    let identity = member("fresh-b");
    assert_eq!(after.group.check_commit(&identity, 2, 0), Ok(()));
    let sync = after.sync("fresh-b", 2, &[]);
    assert_eq!(after.synced(sync), Ok("two".into()));
    after.wait(SESSION);
    assert_eq!(
        after.group.phase(),
        Phase::Empty,
        "a whole session time-out, and no more"
    );
}

#[test]
fn a_rebalance_lost_in_a_failover_is_done_again() {
    let mut before = Story::of_two();
    before.join(request("fresh-a"));
    before.join(request("fresh-b"));
    let mut after = Story::from(LIMITS, before.stored.clone());
    let sync = after.sync("fresh-b", 3, &[]);
    assert_eq!(after.synced(sync), Err(ResponseError::IllegalGeneration));
    after.join(request("fresh-b"));
    after.join(request("fresh-a"));
    after.join(request("fresh-b"));
    after.settle(3);
}

#[test]
fn commits_need_the_present_generation_and_a_settled_group() {
    let mut story = Story::of_two();
    let (a, nobody) = (member("fresh-a"), Identity::default());
    assert_eq!(story.group.check_commit(&a, 2, 0), Ok(()));
    assert_eq!(
        story.group.check_commit(&a, 1, 0),
        Err(ResponseError::IllegalGeneration)
    );
    assert_eq!(
        story.group.check_commit(&nobody, -1, 0),
        Err(ResponseError::UnknownMemberId)
    );
    assert_eq!(
        story.group.check_commit(&member("x"), 2, 0),
        Err(ResponseError::UnknownMemberId)
    );
    story.join(request("fresh-a"));
    assert_eq!(
        story.group.check_commit(&a, 2, 0),
        Ok(()),
        "a last commit while others join"
    );
    story.join(request("fresh-b"));
    assert_eq!(
        story.group.check_commit(&a, 3, 0),
        Err(ResponseError::RebalanceInProgress)
    );
    let mut empty = Story::new();
    assert_eq!(empty.group.check_commit(&nobody, -1, 0), Ok(()));
}

#[test]
fn an_assignment_that_can_not_be_stored_starts_the_rebalance_again() {
    let mut story = Story::of_two();
    story.join(request("fresh-a"));
    story.join(request("fresh-b"));
    let b = story.sync("fresh-b", 3, &[]);
    story.sync("fresh-a", 3, &[("fresh-a", "one")]);
    let (_, then) = story.stores.remove(0);
    story
        .group
        .stored(then, Err(ResponseError::CoordinatorNotAvailable), story.now);
    story.collect();
    assert_eq!(story.synced(b), Err(ResponseError::CoordinatorNotAvailable));
    assert_eq!(
        story.heartbeat("fresh-b", 3),
        Err(ResponseError::RebalanceInProgress)
    );
}

#[test]
fn members_without_a_common_protocol_are_refused() {
    let mut story = Story::of_two();
    let other = Join {
        protocols: vec![("sticky".into(), Bytes::new())],
        ..request("")
    };
    let token = story.join(other);
    assert_eq!(
        story.refused(token).error,
        ResponseError::InconsistentGroupProtocol
    );
    let connect = Join {
        protocol_type: "connect".into(),
        ..request("")
    };
    let token = story.join(connect);
    assert_eq!(
        story.refused(token).error,
        ResponseError::InconsistentGroupProtocol
    );
    assert_eq!(story.heartbeat("fresh-a", 2), Ok(()), "nobody else notices");
}

#[test]
fn the_protocol_is_the_one_that_most_members_prefer() {
    let protocols = |names: &[&str]| -> Vec<(String, Bytes)> {
        names
            .iter()
            .map(|name| (name.to_string(), Bytes::new()))
            .collect()
    };
    let limits = Limits {
        initial_rebalance_delay_ms: 100,
        ..LIMITS
    };
    let mut story = Story::from(limits, GroupRecord::default());
    let wishes: [&[&str]; 3] = [
        &["range", "sticky"],
        &["sticky", "range"],
        &["x", "sticky", "range"],
    ];
    let mut tokens = Vec::new();
    for (position, names) in wishes.iter().enumerate() {
        let fresh_id = format!("m{position}");
        tokens.push(story.join(Join {
            fresh_id,
            protocols: protocols(names),
            ..request("")
        }));
    }
    story.wait(100);
    story.wait(100);
    assert_eq!(story.joined(tokens[0]).protocol, "sticky");
    assert_eq!(
        story.joined(tokens[0]).members.len(),
        3,
        "the delay lets all three in at once"
    );
}

#[test]
fn a_group_never_grows_above_its_bounds() {
    let mut story = Story::new();
    for position in 0..LIMITS.members_max {
        story.join(Join {
            fresh_id: format!("m{position}"),
            ..request("")
        });
    }
    let token = story.join(Join {
        fresh_id: "more".into(),
        ..request("")
    });
    assert_eq!(
        story.refused(token).error,
        ResponseError::GroupMaxSizeReached
    );
    let mut story = Story::new();
    let huge = vec![("range".into(), Bytes::from(vec![0; 1000]))];
    let token = story.join(Join {
        protocols: huge,
        ..request("")
    });
    assert_eq!(
        story.refused(token).error,
        ResponseError::GroupMaxSizeReached
    );
}

#[derive(Clone, Debug)]
enum Act {
    Join(usize),
    JoinStatic(usize),
    JoinAgain(usize),
    Sync(usize),
    Heartbeat(usize),
    Leave(usize),
    Wait(Millis),
    Stored(bool),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let who = 0..6_usize;
    let act = prop_oneof![
        3 => who.clone().prop_map(Act::Join),
        2 => (0..2_usize).prop_map(Act::JoinStatic),
        4 => who.clone().prop_map(Act::JoinAgain),
        6 => who.clone().prop_map(Act::Sync),
        2 => who.clone().prop_map(Act::Heartbeat),
        1 => who.prop_map(Act::Leave),
        2 => (0..12_000_u64).prop_map(Act::Wait),
        4 => prop::bool::weighted(0.9).prop_map(Act::Stored),
    ];
    prop::collection::vec(act, 1..120)
}

/// What must hold after every step.
fn check_invariants(story: &Story, generation_before: i32) {
    let group = &story.group;
    assert!(
        group.generation >= generation_before,
        "generation went back"
    );
    for (instance, id) in &group.instances {
        assert_eq!(
            group.members[id].record.instance_id.as_ref(),
            Some(instance)
        );
    }
    match group.phase {
        Phase::Empty => assert!(group.members.is_empty()),
        Phase::Preparing { .. } => assert!(!group.members.is_empty()),
        Phase::Completing { .. } | Phase::Stable => {
            let leader = group.leader.as_ref().expect("a leader");
            assert!(group.members.contains_key(leader), "the leader is a member");
            assert!(group.protocol.is_some());
            assert!(
                group
                    .members
                    .values()
                    .all(|member| member.join_waiter.is_none())
            );
        }
    }
    if group.phase == Phase::Stable {
        for member in group.members.values() {
            assert!(
                member.sync_waiter.is_none(),
                "somebody waits in a stable group"
            );
            assert_eq!(
                member.record.assignment, "work",
                "somebody has no assignment"
            );
        }
    }
    assert_eq!(
        group.members.is_empty() && group.pending.is_empty(),
        group.next_deadline().is_none()
    );
}

proptest! {
    #[test]
    fn no_sequence_of_requests_breaks_a_group(acts in acts(), delay in prop_oneof![Just(0), Just(3_000)]) {
        let limits = Limits { initial_rebalance_delay_ms: delay, ..LIMITS };
        let mut story = Story::from(limits, GroupRecord::default());
        let mut fresh = 0;
        for act in acts {
            let generation = story.group.generation;
            let pick = |who: usize| -> Identity {
                let members: Vec<&Member> = story.group.members.values().collect();
                match members.get(who) {
                    Some(member) => Identity {
                        member_id: member.record.id.clone(),
                        instance_id: member.record.instance_id.clone(),
                    },
                    None => Identity { member_id: format!("unknown-{who}"), instance_id: None },
                }
            };
            fresh += 1;
            match act {
                Act::Join(who) => {
                    let knows_member_id_required = who % 2 == 0;
                    let fresh_id = format!("m{fresh}");
                    story.join(Join { fresh_id, knows_member_id_required, ..request("") });
                }
                Act::JoinStatic(who) => {
                    story.join(static_request(&format!("i{who}"), &format!("s{fresh}")));
                }
                Act::JoinAgain(who) => {
                    let identity = match story.group.pending.keys().nth(who) {
                        Some(id) => member(id),
                        None => pick(who),
                    };
                    story.join(Join { identity, ..request("") });
                }
                Act::Sync(who) => {
                    let identity = pick(who);
                    let everybody = story.group.members.keys();
                    let assignments = everybody.map(|id| (id.clone(), "work".into())).collect();
                    let sync = Sync { identity, generation, assignments, ..Sync::default() };
                    story.last_token += 1;
                    story.group.sync(sync, story.last_token, story.now);
                }
                Act::Heartbeat(who) => {
                    let identity = pick(who);
                    let _any = story.group.heartbeat(&identity, generation, story.now);
                }
                Act::Leave(who) => {
                    let identity = pick(who);
                    let _any = story.group.leave(&identity, story.now);
                }
                Act::Wait(ms) => story.wait(ms),
                Act::Stored(ok) if !story.stores.is_empty() => {
                    let (record, then) = story.stores.remove(0);
                    let outcome = if ok { Ok(()) } else { Err(ResponseError::CoordinatorNotAvailable) };
                    if ok {
                        prop_assert!(record.revision > story.stored.revision);
                        story.stored = record;
                    }
                    story.group.stored(then, outcome, story.now);
                }
                Act::Stored(_) => {}
            }
            story.collect();
            check_invariants(&story, generation);
        }
        // With time, everybody who waits gets an answer.
        for _ in 0..200 {
            story.store_all();
            story.wait(5_000);
        }
        prop_assert_eq!(story.answers.len() as u64, story.last_token);
        prop_assert_eq!(story.group.phase(), Phase::Empty);
    }
}
