//! Notices that an event loop does not turn any more, from a thread that has none.

use crate::admin::Operator;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(1);
/// A loop that has not turned for this long is worth a line in the log.
const SUSPECT: Duration = Duration::from_secs(5);
/// One that has not for this long never will: whoever restarts us can do more than we can.
const HOPELESS: Duration = Duration::from_secs(30);

/// Starts the thread. It ends with the program, or by [`stop`].
pub fn start(operator: Arc<Operator>) -> io::Result<()> {
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        let mut told = false;
        loop {
            let before = Instant::now();
            std::thread::sleep(LOOK);
            if !operator.listening.load(Ordering::Relaxed) {
                return;
            }
            // The whole machine was asleep, or we were stopped: then nobody's clock says anything.
            if before.elapsed() > 2 * LOOK {
                continue;
            }
            let lag = operator.worker_lag();
            if lag < SUSPECT {
                told = false;
            } else if lag >= HOPELESS {
                tracing::error!(?lag, threads = ?threads(), "an event loop is stuck for good: aborting");
                std::process::abort();
            } else if !told {
                told = true;
                tracing::error!(?lag, threads = ?threads(), "an event loop has not turned");
            }
        }
    })?;
    Ok(())
}

/// Ends the thread at its next look.
pub fn stop(operator: &Operator) {
    operator.listening.store(false, Ordering::Relaxed);
}

/// What each thread of this process is doing, as far as the system says.
fn threads() -> BTreeMap<String, String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let describe = |task: std::fs::DirEntry| {
        let path = task.path();
        let name = format!("{} {}", task.file_name().to_string_lossy(), read(path.join("comm")));
        (name, format!("{} {}", read(path.join("wchan")), read(path.join("syscall"))))
    };
    tasks.flatten().map(describe).collect()
}
