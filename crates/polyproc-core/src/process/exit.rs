//! The end of the program: daemons are told to go, the others are waited for. (Python's `multiprocessing.util._exit_function`.)

use std::io::{self, Write as _};
use std::panic::catch_unwind;
use std::time::Duration;

use super::state::ProcessState;
use super::{Child, Signal};
use crate::deadline::Deadline;
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::sys::{bootstrap, clone};

/// Milliseconds.
static GRACE: AtomicU64 = AtomicU64::new(5_000);
static REGISTERED: AtomicBool = AtomicBool::new(false);

/// How long a daemonic process has between `SIGTERM` and `SIGKILL` when the program ends. Five seconds if not set.
pub fn set_daemon_grace(grace: Duration) {
    GRACE.store(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Has [`end_children`] run when the program ends. Once: a process copied from this one copies the registration too.
pub(super) fn register() -> io::Result<()> {
    extern "C" fn at_exit() {
        // A panic has nobody to go to here, and must not unwind into libc.
        let _ = catch_unwind(end_children);
    }
    if REGISTERED.swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    bootstrap::at_exit(at_exit)
}

/// Tells daemons to end, joins the others, then kills what is left.
pub(super) fn end_children() {
    let Some(state) = ProcessState::existing() else { return };
    state.exiting.store(true, Ordering::Relaxed);
    let users = || state.children().into_iter().filter(Child::is_visible);
    let daemons: Vec<_> = users().filter(Child::is_daemon).collect();
    for daemon in &daemons {
        // One that cannot be signalled is killed below, or dies by its bond to this process.
        let _ = daemon.signal(Signal::TERMINATE);
    }
    // Again, as another thread may have been in the middle of a start.
    while let Some(other) = users().find(|child| !child.is_daemon()) {
        if !join(&other, Deadline::NEVER) {
            break;
        }
    }
    let deadline = Deadline::after(Duration::from_millis(GRACE.load(Ordering::Relaxed)));
    for daemon in daemons {
        join(&daemon, deadline);
    }
    for left in state.children() {
        // A program that gave up its privileges may not signal them; they end when its channels close.
        if left.signal(Signal::KILL).is_ok() {
            join(&left, Deadline::NEVER);
        }
    }
}

/// Ends this process, a child, with an exit code of its own, and without a word to its parent: as after the return of its
/// function, its children are ended or joined, and `atexit(3)` handlers do not run.
pub fn leave(code: i32) -> ! {
    end_children();
    // What cannot be written any more is lost, as at any exit.
    let _ = io::stdout().flush();
    clone::exit_now(code)
}

/// Waits for the child's end; false when that cannot be done, or not in time.
fn join(child: &Child, deadline: Deadline) -> bool {
    matches!(child.wait_through_signals(deadline), Ok(Some(_)))
}
