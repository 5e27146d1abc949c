//! The page and the JSON of a report, as their readers find them.

#[path = "../examples/report/made_up.rs"]
mod made_up;

use std::collections::HashSet;

use drave_durability::availability::{Bucket, FaultImpact, Gap, PartitionAvailability};
use drave_durability::file::ReadError;
use drave_durability::history::Fault;
use drave_durability::judge::{Finding, Kind};
use drave_durability::report::{
    FORMAT_VERSION, Report, ScenarioReport, Standing, TABLE_HEADER, html, table,
};
use roxmltree::{Document, Node, ParsingOptions};

/// Fails unless `page` is well-formed.
fn parsed(page: &str) -> Document<'_> {
    let options = ParsingOptions {
        allow_dtd: true,
        ..ParsingOptions::default()
    };
    Document::parse_with_options(page, options).expect("a well-formed page")
}

fn elements<'a>(page: &'a Document<'_>, name: &'a str) -> impl Iterator<Item = Node<'a, 'a>> {
    let elements = page.root_element().descendants();
    elements.filter(move |node| node.has_tag_name(name))
}

/// All text below a node.
fn text(node: Node<'_, '_>) -> String {
    let texts = node.descendants().filter(Node::is_text);
    texts.filter_map(|node| node.text()).collect()
}

/// The texts of all elements of a name.
fn texts(page: &Document<'_>, name: &str) -> Vec<String> {
    elements(page, name).map(text).collect()
}

fn scenario<'a>(report: &'a Report, target: usize, name: &str) -> &'a ScenarioReport {
    let mut scenarios = report.targets[target].scenarios.iter();
    let found = scenarios.find(|scenario| scenario.name == name);
    found.expect("a scenario of this name")
}

/// Fails unless the page is whole and can be used by everyone.
fn assert_sound(page: &str) {
    let page = parsed(page);
    let mut ids = HashSet::new();
    for node in page.root_element().descendants() {
        if let Some(id) = node.attribute("id") {
            assert!(ids.insert(id), "twice: {id}");
        }
    }
    for node in page.root_element().descendants() {
        for reference in ["href", "aria-labelledby"] {
            if let Some(id) = node.attribute(reference) {
                let id = id.trim_start_matches('#');
                assert!(ids.contains(id), "{reference}={id} leads nowhere");
            }
        }
        let named = |name| node.children().any(|child| child.has_tag_name(name));
        match node.tag_name().name() {
            "svg" => assert!(named("title") && named("desc"), "a picture without words"),
            "th" => assert!(node.has_attribute("scope"), "{}", text(node)),
            _ => {}
        }
    }
    // No level of headings is left out.
    let mut above = 0;
    for node in page.root_element().descendants() {
        let name = node.tag_name().name();
        if let Some(level) = name.strip_prefix('h').and_then(|level| level.parse().ok()) {
            assert!(level <= above + 1, "{name} below h{above}: {}", text(node));
            above = level;
        }
    }
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let page = html(&made_up::report());
    assert_sound(&page);
    for elsewhere in [
        "http:", "https:", "url(", "@import", "import(", "fetch(", "<link",
    ] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    let document = parsed(&page);
    for node in document.root_element().descendants() {
        for attribute in ["src", "srcset", "action", "data", "poster"] {
            assert!(!node.has_attribute(attribute), "{:?}", node.tag_name());
        }
        let href = node.attribute("href").unwrap_or("#");
        assert!(href.starts_with('#'), "{href}");
    }
    let mut metas = elements(&document, "meta");
    let policy = metas.find(|meta| meta.attribute("http-equiv") == Some("Content-Security-Policy"));
    let policy = policy.and_then(|meta| meta.attribute("content")).unwrap();
    assert!(policy.starts_with("default-src 'none';"), "{policy}");
}

#[test]
fn the_page_says_everything() {
    let report = made_up::report();
    let page = html(&report);
    let page = parsed(&page);
    let all = text(page.root_element());
    let headings = texts(&page, "h2");
    let codes = texts(&page, "code");
    for words in [&report.title, &report.started, &report.seed.to_string()] {
        assert!(all.contains(words.as_str()), "{words}");
    }
    assert!(codes.contains(&report.command));
    let (mut findings, mut operations) = (0, 0);
    for target in &report.targets {
        assert!(all.contains(&target.name));
        for scenario in &target.scenarios {
            assert!(headings.contains(&scenario.name), "{}", scenario.name);
            assert!(all.contains(&scenario.description));
            let said = scenario.notes.iter().chain(&scenario.skipped);
            for words in said.chain(scenario.faults.iter().map(|fault| &fault.name)) {
                assert!(all.contains(words.as_str()), "{words}");
            }
            let verdict = &scenario.verdict;
            if verdict.counts.operations > 0 {
                operations += 1;
                let words = format!("{} calls about topics", verdict.counts.operations);
                assert!(all.contains(&words), "{words}");
            }
            for finding in verdict.violations.iter().chain(&verdict.tolerated) {
                findings += 1;
                assert!(all.contains(finding.kind.label()));
                assert!(all.contains(finding.kind.description()));
                for sample in &finding.samples {
                    assert!(codes.contains(sample), "{sample}");
                }
            }
            for error in &scenario.availability.errors {
                assert!(codes.contains(&error.error), "{}", error.error);
            }
        }
    }
    assert!(findings > 0, "nothing was found, so nothing was shown");
    assert!(operations > 0, "nothing was called, so nothing was shown");
    // Three pictures of everything that was run.
    let scenarios = report.targets.iter().flat_map(|target| &target.scenarios);
    let run = scenarios.filter(|scenario| scenario.skipped.is_none());
    assert_eq!(elements(&page, "svg").count(), 3 * run.count());
}

#[test]
fn the_page_counts_transactions_where_there_are_some() {
    let mut report = made_up::report();
    let said = |report: &Report| text(parsed(&html(report)).root_element());
    assert!(!said(&report).contains("transaction"));
    let counts = &mut report.targets[0].scenarios[0].verdict.counts;
    counts.transactions_committed = 1_200;
    counts.transactions_aborted = 300;
    counts.transactions_unknown = 2;
    let words = "1,502 transactions: 1,200 committed, 300 aborted, 2 without an answer.";
    assert!(said(&report).contains(words));
}

#[test]
fn the_overview_has_a_row_a_scenario_and_says_how_each_ended() {
    let report = made_up::report();
    let standing = |target, name| scenario(&report, target, name).standing();
    assert_eq!(standing(0, "kill -9 of leaders"), Standing::Held);
    assert_eq!(standing(0, "power cut of all brokers"), Standing::Held);
    assert_eq!(standing(1, "power cut of all brokers"), Standing::Violated);
    assert_eq!(standing(1, "every link cut"), Standing::Unproven);
    assert_eq!(standing(1, "clock jump"), Standing::Skipped);
    let lost = scenario(&report, 1, "power cut of all brokers")
        .verdict
        .violations[0]
        .clone();
    assert_eq!(lost.kind, Kind::AcknowledgedAndLost);
    assert!(!report.holds());

    let page = html(&report);
    let page = parsed(&page);
    let overview = elements(&page, "table").next().unwrap();
    let rows = overview
        .descendants()
        .filter(|node| node.has_tag_name("tr"));
    // Each row without those of the header: its name, and of both targets a verdict.
    let rows: Vec<Vec<String>> = rows
        .skip(2)
        .map(|row| row.children().filter(Node::is_element).map(text).collect())
        .collect();
    let row = |name: &str| rows.iter().find(|row| row[0] == name).unwrap();
    let cut = row("power cut of all brokers");
    assert_eq!(cut[1], "✓ OK");
    let words = format!("{} acknowledged and lost", lost.count);
    assert!(
        cut[4].contains(&words) && cut[4].starts_with("✗ "),
        "{}",
        cut[4]
    );
    assert_eq!(
        row("clock jump")[4],
        "– skipped: the JVM cannot be given a clock of its own here"
    );
    assert_eq!(
        row("every link cut")[1],
        "? unproven: nothing was acknowledged"
    );
    assert_eq!(row("wiped disk")[4], "– not run");

    let lines = table(&report);
    assert_eq!(lines.len(), rows.len() * 2);
    assert!(lines.iter().all(|line| line.len() == TABLE_HEADER.len()));
    for (line, row) in lines.iter().step_by(2).zip(&rows) {
        assert_eq!(line[0], row[0]);
        assert!(row[1].ends_with(&line[2]), "{line:?}");
    }
}

#[test]
fn all_text_is_data_never_markup() {
    let evil = |what: &str| {
        format!(
            "{what}</title></style></script><script>alert('{what}')</script>&lt;\"'>]]>\u{1b}[2J\0"
        )
    };
    let mut report = made_up::report();
    report.title = evil("title");
    report.started = evil("started");
    report.command = evil("command");
    let target = &mut report.targets[0];
    target.name = evil("target");
    target.scenarios.truncate(2);
    let [first, second] = &mut target.scenarios[..] else {
        panic!("two scenarios");
    };
    first.name = evil("scenario");
    first.description = evil("description");
    first.notes = vec![evil("note")];
    first.faults[0].name = evil("fault");
    first.availability.faults[0].name = evil("impact");
    first.availability.errors = vec![drave_durability::availability::ErrorCount {
        error: evil("error"),
        count: 1,
    }];
    first.verdict.violations = vec![Finding {
        kind: Kind::Duplicated,
        count: 1,
        samples: vec![evil("sample")],
    }];
    first.availability.repeated = vec![drave_durability::availability::ErrorCount {
        error: evil("repeated"),
        count: 1,
    }];
    second.skipped = Some(evil("reason"));
    let page = html(&report);
    assert_sound(&page);
    let page = parsed(&page);
    assert_eq!(elements(&page, "script").count(), 1);
    assert_eq!(elements(&page, "style").count(), 1);
    let all = text(page.root_element());
    for what in [
        "title",
        "started",
        "command",
        "target",
        "scenario",
        "description",
        "note",
        "fault",
        "impact",
        "error",
        "repeated",
        "sample",
        "reason",
    ] {
        // As it was given, but for what no text may have.
        let shown = evil(what).replace(['\u{1b}', '\0'], "\u{fffd}");
        assert!(all.contains(&shown), "{what}");
    }
    for cell in table(&report).concat() {
        assert!(!cell.contains(char::is_control), "{cell:?}");
    }
}

#[test]
fn odd_reports_have_pages_too() {
    let whole = made_up::report();
    let mut report = whole.clone();
    report.targets.truncate(1);
    assert_sound(&html(&report));
    report.targets[0].scenarios.clear();
    assert_sound(&html(&report));
    assert!(!report.holds(), "nothing was run");
    report.targets.clear();
    assert_sound(&html(&report));
    assert!(table(&report).is_empty());

    // Many partitions and faults, and figures that only a damaged file can have.
    let mut report = whole;
    let scenario = &mut report.targets[0].scenarios[0];
    let gap = Gap {
        from_us: 0,
        until_us: u64::MAX,
        recovered: false,
    };
    scenario.availability.partitions = (0..2_000)
        .map(|partition| PartitionAvailability {
            partition,
            acknowledged: u64::MAX,
            longest_gap: Some(gap),
            outages: vec![gap],
        })
        .collect();
    scenario.faults = (0..500)
        .map(|number| Fault {
            name: format!("fault {number}"),
            from_us: number * 60_000,
            until_us: u64::MAX,
        })
        .collect();
    scenario.availability.faults = (scenario.faults.iter())
        .map(|fault| FaultImpact {
            name: fault.name.clone(),
            from_us: fault.from_us,
            until_us: fault.until_us,
            partitions: Vec::new(),
            outage: None,
            recovery: None,
        })
        .collect();
    let page = html(&report);
    assert_sound(&page);
    assert!(page.contains("24 worst of 2000"));
    for bucket_us in [0, u64::MAX] {
        let timeline = &mut report.targets[0].scenarios[0].availability.timeline;
        timeline.bucket_us = bucket_us;
        timeline.buckets.push(Bucket {
            from_us: u64::MAX,
            acknowledged: u64::MAX,
            p50_us: Some(0),
            p99_us: Some(u64::MAX),
        });
        let page = html(&report);
        assert_sound(&page);
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }
}

#[test]
fn json_comes_back_as_it_was_and_other_formats_are_refused() {
    let report = made_up::report();
    let mut json = Vec::new();
    report.to_writer(&mut json).unwrap();
    assert_eq!(Report::from_reader(json.as_slice()).unwrap(), report);

    let said = String::from_utf8(json).unwrap();
    let line = format!("\"version\": {FORMAT_VERSION},");
    assert!(said.contains(&line));
    let newer = said.replacen(&line, "\"version\": 99,", 1);
    let refusal = Report::from_reader(newer.as_bytes()).unwrap_err();
    assert!(
        matches!(refusal, ReadError::Version { found: 99, .. }),
        "{refusal}"
    );
    // Whatever else a later format may look like.
    let other = Report::from_reader(&b"{\"version\": 100, \"runs\": []}"[..]).unwrap_err();
    assert!(
        matches!(other, ReadError::Version { found: 100, .. }),
        "{other}"
    );
    for bytes in [
        &b""[..],
        b"[]",
        b"{}",
        format!("{{{line} \"title\": \"\"}}").as_bytes(),
        &said.as_bytes()[..said.len() / 2],
    ] {
        let refusal = Report::from_reader(bytes).unwrap_err();
        assert!(matches!(refusal, ReadError::Json(_)), "{refusal}");
    }
}
