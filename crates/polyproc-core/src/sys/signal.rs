//! Signal masks and dispositions of the engine's processes, and the handler that reports a stack overflow.
//!
//! | process or thread | mask | dispositions | set by |
//! |---|---|---|---|
//! | thread of the engine in the program | all blocked | the program's own | `process/threads.rs` |
//! | forked child | the forking thread's, see [`restore_mask`] | the parent's | `process/enter.rs` |
//! | executed program, until its order | none blocked | `SIGPIPE` ignored; [`on_fault`] | `process/boot.rs` |
//! | zygote, and its child until the order | all blocked | as above | `process/zygote.rs` |
//! | executed or cloned child, after its order | none blocked | as above | `process/enter.rs` |
//!
//! A pool's worker also has a handler for `SIGINT` ([`leave_sigint_to_parent`]) and, unless it was forked, one for `SIGSTKFLT`
//! ([`end_group_by_handler`]).
//!
//! In the program itself, the engine changes no disposition, and no mask except in its own threads. Handlers make only
//! async-signal-safe calls and use only atomics (SAFETY.md, 7).
//!
//! Another part of this file bounds sleeps in programs whose handlers only set a flag: see [`set_handlers_run_later`].

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::time::Duration;

use crate::prim::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// A `sigset_t`.
#[derive(Clone, Copy)]
pub(crate) struct SignalSet(libc::sigset_t);

impl SignalSet {
    /// Returns the set without signals.
    pub(crate) fn empty() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: `sigemptyset` initialises the set.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: initialised by the line above.
        Self(unsafe { set.assume_init() })
    }

    /// Returns the set of all signals, except for the ones that libc keeps for itself.
    fn full() -> Self {
        let mut set = Self::empty();
        // SAFETY: the set is initialised.
        unsafe { libc::sigfillset(&raw mut set.0) };
        set
    }

    /// Adds a signal. An invalid number changes nothing.
    pub(super) fn add(&mut self, signal: c_int) {
        // SAFETY: the set is initialised; the call refuses an invalid number.
        unsafe { libc::sigaddset(&raw mut self.0, signal) };
    }

    /// Returns the address for libc, valid as long as `self` stays in its place.
    pub(super) fn as_ptr(&self) -> *const libc::sigset_t {
        &raw const self.0
    }
}

/// Sets the signal mask of this thread.
fn set_mask(set: &SignalSet) {
    // SAFETY: the set is initialised; null says that the old one is not requested.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut()) };
    debug_assert_eq!(failed, 0, "SIG_SETMASK is valid");
}

thread_local! {
    /// The mask that this thread had before [`block_all`].
    static BEFORE: Cell<Option<SignalSet>> = const { Cell::new(None) };
}

/// Blocks all signals in this thread: a helper thread must not run the user's handlers, and the terminal's Ctrl-C must not end
/// the zygote while its parent continues. Signals that are sent to the thread's process go to another thread, or stay pending
/// if there is none, as in the zygote.
pub(crate) fn block_all() {
    let mut before = SignalSet::empty();
    // SAFETY: both sets are initialised.
    let failed = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, SignalSet::full().as_ptr(), &raw mut before.0) };
    debug_assert_eq!(failed, 0, "SIG_SETMASK is valid");
    BEFORE.set(Some(before));
}

/// Restores, in a forked child, the mask that the forking thread had before [`block_all`], which it inherited from the thread
/// that started it. Does nothing if the forking thread did not call that.
pub(crate) fn restore_mask() {
    if let Some(before) = BEFORE.take() {
        set_mask(&before);
    }
}

/// Unblocks all signals in this thread. Signals that were sent to this process during its set-up are delivered now, so the
/// dispositions of the process must be in place by then.
pub(crate) fn unblock_all() {
    set_mask(&SignalSet::empty());
}

/// See [`set_handlers_run_later`]. Set once, never reset; copies of the process inherit it.
static HANDLERS_RUN_LATER: AtomicBool = AtomicBool::new(false);

/// Declares that signal handlers of this program only set a flag, as those of interpreters do. The main thread acts on the flag
/// when it returns from the engine. A signal that arrives just before the main thread sleeps does not end the sleep, so the
/// thread sleeps for at most [`recheck_interval`] and then returns as if a handler had run.
pub(crate) fn set_handlers_run_later() {
    HANDLERS_RUN_LATER.store(true, Ordering::Relaxed);
}

/// Returns whether sleeps of this thread are bounded by [`recheck_interval`]: it is the main thread of a program that called
/// [`set_handlers_run_later`].
pub(crate) fn comes_back() -> bool {
    HANDLERS_RUN_LATER.load(Ordering::Relaxed) && super::thread_id() == super::process_stamp::process_id()
}

/// How long the first sleep of a wait lasts at most: the delay with which a signal may be handled.
const FIRST_INTERVAL: Duration = Duration::from_millis(500);
/// The limit of the interval, as of all intervals of waits (`robust::RecheckInterval`).
const LONGEST_INTERVAL: Duration = Duration::from_secs(64);

thread_local! {
    /// The limit of this thread's next sleep. See [`recheck_interval`].
    static INTERVAL: Cell<Duration> = const { Cell::new(FIRST_INTERVAL) };
}

/// Returns the longest sleep of this thread: 0.5 s at first, doubled after each sleep up to 64 s, so that a long wait rarely
/// wakes.
pub(crate) fn recheck_interval() -> Duration {
    INTERVAL.get()
}

/// Doubles the interval, after a sleep that lasted as long as the interval. [`futex`](super::futex) and [`watch`](super::watch)
/// call it.
pub(crate) fn lengthen_recheck_interval() {
    INTERVAL.set((recheck_interval() * 2).min(LONGEST_INTERVAL));
}

/// Resets the interval, when this thread begins another wait. The face calls it by `process::begin_wait`, once for a wait that
/// it repeats after each interruption.
pub(crate) fn restart_recheck_interval() {
    INTERVAL.set(FIRST_INTERVAL);
}

/// A handler with `SA_SIGINFO`: signal, details, context.
type SigHandler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Sets the disposition of `signal` for the process. `handler` is a [`SigHandler`] as an address, `SIG_IGN` or `SIG_DFL`. Only
/// the signal itself is blocked while its handler runs.
///
/// # Errors
/// `EINVAL` if the signal is invalid or its disposition is fixed.
fn set_action(signal: c_int, handler: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`: default disposition, empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the handlers of this module only make async-signal-safe calls; SIG_DFL and SIG_IGN run nothing.
    if unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Ignores `SIGPIPE`, as std does before `main`: a write to a closed pipe fails instead of ending the process. An executed
/// child never reaches std's code.
pub(crate) fn ignore_sigpipe() -> io::Result<()> {
    set_action(libc::SIGPIPE, libc::SIG_IGN, 0)
}

/// Leaves the terminal's Ctrl-C to the parent: installs a handler that does nothing. Programs that this process starts would
/// inherit `SIG_IGN`.
pub(crate) fn leave_sigint_to_parent() -> io::Result<()> {
    extern "C" fn nothing(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {}
    set_action(libc::SIGINT, nothing as SigHandler as usize, libc::SA_SIGINFO | libc::SA_RESTART)
}

/// Installs a handler for `SIGSTKFLT` that kills the process group that this process leads, and returns that signal. The kernel
/// never sends it and no program uses it. `exec` resets the handler; by default the signal ends only the process itself.
///
/// For the parent-death signal of a pool's worker, see [`parent_death`](super::parent_death). The handler ends this process in
/// any case.
pub(super) fn end_group_by_handler() -> io::Result<rustix::process::Signal> {
    extern "C" fn end_group(_: c_int, _: *mut libc::siginfo_t, _: *mut c_void) {
        // SAFETY: `getpid` and `kill` are async-signal-safe.
        let own = unsafe { libc::getpid() };
        // SAFETY: as above; the group has this process's id, also in a new session.
        unsafe { libc::kill(-own, libc::SIGKILL) };
        // SAFETY: as above. This ends a process that has left its group.
        unsafe { libc::kill(own, libc::SIGKILL) };
    }
    set_action(libc::SIGSTKFLT, end_group as SigHandler as usize, libc::SA_SIGINFO)?;
    Ok(rustix::process::Signal::STKFLT)
}

/// The socket to which the stack-overflow handler reports, or -1.
static REPORT_TO: AtomicI32 = AtomicI32::new(-1);
/// The bytes that the handler sends: a whole message. Meaningful only with a descriptor in [`REPORT_TO`].
static REPORT: AtomicU64 = AtomicU64::new(0);
/// The part of the alternate stack for the handler itself. The size of the signal frame, which depends on the processor's
/// registers, is added to it.
const ALTERNATE_STACK_LEN_BYTES: usize = 16 * 1024;
/// From `linux/auxvec.h`: the size of the signal frame in bytes.
const AT_MINSIGSTKSZ: libc::c_ulong = 51;
/// A fault at most this far from the stack pointer, above or below, is a stack overflow: frames are probed page by page.
const NEAR_BYTES: usize = 128 * 1024;

/// Installs the stack-overflow handler for the main thread, on an alternate stack that is never freed. Children created by
/// `clone3` inherit both. An overflow of another thread, which has no such stack, ends the process by the same signal without a
/// report.
///
/// std installs its own handler before `main`, which the engine's children skip. std's handler turns the signal into `SIGABRT`;
/// this one leaves it as it is.
///
/// # Errors
/// An error of `sigaltstack(2)` or `sigaction(2)`.
pub(crate) fn install_overflow_handler() -> io::Result<()> {
    // SAFETY: the call reads the auxiliary vector of the process, and returns 0 if it has no such entry.
    let frame = unsafe { libc::getauxval(AT_MINSIGSTKSZ) };
    let len = ALTERNATE_STACK_LEN_BYTES + usize::try_from(frame).unwrap_or(0);
    let stack = libc::stack_t {
        ss_sp: Box::leak(vec![0u8; len].into_boxed_slice()).as_mut_ptr().cast(),
        ss_flags: 0,
        ss_size: len,
    };
    // SAFETY: the memory was just leaked, so it is never freed and only this thread uses it.
    if unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        set_action(signal, on_fault as SigHandler as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)?;
    }
    Ok(())
}

/// Makes the handler send `report` over the socket `channel` when the stack overflows. `report` is a whole message with an
/// empty head (`conn::bare_message`). The channel must stay open; the last call decides.
pub(crate) fn report_overflow_to(channel: BorrowedFd<'_>, report: [u8; 8]) {
    REPORT.store(u64::from_ne_bytes(report), Ordering::Relaxed);
    // Release pairs with the Acquire in `on_fault`.
    REPORT_TO.store(channel.as_raw_fd(), Ordering::Release);
}

/// Returns the stack pointer at the fault. Each supported architecture stores it elsewhere.
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    #[cfg(target_arch = "x86_64")]
    let pointer = context.uc_mcontext.gregs[libc::REG_RSP as usize].cast_unsigned();
    #[cfg(target_arch = "aarch64")]
    let pointer = context.uc_mcontext.sp;
    usize::try_from(pointer).unwrap_or_default()
}

/// Reports a stack overflow, then lets the fault occur again without a handler, so that the exit status names the true signal.
///
/// A fault counts as an overflow if the kernel sent the signal and the address is near the stack pointer; other faults are not
/// reported. If the socket's buffer is full the report is lost, as the handler must not block.
extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid record.
    let info = unsafe { &*info };
    // SAFETY: SIGSEGV and SIGBUS carry an address if the kernel sent them (code above 0); otherwise the value is not used.
    let address = unsafe { info.si_addr() } as usize;
    // SAFETY: with SA_SIGINFO the third argument is a `ucontext_t`.
    let stack = stack_pointer(unsafe { &*context.cast() });
    if info.si_code > 0 && address.abs_diff(stack) < NEAR_BYTES {
        // Acquire pairs with the Release in `report_overflow_to`.
        let (fd, message) = (REPORT_TO.load(Ordering::Acquire), REPORT.load(Ordering::Relaxed).to_ne_bytes());
        // SAFETY: `send` is async-signal-safe; the message is on this stack; a call with a stale descriptor number only fails.
        unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }
    let reset = set_action(signal, libc::SIG_DFL, 0);
    if reset.is_err() || info.si_code <= 0 {
        // SAFETY: `raise` is async-signal-safe. A signal that a process sent does not occur again by itself.
        unsafe { libc::raise(signal) };
    }
}
