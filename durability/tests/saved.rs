//! A history in a file is the same when it is read again, and so is what the judge says of it.

mod histories;

use drave_durability::judge::judge;
use drave_durability::saved::{FORMAT_VERSION, Saved};
use histories::defects::Defect;
use histories::{Fate, Planned, Settled, clean};

#[test]
fn a_saved_history_comes_back_and_gets_the_same_verdict() {
    let fates = [
        Fate::Acknowledged,
        Fate::GivenUpAndWritten,
        Fate::Acknowledged,
        Fate::GivenUp,
        Fate::AcknowledgedSomewhere,
    ];
    let planned: Vec<_> = (0..120)
        .map(|number| Planned {
            producer: number % 2,
            partition: number / 2 % 2,
            fate: fates[number as usize % 5],
            hole: 0,
        })
        .collect();
    let clean = clean(2, &[], &planned, 2, &[(0, 100)], &Settled::ALL);
    for defect in Defect::ALL {
        let mut history = clean.clone();
        defect.plant(&mut history, 5);
        let saved = Saved {
            version: FORMAT_VERSION,
            target: "drave".to_owned(),
            scenario: "kill-leader".to_owned(),
            history,
        };
        let mut file = Vec::new();
        saved.to_writer(&mut file).unwrap();
        let read = Saved::from_reader(file.as_slice()).unwrap();
        assert_eq!(read, saved);
        let verdict = judge(&read.history);
        assert_eq!(verdict, judge(&saved.history));
        let found: Vec<_> = verdict.violations.iter().map(|it| it.kind).collect();
        assert_eq!(found, defect.kinds(), "{defect:?}");
        for cut in [0, 1, file.len() / 2] {
            assert!(Saved::from_reader(&file[..cut]).is_err(), "{cut} bytes");
        }
    }
}
