//! What the metadata machine promises, command by command.

use super::*;
use crate::metadata::command::encode;
use crate::metadata::image::PARTITION_GROUP_MIN;

struct Bench {
    machine: MetadataMachine,
    image: watch::Receiver<Arc<Image>>,
    next_index: u64,
}

fn bench() -> Bench {
    let (sender, image) = watch::channel(Arc::default());
    Bench {
        machine: MetadataMachine::new(sender),
        image,
        next_index: 0,
    }
}

impl Bench {
    fn apply(&mut self, command: Command) -> Reply {
        let raft = drave_raft::Command {
            tag: COMMAND_TAG,
            stamp: 0,
            payload: encode(&command),
        };
        let entry = Applied {
            index: self.next_index,
            term: 1,
            command: Some(&raft),
        };
        self.next_index += 1;
        let reply = self.machine.apply(entry);
        self.machine.applied_batch();
        *reply.downcast::<Reply>().expect("a metadata reply")
    }

    fn image(&self) -> Arc<Image> {
        self.image.borrow().clone()
    }

    fn create(&mut self, name: &str, id: u128, partitions: usize) -> Result<TopicCreated, Refusal> {
        let topic = TopicToCreate {
            name: name.into(),
            id: Uuid::from_u128(id),
            placements: vec![replicas(&[1, 2, 3]); partitions],
            configs: vec![("retention.ms".into(), "1".into())],
        };
        match self.apply(Command::CreateTopics(vec![topic])) {
            Reply::Topics(mut outcomes) => outcomes.remove(0),
            other => panic!("{other:?}"),
        }
    }
}

fn replicas(brokers: &[u32]) -> Vec<ReplicaId> {
    brokers
        .iter()
        .map(|&broker| ReplicaId {
            broker,
            directory: u128::from(broker),
        })
        .collect()
}

fn registration(broker: u32, incarnation: u64) -> BrokerRegistration {
    BrokerRegistration {
        replica: replicas(&[broker])[0],
        incarnation,
        host: "localhost".into(),
        port: 9092,
        peer_address: "127.0.0.1:9093".parse().unwrap(),
        rack: None,
        fenced: true,
    }
}

fn code<T: std::fmt::Debug>(outcome: Result<T, Refusal>) -> i16 {
    outcome.expect_err("refused").code
}

fn refused(reply: Reply) -> i16 {
    match reply {
        Reply::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_topic_exists_once_with_groups_of_its_own() {
    let mut bench = bench();
    bench.create("a", 1, 2).unwrap();
    bench.create("b", 2, 1).unwrap();
    assert_eq!(
        code(bench.create("a", 3, 1)),
        ResponseError::TopicAlreadyExists.code()
    );
    let image = bench.image();
    let groups = |name: &str| -> Vec<u64> {
        image.topics[name]
            .partitions
            .iter()
            .map(|p| p.group)
            .collect()
    };
    assert_eq!(groups("a"), [PARTITION_GROUP_MIN, PARTITION_GROUP_MIN + 1]);
    assert_eq!(groups("b"), [PARTITION_GROUP_MIN + 2]);
    assert_eq!(image.topic_names[&Uuid::from_u128(1)], "a");
    assert_eq!(image.topics["a"].configs["retention.ms"], "1");
    assert_eq!(image.applied_index, 2);
}

#[test]
fn the_same_creation_twice_is_one_topic() {
    let mut bench = bench();
    let first = bench.create("a", 1, 2).unwrap();
    let before = bench.image();
    assert_eq!(bench.create("a", 1, 2).unwrap(), first);
    assert_eq!(bench.image().topics, before.topics);
}

#[test]
fn a_topic_created_again_has_a_new_id_and_new_groups() {
    let mut bench = bench();
    bench.create("a", 1, 2).unwrap();
    assert_eq!(
        bench.apply(Command::DeleteTopic {
            id: Uuid::from_u128(1)
        }),
        Reply::Done
    );
    assert!(bench.image().topics.is_empty() && bench.image().topic_names.is_empty());
    let again = bench.apply(Command::DeleteTopic {
        id: Uuid::from_u128(1),
    });
    assert_eq!(refused(again), ResponseError::UnknownTopicId.code());
    bench.create("a", 2, 1).unwrap();
    let image = bench.image();
    assert_eq!(image.topics["a"].id, Uuid::from_u128(2));
    assert_eq!(
        image.topics["a"].partitions[0].group,
        PARTITION_GROUP_MIN + 2,
        "never reused"
    );
}

#[test]
fn names_that_differ_by_dot_and_underscore_collide_until_one_is_deleted() {
    let mut bench = bench();
    bench.create("a.b", 1, 1).unwrap();
    let invalid = ResponseError::InvalidTopicException.code();
    assert_eq!(code(bench.create("a_b", 2, 1)), invalid);
    assert_eq!(code(bench.create("a/b", 2, 1)), invalid);
    bench.apply(Command::DeleteTopic {
        id: Uuid::from_u128(1),
    });
    bench.create("a_b", 2, 1).unwrap();
}

#[test]
fn a_placement_that_repeats_a_broker_is_refused() {
    let mut bench = bench();
    let placements = vec![replicas(&[1, 1])];
    let topic = TopicToCreate {
        name: "a".into(),
        id: Uuid::from_u128(1),
        placements,
        configs: vec![],
    };
    let reply = bench.apply(Command::CreateTopics(vec![topic]));
    let Reply::Topics(mut outcomes) = reply else {
        panic!("{reply:?}")
    };
    assert_eq!(
        code(outcomes.remove(0)),
        ResponseError::InvalidReplicaAssignment.code()
    );
    assert!(bench.image().topics.is_empty());
}

#[test]
fn partitions_are_added_once_at_the_end() {
    let mut bench = bench();
    bench.create("a", 1, 1).unwrap();
    bench.create("b", 2, 1).unwrap();
    let add = |first| Command::CreatePartitions {
        topic: Uuid::from_u128(1),
        first,
        placements: vec![replicas(&[2, 3]), replicas(&[3, 1])],
    };
    assert_eq!(bench.apply(add(1)), Reply::Done);
    assert_eq!(
        bench.apply(add(1)),
        Reply::Done,
        "the same request, repeated"
    );
    assert_eq!(
        refused(bench.apply(add(2))),
        ResponseError::InvalidPartitions.code()
    );
    let image = bench.image();
    let groups: Vec<u64> = image.topics["a"]
        .partitions
        .iter()
        .map(|p| p.group)
        .collect();
    assert_eq!(
        groups,
        [
            PARTITION_GROUP_MIN,
            PARTITION_GROUP_MIN + 2,
            PARTITION_GROUP_MIN + 3
        ]
    );
}

#[test]
fn producer_id_blocks_never_overlap_not_even_after_a_restart() {
    let mut bench = bench();
    let mut next = 0;
    for round in 0..10 {
        let Reply::ProducerIds { first, count } =
            bench.apply(Command::AllocateProducerIds { count: 1_000 })
        else {
            panic!("no block")
        };
        assert!(first >= next, "round {round}");
        next = first + i64::from(count);
        let checkpoint = bench.machine.checkpoint();
        bench
            .machine
            .restore(bench.next_index - 1, 1, &checkpoint)
            .unwrap();
    }
    let none = bench.apply(Command::AllocateProducerIds { count: 0 });
    assert_eq!(refused(none), ResponseError::InvalidRequest.code());
}

#[test]
fn what_is_known_of_one_process_of_a_broker_does_not_fence_another() {
    let mut bench = bench();
    for incarnation in [9, 5] {
        let register = Command::RegisterBroker(registration(1, incarnation));
        assert_eq!(bench.apply(register), Reply::Done);
    }
    let registered = bench.image().brokers[&1].clone();
    assert_eq!(registered.incarnation, 5, "the last one stands");
    assert!(!registered.fenced, "it said that it is there");
    let stale = bench.apply(Command::FenceBroker {
        broker: 1,
        incarnation: 4,
    });
    assert_eq!(refused(stale), ResponseError::StaleBrokerEpoch.code());
    assert!(!bench.image().brokers[&1].fenced);
    bench.apply(Command::FenceBroker {
        broker: 1,
        incarnation: 5,
    });
    assert!(bench.image().brokers[&1].fenced);
    bench.apply(Command::UnfenceBroker {
        broker: 1,
        incarnation: 5,
    });
    assert!(!bench.image().brokers[&1].fenced);
    let unknown = bench.apply(Command::FenceBroker {
        broker: 9,
        incarnation: 5,
    });
    assert_eq!(
        refused(unknown),
        ResponseError::BrokerIdNotRegistered.code()
    );
}

#[test]
fn a_cluster_is_formed_once() {
    let mut bench = bench();
    let form = |id| Command::FormCluster {
        cluster_id: Uuid::from_u128(id),
    };
    assert_eq!(bench.apply(form(1)), Reply::Done);
    assert_eq!(bench.apply(form(1)), Reply::Done);
    assert_eq!(
        refused(bench.apply(form(2))),
        ResponseError::InvalidRequest.code()
    );
    assert_eq!(bench.image().cluster_id, Uuid::from_u128(1));
}

#[test]
fn configs_are_set_removed_and_replaced() {
    let mut bench = bench();
    bench.create("a", 1, 1).unwrap();
    let alter = |changes: &[(&str, Option<&str>)], replace_all| Command::AlterConfigs {
        resource: ConfigResource::Topic(Uuid::from_u128(1)),
        changes: changes
            .iter()
            .map(|(k, v)| (k.to_string(), v.map(String::from)))
            .collect(),
        replace_all,
    };
    bench.apply(alter(&[("x", Some("1")), ("retention.ms", None)], false));
    assert_eq!(bench.image().topics["a"].configs.len(), 1);
    bench.apply(alter(&[("y", Some("2"))], true));
    let expected = BTreeMap::from([("y".to_string(), "2".to_string())]);
    assert_eq!(bench.image().topics["a"].configs, expected);
}

#[test]
fn coordinators_are_placed_once() {
    let mut bench = bench();
    let create = Command::CreateCoordinators {
        replicas: vec![replicas(&[1, 2, 3]); 8],
    };
    assert_eq!(bench.apply(create.clone()), Reply::Done);
    assert_eq!(
        refused(bench.apply(create)),
        ResponseError::InvalidRequest.code()
    );
    assert_eq!(bench.image().coordinators.len(), 8);
}

fn on(directory: u128, broker: u32, incarnation: u64) -> Command {
    let mut registration = registration(broker, incarnation);
    registration.replica.directory = directory;
    Command::RegisterBroker(registration)
}

#[test]
fn a_broker_on_a_new_disk_takes_the_place_of_its_old_replicas() {
    let mut bench = bench();
    for broker in 1..=3 {
        bench.apply(Command::RegisterBroker(registration(broker, 1)));
    }
    bench.apply(Command::CreateCoordinators {
        replicas: vec![replicas(&[1, 2, 3]), replicas(&[2, 3])],
    });
    bench.create("a", 1, 2).unwrap();
    let before = bench.image();
    bench.apply(on(2, 2, 5));
    assert_eq!(bench.image().topics, before.topics, "the same disk");

    for (directory, incarnation) in [(20, 6), (21, 7)] {
        bench.apply(on(directory, 2, incarnation));
        let mut placed = replicas(&[1, 2, 3]);
        placed[1].directory = directory;
        let image = bench.image();
        assert_eq!(image.placements().count(), 4);
        for (now, then) in image.placements().zip(before.placements()) {
            let here = now.replicas.iter().find(|replica| replica.broker == 2);
            assert_eq!(here, Some(&placed[1]));
            assert_eq!(now.founders(), then.replicas, "never changed");
            assert_eq!(
                now.first_voters(placed[1]),
                [],
                "an empty disk forms nothing"
            );
            assert_eq!(now.first_voters(replicas(&[3])[0]), then.replicas);
        }
        assert_eq!(image.topics["a"].partitions[0].replicas, placed);
    }
    bench.apply(on(2, 2, 8));
    for (now, then) in bench.image().placements().zip(before.placements()) {
        assert_eq!(now.replicas, then.replicas, "the old disk is back");
        assert_eq!(now.founders(), then.replicas);
    }
}

#[test]
fn what_was_planned_before_a_disk_was_lost_is_placed_on_the_new_one() {
    let mut bench = bench();
    bench.apply(on(20, 2, 5));
    bench.create("a", 1, 1).unwrap();
    bench.apply(Command::CreateCoordinators {
        replicas: vec![replicas(&[2, 3])],
    });
    let image = bench.image();
    let partition = &image.topics["a"].partitions[0];
    assert_eq!(partition.replicas[1].directory, 20);
    assert_eq!(partition.founders(), replicas(&[1, 2, 3]));
    assert_eq!(image.coordinators[0].replicas[0].directory, 20);
    assert_eq!(image.coordinators[0].founders(), replicas(&[2, 3]));
    let add = || Command::CreatePartitions {
        topic: Uuid::from_u128(1),
        first: 1,
        placements: vec![replicas(&[2, 3])],
    };
    assert_eq!(bench.apply(add()), Reply::Done);
    assert_eq!(
        bench.apply(add()),
        Reply::Done,
        "the same request, repeated"
    );
    assert_eq!(bench.image().topics["a"].partitions.len(), 2);
}

/// Commands that touch every part of the state.
fn history() -> Vec<Command> {
    let topic = |name: &str, id: u128| TopicToCreate {
        name: name.into(),
        id: Uuid::from_u128(id),
        placements: vec![replicas(&[3, 1]), replicas(&[1, 2])],
        configs: vec![("max.message.bytes".into(), "7".into())],
    };
    vec![
        Command::FormCluster {
            cluster_id: Uuid::from_u128(77),
        },
        Command::RegisterBroker(registration(1, 1)),
        Command::RegisterBroker(registration(2, 1)),
        Command::FenceBroker {
            broker: 2,
            incarnation: 1,
        },
        Command::CreateCoordinators {
            replicas: vec![replicas(&[1, 2]); 3],
        },
        on(9, 2, 2),
        Command::CreateTopics(vec![topic("a.x", 1), topic("b", 2), topic("a_x", 3)]),
        Command::DeleteTopic {
            id: Uuid::from_u128(2),
        },
        Command::AllocateProducerIds { count: 1_000 },
        on(10, 1, 3),
        Command::AlterConfigs {
            resource: ConfigResource::Broker(String::new()),
            changes: vec![("k".into(), Some("v".into()))],
            replace_all: false,
        },
    ]
}

#[test]
fn two_machines_fed_the_same_commands_have_identical_checkpoints() {
    let (mut one, mut two) = (bench(), bench());
    for command in history() {
        assert_eq!(one.apply(command.clone()), two.apply(command));
        assert_eq!(one.machine.checkpoint(), two.machine.checkpoint());
    }
}

#[test]
fn a_restored_machine_goes_on_as_if_it_had_seen_everything() {
    let commands = history();
    for cut in 0..=commands.len() {
        let (mut whole, mut restored) = (bench(), bench());
        for command in &commands[..cut] {
            whole.apply(command.clone());
        }
        if cut > 0 {
            let checkpoint = whole.machine.checkpoint();
            restored
                .machine
                .restore(cut as u64 - 1, 1, &checkpoint)
                .unwrap();
            restored.next_index = cut as u64;
            assert_eq!(restored.image(), whole.image(), "published at once");
        }
        for command in &commands[cut..] {
            assert_eq!(
                whole.apply(command.clone()),
                restored.apply(command.clone())
            );
        }
        assert_eq!(whole.machine.checkpoint(), restored.machine.checkpoint());
        assert_eq!(
            code(restored.create("a_x", 9, 1)),
            ResponseError::InvalidTopicException.code()
        );
    }
}

#[test]
fn a_checkpoint_of_another_format_is_refused_and_changes_nothing() {
    let mut bench = bench();
    bench.create("a", 1, 1).unwrap();
    let before = bench.machine.checkpoint();
    for bytes in [
        &b""[..],
        &[99, 0],
        &before[..before.len() - 1],
        &[&before[..], &[0]].concat(),
    ] {
        assert!(bench.machine.restore(9, 1, bytes).is_err());
        assert_eq!(bench.machine.checkpoint(), before);
    }
}

#[test]
fn entries_of_raft_itself_only_move_the_index() {
    let mut bench = bench();
    let reply = bench.machine.apply(Applied {
        index: 7,
        term: 1,
        command: None,
    });
    assert_eq!(*reply.downcast::<Reply>().unwrap(), Reply::Done);
    bench.machine.applied_batch();
    assert_eq!(
        *bench.image(),
        Image {
            applied_index: 7,
            ..Image::default()
        }
    );
}
