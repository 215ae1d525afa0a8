//! Programs whose `main` is not ours: an interpreter that has loaded the engine as a library.
//!
//! Such a program says how it is executed anew ([`set_program`]), so that it comes to [`init`](super::init), and wraps the
//! copies that are made of it ([`set_around_fork`]), the waits that its signals may end ([`set_on_interrupt`]) and those in which
//! its other threads run ([`set_around_idle`]).

use std::ffi::OsString;
use std::io;
use std::sync::{Mutex, OnceLock};

use super::state::lock;
use crate::sys::clone::Copied;
use crate::sys::per_process::PerProcess;
use crate::sys::{bootstrap, signal};

/// Makes a copy by calling what it is given, once; that returns true in the child.
pub type AroundFork = fn(&mut dyn FnMut() -> bool);

/// Whether whoever started a wait is to give it up.
pub type OnInterrupt = fn() -> bool;

static AT_FORKSERVER_END: OnceLock<fn()> = OnceLock::new();
static ON_INTERRUPT: OnceLock<OnInterrupt> = OnceLock::new();
static AROUND_FORK: OnceLock<AroundFork> = OnceLock::new();
static PROGRAM: PerProcess<Mutex<Option<Vec<OsString>>>> = PerProcess::inherited();

/// Has every copy of a process of this program, by `fork` and in the fork server, made inside `around`: what must be done
/// before and after a fork in all programs of this kind. The first call counts.
pub fn set_around_fork(around: AroundFork) {
    let _ = AROUND_FORK.set(around);
}

/// Has waits for the fork server, which have no deadline, ask this when a signal handler ran, and ten times a second: when it says
/// so, the start fails with [`StartError::Interrupted`](super::StartError::Interrupted). The first call counts.
///
/// From now on, waits of the main thread also end as if a signal handler had run twice a second, since handlers of an interpreter
/// run only when it comes back.
pub fn set_on_interrupt(on_interrupt: OnInterrupt) {
    let _ = ON_INTERRUPT.set(on_interrupt);
    signal::set_handlers_run_later();
}

/// Has the fork server call this before it ends in order: what a preload function left to be done at the end. The first call counts.
pub fn set_at_forkserver_end(end: fn()) {
    let _ = AT_FORKSERVER_END.set(end);
}

/// See [`set_at_forkserver_end`].
pub(super) fn end_forkserver() {
    if let Some(end) = AT_FORKSERVER_END.get() {
        end();
    }
}

/// See [`set_on_interrupt`].
pub(crate) fn is_interrupted() -> bool {
    ON_INTERRUPT.get().is_some_and(|on_interrupt| on_interrupt())
}

/// What `spawn` and the fork server execute: a program, and its arguments, its own name first. It must call
/// [`init`](super::init) before it does anything else, and be the same build. Takes effect at the next start of either.
///
/// # Panics
/// When `argv` is empty.
pub fn set_program(argv: Vec<OsString>) {
    assert!(!argv.is_empty(), "a program has a name");
    bootstrap::set_in_place();
    *lock(PROGRAM.get()) = Some(argv);
}

/// Whether the engine may have set variables of the environment since this was last asked: a program that keeps a copy of them
/// makes another.
#[must_use]
pub fn has_environment_changed() -> bool {
    bootstrap::has_env_changed()
}

/// What [`set_program`] was given.
pub(super) fn program() -> Option<Vec<OsString>> {
    lock(PROGRAM.get()).clone()
}

/// This thread begins to wait: in a program whose signal handlers run later, it comes back first after half a second, then ever
/// later.
pub fn begin_wait() {
    signal::restart_recheck_interval();
}

/// Runs a wait of a pool's worker that has nothing to do, once.
pub type AroundIdle = fn(&mut dyn FnMut());

static AROUND_IDLE: OnceLock<AroundIdle> = OnceLock::new();

/// Has what a pool's worker does while it waits done inside `around`: an interpreter lets its other threads run, and runs signal
/// handlers after it. The first call counts.
pub fn set_around_idle(around: AroundIdle) {
    let _ = AROUND_IDLE.set(around);
}

/// Waits as the program wants it.
pub(crate) fn idle(wait: impl FnOnce()) {
    let Some(around) = AROUND_IDLE.get() else { return wait() };
    let mut wait = Some(wait);
    around(&mut || {
        if let Some(wait) = wait.take() {
            wait();
        }
    });
}

/// Makes a copy of this process as the program wants it.
pub(super) fn copy<T>(make: impl FnOnce() -> io::Result<Copied<T>>) -> io::Result<Copied<T>> {
    let Some(around) = AROUND_FORK.get() else { return make() };
    let mut make = Some(make);
    let mut made = None;
    around(&mut || {
        made = make.take().map(|make| make());
        matches!(made, Some(Ok(Copied::Child)))
    });
    made.unwrap_or_else(|| Err(io::Error::other("the program did not let a copy be made")))
}
