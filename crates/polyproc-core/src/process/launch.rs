//! The steps that start methods share: execute the program, register the child, send it its order. `spawn` uses all of them,
//! the fork server [`execute`] for its zygote and [`send_order`] for each process, and `fork` [`known`].
//!
//! A child that cannot be registered or sent its order is killed, so that a failed start leaves no process.

use std::ffi::OsString;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Mutex;

use super::error::{StartError, os};
use super::order::StartRequest;
use super::role::{self, Role};
use super::state::lock;
use super::supervisor::{self, Supervisor};
use super::{Child, Signal, StartMethod, boot, host};
use crate::conn::{Channel, is_peer_gone};
use crate::sys::per_process::PerProcess;
use crate::sys::{exec, pidfd};
use crate::wire::Payload;

/// The path of [`set_executable`]; `None` for the default. A copy of the process inherits it.
static EXECUTABLE: PerProcess<Mutex<Option<OsString>>> = PerProcess::inherited();

/// Sets the program that `spawn` and the fork server execute in place of `/proc/self/exe`, which may lead to an emulator or to
/// the dynamic linker. It must be the same build. Takes effect at the next start of either. The arguments stay those of this
/// process, or of [`set_program`](super::set_program).
pub fn set_executable(path: impl Into<OsString>) {
    *lock(EXECUTABLE.get()) = Some(path.into());
}

/// Executes this program again as `role` and registers it with the supervisor. It gets `fds`, first the other end of `channel`,
/// as descriptors 3 and up. `env` is its whole environment, to which the token is added. Blocks until the supervisor thread has
/// executed it.
///
/// # Errors
/// [`StartError::NotInitialised`] if this program would run its `main` as a child; else as [`known`], and [`StartError::Os`]
/// when `posix_spawn(3)` failed.
pub(super) fn execute(
    role: Role,
    mut env: Vec<(OsString, OsString)>,
    channel: Channel,
    fds: Vec<OwnedFd>,
) -> Result<Child, StartError> {
    boot::keep_constructor();
    if !role::is_in_place() {
        return Err(StartError::NotInitialised);
    }
    env.push(role.token());
    let (path, argv) = match host::program() {
        Some(argv) => (argv[0].clone(), argv),
        None => ("/proc/self/exe".into(), std::env::args_os().collect()),
    };
    let path = lock(EXECUTABLE.get()).clone().unwrap_or(path);
    let program = exec::Program { path, argv, env, fds };
    let pid = Supervisor::get()?.exec(program).map_err(os("executing the program"))?;
    known(pid, channel, StartMethod::Spawn)
}

/// Returns a handle to the child `pid` of this process, which it registers with the supervisor. `pid` must have been returned
/// by the call that created the child, and not have been reaped by the engine.
///
/// # Errors
/// [`StartError::Os`] when no pidfd can be opened: the child was killed and reaped. When it cannot be registered, its channel
/// is closed.
pub(super) fn known(pid: u32, channel: Channel, method: StartMethod) -> Result<Child, StartError> {
    let opening = os("opening a process descriptor (pidfd_open, Linux 5.3)");
    let child = match pidfd::open_or_end(pid) {
        Ok(pidfd) => Child::new(pid, pidfd, channel, method),
        // It has ended, and other code of the program reaped it (`waitpid(-1)`). Its messages are still in the channel.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            return Child::ended(pid, channel, method).map_err(opening);
        }
        Err(error) => return Err(opening(error)),
    };
    supervisor::adopt(&child)?;
    Ok(child)
}

/// Sends a new process its order. Returns false if it is dead already, which a join reports. Kills the process if the order
/// cannot be sent for another reason.
///
/// `child` is registered, and is given no second order. `stdio`, `parent_death` and the descriptors of `input` are copied into
/// the message.
///
/// # Errors
/// [`StartError::Os`] when the descriptors or a memory file for the order are not available.
pub(super) fn send_order(
    child: &Child,
    order: &StartRequest,
    stdio: &[BorrowedFd<'_>; 3],
    parent_death: Option<BorrowedFd<'_>>,
    input: &Payload,
) -> Result<bool, StartError> {
    match order.send(child.channel(), stdio, parent_death, input) {
        Ok(()) => Ok(true),
        Err(error) if is_peer_gone(&error) => {
            child.note_closed();
            Ok(false)
        }
        Err(error) => {
            discard(child);
            Err(os("sending a new process its argument")(error))
        }
    }
}

/// Kills a process that has no order; the supervisor reaps it. One that runs as another user cannot be killed: it ends with
/// this process, or when its channel closes, which the table of children keeps open until it is reaped.
pub(super) fn discard(child: &Child) {
    // Fails for a process of another user, which ends when its channel closes.
    let _ = child.signal(Signal::KILL);
}
