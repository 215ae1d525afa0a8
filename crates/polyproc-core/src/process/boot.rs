//! An executed child runs its work before `main`.
//!
//! A child has a [token](super::role) in its environment and its channel as descriptor 3. An `.init_array` constructor (feature
//! `auto-init`) or [`init`] removes the token and runs the child's work instead of `main`. The constructor is linked into every
//! program that uses the crate: binaries, tests, doctests, examples.
//!
//! The steps, in a process that has one thread:
//!
//! 1. Take the token. Without one, or if descriptor 3 is not a socket as the engine makes it, the process is an ordinary
//!    program: return.
//! 2. Take the descriptors of the role (a zygote has the pid slot as descriptor 4) and close all others, where `posix_spawn(3)`
//!    could not.
//! 3. Ignore `SIGPIPE` and install the stack-overflow handler, as std does before a `main` that this process never reaches.
//! 4. Run the program's constructors after this one, if the constructor called.
//! 5. Serve as a zygote, or receive an order and run it. Neither returns: the process exits.
//!
//! A program that a child executes may inherit a token by accident; hence the check of descriptor 3. Token and descriptor are
//! trusted: the process that executes this program can make it run an order. Nothing here distinguishes a program that has more
//! privileges than that process (set-user-ID, file capabilities).
#![cfg_attr(
    feature = "auto-init",
    expect(unsafe_code, reason = "the constructor is called by the dynamic linker, and calls the later ones")
)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::role::{self, Role};
use super::{enter, panic, zygote};
use crate::conn::Channel;
use crate::sys::exit::exit_now;
#[cfg(feature = "auto-init")]
use crate::sys::image;
use crate::sys::pid_slot::PidSlot;
use crate::sys::{exec, fd, signal, socket};

/// Runs the work of this process and exits, if it was executed as a child. Returns at once in any other process. Call it as the
/// first line of `main`, before other threads start. A program with the feature `auto-init` does not need it.
pub fn init() {
    role::set_in_place();
    take_over(|| {});
}

#[cfg(feature = "auto-init")]
// SAFETY: the section holds pointers to functions of the type `Constructor`, and this is one.
/// The entry in `.init_array`, which the dynamic linker calls before `main`.
#[unsafe(link_section = ".init_array")]
#[used]
static CONSTRUCTOR: image::Constructor = constructor;

/// Makes the linker keep the constructor, by a use of it. Each start that executes a program calls this.
pub(crate) fn keep_constructor() {
    #[cfg(feature = "auto-init")]
    std::hint::black_box(&CONSTRUCTOR);
}

/// Runs the constructors after this one, then the child's work: C++ statics and Rust registries that later constructors create
/// must exist in the child too. Returns in an ordinary program, whose later constructors the dynamic linker runs. Does nothing
/// in a library.
///
/// # Safety
/// Only the dynamic linker calls this, with the arguments of `main`.
#[cfg(feature = "auto-init")]
unsafe extern "C" fn constructor(
    argc: std::ffi::c_int,
    argv: *const *const std::ffi::c_char,
    envp: *const *const std::ffi::c_char,
) {
    // In a library that is loaded later, `main` runs already: only the program's own constructor comes before it.
    if !image::is_in_program(constructor as *const () as usize) {
        return;
    }
    role::set_in_place();
    take_over(|| {
        for rest in image::constructors_after(constructor) {
            // SAFETY: these are the program's own constructors, run in their order with the arguments we were given, and
            // once: `take_over` never returns to the loop that would run them again.
            unsafe { rest(argc, argv, envp) };
        }
    });
}

/// Performs step 1 and, in a child, the other steps: returns in an ordinary program only. A child that fails, or that panics in
/// the engine's code, exits with 70 and no report.
fn take_over(run_remaining_constructors: impl FnOnce()) {
    // Before `main`, or as its first line as `init` demands, there is no other thread.
    let Some((role, parent_pid)) = role::take() else { return };
    let Ok(socket) = fd::take_inherited(exec::FIRST_FD) else { return };
    if !socket::is_seqpacket(socket.as_fd()) {
        std::mem::forget(socket); // an ordinary program with a copied token; the descriptor is its own
        return;
    }
    let ended = catch_unwind(AssertUnwindSafe(|| run(role, parent_pid, socket, run_remaining_constructors)));
    exit_now(match ended {
        Ok(Ok(never)) => match never {},
        Ok(Err(_)) | Err(_) => 70, // EX_SOFTWARE of sysexits.h; the parent reads this status, and the end of the channel
    })
}

/// Steps 2 to 5. `socket` is the child's end of its channel, and `parent_pid` the process that set the token.
///
/// # Errors
/// When a descriptor is missing or a system call failed; those of [`zygote::serve`] and [`enter::run`].
fn run(
    role: Role,
    parent_pid: u32,
    socket: OwnedFd,
    run_remaining_constructors: impl FnOnce(),
) -> io::Result<std::convert::Infallible> {
    let pid_slot = match role {
        Role::Zygote => Some(PidSlot::map(fd::take_inherited(exec::FIRST_FD + 1)?)?),
        Role::Process => None,
    };
    if !exec::gives_nothing_else() {
        // Python calls `init` late: descriptors that the interpreter's start opened are closed too.
        let handed_over = 1 + i32::from(pid_slot.is_some());
        fd::close_from(exec::FIRST_FD + handed_over)?;
    }
    signal::ignore_sigpipe()?;
    signal::install_overflow_handler()?;
    run_remaining_constructors();
    let channel = Channel::from(socket);
    match pid_slot {
        Some(pid_slot) => zygote::serve(parent_pid, &channel, &pid_slot),
        None => {
            panic::install_hook(false);
            enter::run(channel)
        }
    }
}
