//! What the judge says of operations on topics and committed offsets.

use drave_durability::history::History;
use drave_durability::judge::{Counts, Finding, Kind, Verdict, judge};
use drave_durability::operation::{Answer, Asked, Object, Operation};

/// Millisecond.
const MS: u64 = 1_000;

fn topic(name: &str) -> Object {
    Object::Topic(name.to_owned())
}

fn offset() -> Object {
    Object::CommittedOffset {
        group: "g".to_owned(),
        partition: 3,
    }
}

fn lost() -> Answer {
    Answer::Unknown("no answer in time".to_owned())
}

/// The operations of one object: client, what was asked, from when to when in milliseconds, the answer.
fn about(object: &Object, operations: &[(u32, Asked, u64, u64, Answer)]) -> History {
    let operations = operations
        .iter()
        .map(|(client, asked, called, answered, answer)| Operation {
            client: *client,
            object: object.clone(),
            asked: *asked,
            called_us: called * MS,
            answered_us: answered * MS,
            answer: answer.clone(),
        });
    History {
        operations: operations.collect(),
        ..History::default()
    }
}

fn metadata(broker: i32) -> Asked {
    Asked::TopicExists { broker }
}

#[track_caller]
fn assert_clean(history: &History) {
    let verdict = judge(history);
    assert_eq!(verdict.violations, []);
    assert_eq!(verdict.tolerated, []);
}

#[track_caller]
fn assert_violated(history: &History, sample: &str) {
    let verdict = judge(history);
    let expected = Finding {
        kind: Kind::NotLinearizable,
        count: 1,
        samples: vec![sample.to_owned()],
    };
    assert_eq!(verdict.violations, [expected]);
    assert_eq!(verdict.tolerated, []);
}

#[test]
fn commits_and_fetches_in_order_are_clean_and_counted() {
    let history = about(
        &offset(),
        &[
            (0, Asked::FetchOffset, 0, 1, Answer::Offset(None)),
            (1, Asked::CommitOffset(1), 2, 9, Answer::Done),
            (2, Asked::FetchOffset, 3, 4, Answer::Offset(Some(1))),
            (0, Asked::CommitOffset(2), 3, 8, Answer::Done),
            (0, Asked::FetchOffset, 10, 11, Answer::Offset(Some(2))),
            (1, Asked::FetchOffset, 12, 13, lost()),
        ],
    );
    let counts = Counts {
        operations: 6,
        operations_unknown: 1,
        ..Counts::default()
    };
    let expected = Verdict {
        counts,
        ..Verdict::default()
    };
    assert_eq!(judge(&history), expected);
}

#[test]
fn a_fetch_of_what_was_overwritten_is_found() {
    let history = about(
        &offset(),
        &[
            (0, Asked::CommitOffset(1), 0, 1, Answer::Done),
            (0, Asked::CommitOffset(2), 2, 3, Answer::Done),
            (1, Asked::FetchOffset, 4, 5, Answer::Offset(Some(1))),
        ],
    );
    assert_violated(
        &history,
        "offset of group g in partition 3: client 1 fetch: 1 (0.004 to 0.005 s) can't be, it was 2 then; \
         before: client 0 commit 1: done (0.000 to 0.001 s), client 0 commit 2: done (0.002 to 0.003 s)",
    );
}

#[test]
fn a_lost_commit_is_found() {
    let history = about(
        &offset(),
        &[
            (0, Asked::CommitOffset(1), 0, 1, Answer::Done),
            (1, Asked::CommitOffset(2), 2, 9, lost()),
            (2, Asked::FetchOffset, 4, 5, Answer::Offset(None)),
        ],
    );
    assert_violated(
        &history,
        "offset of group g in partition 3: client 2 fetch: nothing (0.004 to 0.005 s) can't be, it was 1 then; \
         before: client 0 commit 1: done (0.000 to 0.001 s)",
    );
}

#[test]
fn two_fetches_that_disagree_on_the_order_of_commits_are_found() {
    let told = |first, second| {
        about(
            &offset(),
            &[
                (0, Asked::CommitOffset(1), 0, 10, Answer::Done),
                (1, Asked::CommitOffset(2), 0, 10, Answer::Done),
                (2, Asked::FetchOffset, 1, 2, Answer::Offset(Some(1))),
                (2, Asked::FetchOffset, 3, 4, Answer::Offset(Some(first))),
                (2, Asked::FetchOffset, 11, 12, Answer::Offset(Some(second))),
            ],
        )
    };
    assert_clean(&told(1, 2));
    assert_clean(&told(2, 2));
    assert_violated(
        &told(2, 1),
        "offset of group g in partition 3: client 2 fetch: 1 (0.011 to 0.012 s) can't be, it was 2 then; \
         before: client 2 fetch: 1 (0.001 to 0.002 s), client 1 commit 2: done (0.000 to 0.010 s), \
         client 2 fetch: 2 (0.003 to 0.004 s)",
    );
}

#[test]
fn a_commit_without_an_answer_may_take_effect_late_or_never_but_once() {
    let told = |third, fourth| {
        about(
            &offset(),
            &[
                (0, Asked::CommitOffset(1), 0, 1, lost()),
                (1, Asked::CommitOffset(2), 2, 3, Answer::Done),
                (1, Asked::FetchOffset, 4, 5, Answer::Offset(Some(2))),
                (1, Asked::FetchOffset, 6, 7, Answer::Offset(Some(third))),
                (1, Asked::FetchOffset, 8, 9, Answer::Offset(Some(fourth))),
            ],
        )
    };
    assert_clean(&told(2, 2));
    assert_clean(&told(2, 1));
    assert_clean(&told(1, 1));
    let verdict = judge(&told(1, 2));
    assert_eq!(verdict.violations[0].kind, Kind::NotLinearizable);
}

#[test]
fn many_commits_without_an_answer_do_not_hide_one_that_was_lost() {
    // Every other one took effect, one after the other, and was seen.
    let mut operations: Vec<_> = (0..100)
        .map(|n| (n as u32, Asked::CommitOffset(n), 0, 1, lost()))
        .collect();
    for n in (1..100).step_by(2) {
        let told = Answer::Offset(Some(n));
        operations.push((
            100,
            Asked::FetchOffset,
            n as u64 * 3,
            n as u64 * 3 + 1,
            told,
        ));
    }
    assert_clean(&about(&offset(), &operations));
    let told = Answer::Offset(Some(1));
    operations.push((100, Asked::FetchOffset, 1_000, 1_001, told));
    let verdict = judge(&about(&offset(), &operations));
    assert_eq!(verdict.violations[0].kind, Kind::NotLinearizable);
}

#[test]
fn an_offset_that_nobody_committed_or_whose_commit_was_refused_is_found() {
    let refused = Answer::Refused("ILLEGAL_GENERATION".to_owned());
    let history = about(
        &offset(),
        &[
            (0, Asked::CommitOffset(1), 0, 1, refused.clone()),
            (1, Asked::FetchOffset, 2, 3, Answer::Offset(Some(1))),
        ],
    );
    assert_violated(
        &history,
        "offset of group g in partition 3: client 1 fetch: 1 (0.002 to 0.003 s) can't be, it was nothing then",
    );
    let history = about(
        &offset(),
        &[
            (0, Asked::CommitOffset(1), 0, 1, refused),
            (1, Asked::FetchOffset, 2, 3, Answer::Offset(None)),
        ],
    );
    assert_clean(&history);
    let from_the_future = about(
        &offset(),
        &[
            (1, Asked::FetchOffset, 0, 1, Answer::Offset(Some(1))),
            (0, Asked::CommitOffset(1), 2, 3, lost()),
        ],
    );
    let verdict = judge(&from_the_future);
    assert_eq!(verdict.violations[0].kind, Kind::NotLinearizable);
}

#[test]
fn of_two_creates_one_succeeds() {
    let told = |second| {
        about(
            &topic("t"),
            &[
                (0, Asked::CreateTopic, 0, 5, Answer::Done),
                (1, Asked::CreateTopic, 1, 4, second),
            ],
        )
    };
    assert_clean(&told(Answer::AlreadyExists));
    assert_clean(&told(lost()));
    assert_violated(
        &told(Answer::Done),
        "topic t: client 1 create: done (0.001 to 0.004 s) can't be, it was there then; \
         before: client 0 create: done (0.000 to 0.005 s)",
    );
}

#[test]
fn a_deleted_topic_that_comes_back_is_found() {
    let told = |answer| {
        about(
            &topic("t"),
            &[
                (0, Asked::CreateTopic, 0, 1, Answer::Done),
                (0, Asked::DeleteTopic, 2, 3, Answer::Done),
                (1, Asked::CreateTopic, 4, 5, answer),
            ],
        )
    };
    assert_clean(&told(Answer::Done));
    assert_violated(
        &told(Answer::AlreadyExists),
        "topic t: client 1 create: already exists (0.004 to 0.005 s) can't be, it was not there then; \
         before: client 0 create: done (0.000 to 0.001 s), client 0 delete: done (0.002 to 0.003 s)",
    );
}

#[test]
fn a_delete_that_does_not_find_what_is_there_is_found() {
    let history = about(
        &topic("t"),
        &[
            (0, Asked::CreateTopic, 0, 1, Answer::Done),
            (1, Asked::DeleteTopic, 2, 3, Answer::UnknownTopic),
        ],
    );
    assert_violated(
        &history,
        "topic t: client 1 delete: unknown topic (0.002 to 0.003 s) can't be, it was there then; \
         before: client 0 create: done (0.000 to 0.001 s)",
    );
}

#[test]
fn a_create_without_an_answer_may_take_effect_after_its_topic_was_not_found() {
    let history = about(
        &topic("t"),
        &[
            (0, Asked::CreateTopic, 0, 3, lost()),
            (1, Asked::DeleteTopic, 4, 5, Answer::UnknownTopic),
            (1, metadata(1), 6, 7, Answer::Exists(false)),
            (1, Asked::CreateTopic, 8, 9, Answer::AlreadyExists),
            (1, Asked::DeleteTopic, 10, 11, Answer::Done),
            (1, metadata(1), 12, 13, Answer::Exists(false)),
        ],
    );
    assert_clean(&history);
    let mut twice = history;
    twice.operations.push(Operation {
        client: 1,
        object: topic("t"),
        asked: Asked::CreateTopic,
        called_us: 14 * MS,
        answered_us: 15 * MS,
        answer: Answer::AlreadyExists,
    });
    assert_eq!(judge(&twice).violations[0].kind, Kind::NotLinearizable);
}

#[test]
fn stale_metadata_is_told_as_tolerated_answer_by_answer() {
    let history = about(
        &topic("t"),
        &[
            (0, Asked::CreateTopic, 0, 1, Answer::Done),
            (1, metadata(1), 2, 3, Answer::Exists(true)),
            (1, metadata(2), 4, 5, Answer::Exists(false)),
            (1, metadata(2), 6, 7, Answer::Exists(false)),
            (1, metadata(2), 8, 9, Answer::Exists(true)),
        ],
    );
    let verdict = judge(&history);
    assert_eq!(verdict.violations, []);
    let samples = [
        "topic t: client 1 metadata of broker 2: does not exist (0.004 to 0.005 s), \
         after client 0 create: done (0.000 to 0.001 s)",
        "topic t: client 1 metadata of broker 2: does not exist (0.006 to 0.007 s), \
         after client 0 create: done (0.000 to 0.001 s)",
    ];
    let expected = Finding {
        kind: Kind::StaleMetadata,
        count: 2,
        samples: samples.map(str::to_owned).to_vec(),
    };
    assert_eq!(verdict.tolerated, [expected]);
}

#[test]
fn brokers_that_contradict_each_other_are_told_even_if_either_one_can_be_right() {
    let history = about(
        &topic("t"),
        &[
            (0, Asked::CreateTopic, 0, 9, Answer::Done),
            (1, metadata(1), 2, 3, Answer::Exists(true)),
            (1, metadata(2), 4, 5, Answer::Exists(false)),
        ],
    );
    let verdict = judge(&history);
    assert_eq!(verdict.violations, []);
    assert_eq!(
        (verdict.tolerated[0].kind, verdict.tolerated[0].count),
        (Kind::StaleMetadata, 1)
    );
}

#[test]
fn objects_do_not_explain_each_other() {
    let mut history = about(&topic("a"), &[(0, Asked::CreateTopic, 0, 1, Answer::Done)]);
    let other = about(
        &topic("b"),
        &[
            (0, Asked::CreateTopic, 2, 3, Answer::Done),
            (0, Asked::DeleteTopic, 4, 5, Answer::Done),
            (0, Asked::DeleteTopic, 6, 7, Answer::Done),
        ],
    );
    history.operations.extend(other.operations);
    assert_violated(
        &history,
        "topic b: client 0 delete: done (0.006 to 0.007 s) can't be, it was not there then; \
         before: client 0 create: done (0.002 to 0.003 s), client 0 delete: done (0.004 to 0.005 s)",
    );
}

#[test]
fn what_is_not_decided_is_not_fine() {
    let mut operations: Vec<_> = (0..64)
        .map(|n| (n as u32, Asked::CommitOffset(n), 0, 9, Answer::Done))
        .collect();
    // None of 2^64 sets of commits leads to it.
    let fetched = Answer::Offset(Some(99));
    operations.push((64, Asked::FetchOffset, 10, 11, fetched));
    let verdict = judge(&about(&offset(), &operations));
    let expected = Finding {
        kind: Kind::Undecided,
        count: 1,
        samples: vec!["offset of group g in partition 3: 65 operations".to_owned()],
    };
    assert_eq!(verdict.violations, [expected]);
}

#[test]
fn what_no_client_can_have_been_told_is_a_broken_history() {
    for (asked, answered, answer) in [
        (Asked::CommitOffset(1), 1, Answer::AlreadyExists),
        (Asked::CreateTopic, 3, Answer::Done),
        (Asked::FetchOffset, 1, Answer::Offset(None)),
    ] {
        let verdict = judge(&about(&offset(), &[(0, asked, 2, answered, answer)]));
        let kinds: Vec<_> = verdict.violations.iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [Kind::BrokenHistory], "{asked:?}");
    }
    let twice = [1, 2].map(|at| (0, Asked::CommitOffset(7), at, at, Answer::Done));
    let verdict = judge(&about(&offset(), &twice));
    let sample = "offset of group g in partition 3: 7 is committed twice";
    assert_eq!(verdict.violations[0].kind, Kind::BrokenHistory);
    assert_eq!(verdict.violations[0].samples, [sample]);
}

#[test]
fn operations_read_the_same_from_json_and_older_histories_have_none() {
    let history = about(
        &topic("t"),
        &[
            (0, Asked::CreateTopic, 0, 1, Answer::Done),
            (1, metadata(1), 2, 3, Answer::Exists(true)),
            (1, Asked::CommitOffset(5), 2, 3, lost()),
        ],
    );
    let mut json = serde_json::to_value(&history).unwrap();
    assert_eq!(
        serde_json::from_value::<History>(json.clone()).unwrap(),
        history
    );
    json.as_object_mut().unwrap().remove("operations");
    let read: History = serde_json::from_value(json).unwrap();
    assert_eq!(read.operations, []);
}
