//! How a freshly executed child takes over before `main`, and how a program hears of its end.
//!
//! A child carries a token in its environment and its channel as descriptor 3. A plain `.init_array` constructor (feature
//! `auto-init`) or [`init`] sees the token, removes it, and runs the child instead of `main`. The constructor is linked
//! into every program that uses the crate: binaries, tests, doctests, examples.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(feature = "auto-init")]
use super::image;
use super::{cell::PidCell, clone, exec, fd, signal, socket};
use crate::conn::Channel;
use crate::prim::{AtomicBool, Ordering};

/// The environment variable that makes a new program one of our children.
const TOKEN: &str = "POLYPROC_CHILD";
/// Something in this program looks for the token, so that starting another copy of it is safe.
static IN_PLACE: AtomicBool = AtomicBool::new(false);

/// What a child was executed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// To make processes on request.
    Zygote,
    /// To run one function.
    Process,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Zygote => "zygote",
            Self::Process => "process",
        }
    }

    /// The token for a child of this process.
    pub(crate) fn token(self) -> (OsString, OsString) {
        (TOKEN.into(), format!("{}:{}", self.name(), std::process::id()).into())
    }

    fn parse(token: &OsStr) -> Option<(Self, u32)> {
        let (name, parent) = token.to_str()?.split_once(':')?;
        let role = [Self::Zygote, Self::Process].into_iter().find(|role| role.name() == name)?;
        Some((role, parent.parse().ok()?))
    }
}

/// Whether children of this program will be taken over.
pub(crate) fn is_in_place() -> bool {
    IN_PLACE.load(Ordering::Relaxed)
}

/// This program comes to [`init`] when it is started as a child.
pub(crate) fn set_in_place() {
    IN_PLACE.store(true, Ordering::Relaxed);
}

/// Runs this process as the child it was started as, and then never returns; returns at once in any other process.
pub fn init() {
    set_in_place();
    take_over(|| {});
}

#[cfg(feature = "auto-init")]
// SAFETY: the section holds pointers to functions of the type `Constructor`, and this is one.
#[unsafe(link_section = ".init_array")]
#[used]
static CONSTRUCTOR: image::Constructor = constructor;

/// The engine's constructor, when the feature `auto-init` is on. Reading it also makes the linker keep it.
pub(crate) fn keep_constructor() {
    #[cfg(feature = "auto-init")]
    std::hint::black_box(&CONSTRUCTOR);
}

/// Source of "run the rest first": C++ statics and Rust registries made by later constructors must exist in the child too.
#[cfg(feature = "auto-init")]
unsafe extern "C" fn constructor(
    argc: std::ffi::c_int,
    argv: *const *const std::ffi::c_char,
    envp: *const *const std::ffi::c_char,
) {
    // In a library that is loaded later, `main` is running already: only the program's own constructor can take over.
    if !image::is_in_program(constructor as *const () as usize) {
        return;
    }
    IN_PLACE.store(true, Ordering::Relaxed);
    take_over(|| {
        for rest in image::constructors_after(constructor) {
            // SAFETY: these are the program's own constructors, run in their order with the arguments we were given, and
            // once: `take_over` never returns to the loop that would run them again.
            unsafe { rest(argc, argv, envp) };
        }
    });
}

fn take_over(run_remaining_constructors: impl FnOnce()) {
    let Some((role, parent_pid)) = std::env::var_os(TOKEN).as_deref().and_then(Role::parse) else { return };
    // SAFETY: before `main`, or as its first line as `init` demands, there is no other thread.
    unsafe { std::env::remove_var(TOKEN) };
    let Ok(socket) = fd::take_inherited(exec::FIRST_FD) else { return };
    if !socket::is_seqpacket(socket.as_fd()) {
        std::mem::forget(socket); // not ours: somebody else's token in an ordinary program
        return;
    }
    let last_words = catch_unwind(AssertUnwindSafe(|| run(role, parent_pid, socket, run_remaining_constructors)));
    clone::exit_now(match last_words {
        Ok(Ok(never)) => match never {},
        Ok(Err(_)) | Err(_) => 70, // EX_SOFTWARE of sysexits.h: the parent sees the end of file and this status
    })
}

fn run(
    role: Role,
    parent_pid: u32,
    socket: OwnedFd,
    run_remaining_constructors: impl FnOnce(),
) -> io::Result<std::convert::Infallible> {
    let cell = match role {
        Role::Zygote => Some(PidCell::map(fd::take_inherited(exec::FIRST_FD + 1)?)?),
        Role::Process => None,
    };
    if !exec::gives_nothing_else() {
        // Python's init comes late: what its start has opened meanwhile is closed, too.
        let handed_over = 1 + i32::from(cell.is_some());
        fd::close_from(exec::FIRST_FD + handed_over)?;
    }
    signal::ignore_sigpipe()?;
    signal::install_overflow_handler()?;
    run_remaining_constructors();
    let channel = Channel::from(socket);
    match cell {
        Some(cell) => crate::process::serve_zygote(parent_pid, &channel, &cell),
        None => {
            crate::process::panic::install_hook(false);
            crate::process::run_child(channel)
        }
    }
}

/// Runs `handler` when the program ends by `exit(3)` or by returning from `main`.
pub(crate) fn at_exit(handler: extern "C" fn()) -> io::Result<()> {
    // SAFETY: registering has no precondition; the handler is a function of this program.
    if unsafe { libc::atexit(handler) } == 0 { Ok(()) } else { Err(io::ErrorKind::OutOfMemory.into()) }
}

/// This process has other variables than those that it was executed with.
static ENV_CHANGED: AtomicBool = AtomicBool::new(true);

/// Whether variables were set since this was last asked.
pub(crate) fn has_env_changed() -> bool {
    ENV_CHANGED.swap(false, Ordering::Relaxed)
}

/// Sets an environment variable, or removes it. Only for a child that is being set up.
pub(crate) fn set_env(name: &OsStr, value: Option<&OsStr>) {
    ENV_CHANGED.store(true, Ordering::Relaxed);
    match value {
        // SAFETY: the child being set up has one thread.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
}
