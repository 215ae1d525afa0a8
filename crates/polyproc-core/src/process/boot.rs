//! An executed child runs its work before `main`.
//!
//! A child has a [token](super::role) in its environment and its channel as descriptor 3. An `.init_array` constructor (feature
//! `auto-init`) or [`init`] removes the token and runs the child's work instead of `main`. The constructor is linked
//! into every program that uses the crate: binaries, tests, doctests, examples.
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

/// Runs the work of this process and exits, if it was executed as a child. Returns at once in any other process.
pub fn init() {
    role::set_in_place();
    take_over(|| {});
}

#[cfg(feature = "auto-init")]
// SAFETY: the section holds pointers to functions of the type `Constructor`, and this is one.
#[unsafe(link_section = ".init_array")]
#[used]
static CONSTRUCTOR: image::Constructor = constructor;

/// Makes the linker keep the constructor, by a use of it.
pub(crate) fn keep_constructor() {
    #[cfg(feature = "auto-init")]
    std::hint::black_box(&CONSTRUCTOR);
}

/// Runs the constructors after this one, then the child's work: C++ statics and Rust registries that later constructors create must
/// exist in the child too.
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
