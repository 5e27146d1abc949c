//! What a person sees while the benchmark runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;

use super::producers::Counters;

/// How often the line is drawn anew.
const TICK: Duration = Duration::from_millis(250);

/// One line: which scenario, how far, the fault of the moment, the rate, the longest gap.
/// Where standard error is no terminal, only what is worth a line of its own is printed.
pub struct Progress {
    bar: ProgressBar,
    now: Arc<Mutex<Now>>,
}

#[derive(Default)]
struct Now {
    scenario: String,
    fault: String,
    counters: Option<Arc<Counters>>,
}

impl Progress {
    /// For so many scenarios.
    pub fn new(scenarios: usize) -> Progress {
        let bar = ProgressBar::new(scenarios as u64);
        let style = ProgressStyle::with_template("{bar:20} {pos}/{len} {elapsed} {wide_msg}");
        bar.set_style(style.expect("a template that is written above"));
        Progress {
            bar,
            now: Arc::default(),
        }
    }

    /// Draws until the returned task is ended.
    pub fn draw(&self) -> tokio::task::JoinHandle<()> {
        let (bar, now) = (self.bar.clone(), self.now.clone());
        tokio::spawn(async move {
            let mut before = 0;
            loop {
                tokio::time::sleep(TICK).await;
                bar.set_message(now.lock().line(&mut before));
                bar.tick();
            }
        })
    }

    /// A scenario begins.
    pub(super) fn scenario(&self, name: &str, counters: &Arc<Counters>) {
        *self.now.lock() = Now {
            scenario: name.to_owned(),
            fault: String::new(),
            counters: Some(counters.clone()),
        };
    }

    /// A fault begins, or is over: an empty name.
    pub(super) fn fault(&self, name: &str) {
        self.now.lock().fault = name.to_owned();
    }

    /// A scenario has ended, with this result.
    pub fn done(&self, line: &str) {
        self.bar.inc(1);
        if self.bar.is_hidden() {
            eprintln!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Now {
    fn line(&self, before: &mut u64) -> String {
        let Some(counters) = &self.counters else {
            return String::new();
        };
        let acknowledged = counters.acknowledged.load(Ordering::Relaxed);
        let rate = acknowledged.saturating_sub(*before) * 1_000 / TICK.as_millis() as u64;
        *before = acknowledged;
        let gap = counters.worst_gap_us.load(Ordering::Relaxed) / 1_000;
        let fault = match self.fault.as_str() {
            "" => "no fault",
            fault => fault,
        };
        let scenario = &self.scenario;
        format!("{scenario}: {fault} · {rate} acks/s · worst gap {gap} ms")
    }
}
