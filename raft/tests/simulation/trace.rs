//! The trace of a run: every log line, with the simulated time, hashed. Two runs
//! are the same when their hashes are. `SIM_LOG` also prints the lines.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// The simulated time, milliseconds since the start.
static NOW_MS: AtomicU64 = AtomicU64::new(0);
static HASHED: Mutex<Option<DefaultHasher>> = Mutex::new(None);

/// What the trace is made of where nothing else is asked for.
const DEFAULT_FILTER: &str = "error,simulation=info";

pub(crate) fn now_ms() -> u64 {
    NOW_MS.load(Ordering::Relaxed)
}

pub(crate) fn set_now_ms(ms: u64) {
    NOW_MS.store(ms, Ordering::Relaxed);
}

/// The hash of everything so far.
pub(crate) fn hash() -> u64 {
    let hashed = HASHED.lock().unwrap();
    hashed.as_ref().map_or(0, Hasher::finish)
}

struct Clock;

impl FormatTime for Clock {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        write!(out, "{:>6} ms", now_ms())
    }
}

struct Sink {
    printed: bool,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut hashed = HASHED.lock().unwrap();
        hashed.get_or_insert_with(DefaultHasher::new).write(bytes);
        if self.printed {
            io::stderr().write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Sink;

    fn make_writer(&'a self) -> Sink {
        Sink {
            printed: self.printed,
        }
    }

    /// Errors are printed in any case: the process may end with one.
    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Sink {
        Sink {
            printed: self.printed || *meta.level() == Level::ERROR,
        }
    }
}

/// Starts the trace of this process: of `filter`, or of what the nodes do and claim.
pub(crate) fn start(filter: Option<&str>, printed: bool) {
    let filter = EnvFilter::new(filter.unwrap_or(DEFAULT_FILTER));
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_timer(Clock)
        .with_writer(Sink { printed })
        .with_env_filter(filter)
        .init();
}
