//! The steps that start methods share: execute the program, register the child, send it its order.

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

static EXECUTABLE: PerProcess<Mutex<Option<OsString>>> = PerProcess::inherited();

/// Sets the program that `spawn` and the fork server execute in place of `/proc/self/exe`, which may lead to an emulator or
/// to the dynamic linker. It must be the same build. Takes effect at the next start of either.
pub fn set_executable(path: impl Into<OsString>) {
    *lock(EXECUTABLE.get()) = Some(path.into());
}

/// Executes this program again as `role` and registers it with the supervisor. It gets `fds`, first the other end of `channel`.
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

/// Returns a handle to the child `pid` of this process, which it registers with the supervisor.
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

/// Kills a process that has no order; the supervisor reaps it.
pub(super) fn discard(child: &Child) {
    // Fails for a process of another user, which ends when its channel closes.
    let _ = child.signal(Signal::KILL);
}
