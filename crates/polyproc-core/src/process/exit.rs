//! The end of the program: daemons are terminated, other children joined. (Python's `multiprocessing.util._exit_function`.)
//!
//! [`end_children`] runs as an `atexit(3)` handler of the program, and from [`leave`] in a child, which does not run such
//! handlers. The table in `docs/design/start.md` ("The end") lists its steps. It runs on the thread that ends the process;
//! other threads may still run, and may be starting processes. It does not run if the program is killed or calls `_exit`: then
//! the bonds end the children that have one.

use std::io::{self, Write as _};
use std::panic::catch_unwind;
use std::time::Duration;

use super::child::existing_children;
use super::state::ProcessState;
use super::{Child, Signal};
use crate::deadline::Deadline;
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::sys::exit::{at_exit, exit_now};

/// See [`set_daemon_grace`], in milliseconds. A copy of the process inherits it.
static GRACE: AtomicU64 = AtomicU64::new(5_000);
/// True once [`register`] was called, also in a copy of the process, which inherits the handler with it.
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Sets how long a daemonic process has between `SIGTERM` and `SIGKILL` when the program ends. The default is 5 s.
pub fn set_daemon_grace(grace: Duration) {
    GRACE.store(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Registers [`end_children`] to run when the program ends. Registers it once: a copy of this process has the registration too.
/// Called when the supervisor starts, without which there are no children.
///
/// # Errors
/// When libc has no memory for the handler.
pub(super) fn register() -> io::Result<()> {
    extern "C" fn run() {
        // No caller could handle a panic here, and it must not unwind into libc.
        let _ = catch_unwind(end_children);
    }
    if REGISTERED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    at_exit(run)
}

/// Ends or joins all children of this process, as `docs/design/start.md` describes:
///
/// 1. Sends `SIGTERM` to daemons. From here on, starts fail with [`StartError::Exiting`](super::StartError::Exiting).
/// 2. Joins the other children, without a limit and through signals, also ones that a running start creates meanwhile.
/// 3. Joins the daemons, for up to the grace period, which begins here.
/// 4. Kills and reaps all that remain, with the zygote and the spare. A child that may not be signalled is left.
///
/// The zygote's rehearsal also calls this, in a process without children.
pub(super) fn end_children() {
    if let Some(state) = ProcessState::existing() {
        state.exiting.store(true, Ordering::Relaxed);
    }
    let Some(children) = existing_children() else { return };
    let users = || children.all().into_iter().filter(Child::is_visible);
    let daemons: Vec<_> = users().filter(Child::is_daemon).collect();
    for daemon in &daemons {
        // A daemon that cannot be signalled is killed below, or dies by its bond to this process.
        let _ = daemon.signal(Signal::TERMINATE);
    }
    // Repeated, since another thread may have been starting a process.
    while let Some(other) = users().find(|child| !child.is_daemon()) {
        if !join(&other, Deadline::NEVER) {
            break;
        }
    }
    let deadline = Deadline::after(Duration::from_millis(GRACE.load(Ordering::Relaxed)));
    for daemon in daemons {
        join(&daemon, deadline);
    }
    for left in children.all() {
        // A program that gave up privileges may not be permitted to signal them; they end when its channels close.
        if left.signal(Signal::KILL).is_ok() {
            join(&left, Deadline::NEVER);
        }
    }
}

/// Ends this process, a child, with the exit code `code` and without a report to its parent. As after the return of its
/// function, its children are ended or joined, and `atexit(3)` handlers do not run. Flushes std's standard output, last.
pub fn leave(code: i32) -> ! {
    end_children();
    // Output that cannot be written is lost, as at any exit.
    let _ = io::stdout().flush();
    exit_now(code)
}

/// Waits for the child's end. Returns false if the wait failed or the deadline passed.
fn join(child: &Child, deadline: Deadline) -> bool {
    matches!(child.wait_through_signals(deadline), Ok(Some(_)))
}
