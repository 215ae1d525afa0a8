//! Hooks for programs that load the engine as a library, such as an interpreter.
//!
//! Such a program sets the command line that executes it again and reaches [`init`](super::init) ([`set_program`]). Hooks run
//! around each copy of the process ([`set_around_fork`]), when a signal may end a wait ([`set_on_interrupt`]), and around waits
//! during which its other threads may run ([`set_around_idle`]).
//!
//! The binding for Python sets the hooks when its module is imported. Copies of a process inherit them; an executed child must
//! set them itself, before [`init`](super::init). A hook cannot be removed. Without a hook, as in a Rust program, the step that
//! it surrounds runs directly.

use std::ffi::OsString;
use std::io;
use std::sync::{Mutex, OnceLock};

use super::role;
use super::state::lock;
use crate::sys::clone::Copied;
use crate::sys::per_process::PerProcess;
use crate::sys::{env, signal};

/// Calls its argument once, which copies the process and returns true in the child.
pub type AroundFork = fn(&mut dyn FnMut() -> bool);

/// Returns whether the current wait must be given up.
pub type OnInterrupt = fn() -> bool;

/// See [`set_at_forkserver_end`].
static AT_FORKSERVER_END: OnceLock<fn()> = OnceLock::new();
/// See [`set_on_interrupt`].
static ON_INTERRUPT: OnceLock<OnInterrupt> = OnceLock::new();
/// See [`set_around_fork`].
static AROUND_FORK: OnceLock<AroundFork> = OnceLock::new();
/// See [`set_program`]; never empty. A copy of the process inherits it.
static PROGRAM: PerProcess<Mutex<Option<Vec<OsString>>>> = PerProcess::inherited();

/// Sets the function that makes each copy of a process of this program, by `fork` and in the fork server. It adds the work that
/// programs of this kind need before and after a fork. Only the first call has an effect.
pub fn set_around_fork(around: AroundFork) {
    let _ = AROUND_FORK.set(around);
}

/// Sets the function that a wait for the fork server, which has no deadline, calls after a signal handler ran and every 100 ms.
/// When it returns true, the start fails with [`StartError::Interrupted`](super::StartError::Interrupted). Only the first call
/// has an effect.
///
/// From then on, waits of the main thread also end as if a signal handler had run, first after 0.5 s, then after intervals that
/// double up to 64 s: an interpreter runs signal handlers only when the wait returns.
pub fn set_on_interrupt(on_interrupt: OnInterrupt) {
    let _ = ON_INTERRUPT.set(on_interrupt);
    signal::set_handlers_run_later();
}

/// Sets the function that the fork server calls before it ends in order, for clean-up that a preload function deferred. Only
/// the first call has an effect.
pub fn set_at_forkserver_end(end: fn()) {
    let _ = AT_FORKSERVER_END.set(end);
}

/// Calls the function of [`set_at_forkserver_end`], in the zygote, just before it exits.
pub(super) fn end_forkserver() {
    if let Some(end) = AT_FORKSERVER_END.get() {
        end();
    }
}

/// Returns whether the program gives up its wait for the fork server: see [`set_on_interrupt`]. False without that function.
pub(crate) fn is_interrupted() -> bool {
    ON_INTERRUPT.get().is_some_and(|on_interrupt| on_interrupt())
}

/// Sets the command line that `spawn` and the fork server execute, the program first. The program must call
/// [`init`](super::init) before it does anything else, and be the same build. Takes effect at the next start of either.
///
/// # Panics
/// If `argv` is empty.
pub fn set_program(argv: Vec<OsString>) {
    assert!(!argv.is_empty(), "`argv` must not be empty");
    role::set_in_place();
    *lock(PROGRAM.get()) = Some(argv);
}

/// Returns whether the engine may have set environment variables since the last call. A program that keeps a copy of the
/// environment then copies it again.
#[must_use]
pub fn has_environment_changed() -> bool {
    env::has_changed()
}

/// Returns the command line that [`set_program`] set.
pub(super) fn program() -> Option<Vec<OsString>> {
    lock(PROGRAM.get()).clone()
}

/// Begins a wait of this thread: resets the intervals after which waits return for signal handlers (see [`set_on_interrupt`]).
pub fn begin_wait() {
    signal::restart_recheck_interval();
}

/// Calls its argument, a wait of a pool's worker, once.
pub type AroundIdle = fn(&mut dyn FnMut());

static AROUND_IDLE: OnceLock<AroundIdle> = OnceLock::new();

/// Sets the function that runs each wait of a pool's worker: an interpreter lets its other threads run during the wait, and
/// runs signal handlers after it. Only the first call has an effect.
pub fn set_around_idle(around: AroundIdle) {
    let _ = AROUND_IDLE.set(around);
}

/// Runs `wait` through the function of [`set_around_idle`], if there is one. That function may end the process, and does not
/// return then.
pub(crate) fn idle(wait: impl FnOnce()) {
    let Some(around) = AROUND_IDLE.get() else { return wait() };
    let mut wait = Some(wait);
    around(&mut || {
        if let Some(wait) = wait.take() {
            wait();
        }
    });
}

/// Copies this process through the function of [`set_around_fork`], if there is one. Returns in both processes.
///
/// # Errors
/// That of `make`; another if the function did not call its argument.
pub(super) fn copy<T>(make: impl FnOnce() -> io::Result<Copied<T>>) -> io::Result<Copied<T>> {
    let Some(around) = AROUND_FORK.get() else { return make() };
    let mut make = Some(make);
    let mut made = None;
    around(&mut || {
        made = make.take().map(|make| make());
        matches!(made, Some(Ok(Copied::Child)))
    });
    made.unwrap_or_else(|| Err(io::Error::other("the function of `set_around_fork` made no copy")))
}
