//! The program's side of the fork server. `zygote` is the other side.
//!
//! Once a program has started a second process, the zygote creates one process in advance: a *spare*, which waits for its
//! order. A start is then one message to an existing process, and the next spare is cloned while that process runs.
//! (Measured on two processors: a start and join takes two thirds of its time without a spare.)

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::error::{StartError, os};
use super::give_up::{ASK_EVERY, GiveUp, lock_unless};
use super::launch::discard;
use super::server::{Failure, ForkRequest, MakeError, Server};
use super::state::{ProcessState, lock};
use super::supervisor::Supervisor;
use super::zygote::tag;
use super::{Child, Signal};
use crate::deadline::Deadline;
use crate::function::Function;
use crate::prim::Ordering;
use crate::sys::credentials::Credentials;
use crate::sys::per_process::PerProcess;
use crate::wire::Payload;

/// How many attempts a start makes if the zygote is killed during each of them.
const ATTEMPTS: usize = 3;

/// The fork server of this process.
#[derive(Debug, Default)]
pub(crate) enum Forkserver {
    #[default]
    NotStarted,
    /// The zygote was executed, and is not ready yet.
    Starting(Server),
    Running(Server),
    /// The system does not allow a zygote to create processes.
    Refused,
}

static FORKSERVER: PerProcess<Mutex<Forkserver>> = PerProcess::new(|_| Mutex::default());
static PRELOAD: PerProcess<Mutex<Option<(Function, Payload)>>> = PerProcess::new(|_| Mutex::default());

/// Waits for the fork server of this process, which another thread may be using.
///
/// # Errors
/// [`StartError::Interrupted`] when `give_up` returns true.
pub(super) fn lock_forkserver(give_up: GiveUp<'_>) -> Result<MutexGuard<'static, Forkserver>, StartError> {
    lock_unless(FORKSERVER.get(), give_up)
}

/// Returns whether there is a preload function.
pub(super) fn has_preload() -> bool {
    lock(PRELOAD.get()).is_some()
}

/// Registers a requested spare, so that it is reaped if it is killed. Returns false if it does not exist yet.
fn adopt_spare() -> bool {
    FORKSERVER.get().try_lock().is_ok_and(|mut server| server.adopt_spare())
}

/// Sets a function that runs once in the fork server, before it creates processes, which share the memory that the function
/// initialised. `None` removes it.
pub fn set_preload(preload: Option<(Function, Payload)>) {
    *lock(PRELOAD.get()) = preload;
    let _ = lock(FORKSERVER.get()).retire(); // the next fork server starts with the new function
}

/// Starts the fork server, if none runs, without waiting until it is ready: its preload function runs in the background. The
/// next start with [`StartMethod::Forkserver`] waits until it is ready, and fails if it fails.
///
/// # Errors
/// [`StartError::NotInitialised`], [`StartError::Exiting`], and [`StartError::Os`] when a system call failed.
pub fn start_forkserver() -> Result<(), StartError> {
    let state = ProcessState::current();
    if state.exiting.load(Ordering::Relaxed) {
        return Err(StartError::Exiting);
    }
    let _starting = lock(&state.starting);
    lock(FORKSERVER.get()).launch()
}

/// Ends the fork server in order, if one runs, so that clean-up which a preload function deferred is done. Kills it if that
/// takes longer than `grace`.
pub fn end_forkserver(grace: Duration) {
    let Some(forkserver) = FORKSERVER.existing() else { return };
    let deadline = Deadline::after(grace);
    let Ok(mut forkserver) = lock_unless(forkserver, &|| deadline.has_passed()) else { return };
    let zygote = forkserver.retire();
    drop(forkserver);
    if let Some(zygote) = zygote
        && !matches!(zygote.wait_through_signals(deadline), Ok(Some(_)))
    {
        let _ = zygote.signal(Signal::KILL); // fails for another user's, which ends when its channel closes
    }
}

/// Returns whether the system does not allow the fork server to create processes. Programs are executed instead, which is
/// slower.
#[must_use]
pub fn is_forkserver_refused() -> bool {
    let server = FORKSERVER.existing().map(|server| server.try_lock());
    matches!(server, Some(Ok(server)) if matches!(*server, Forkserver::Refused))
}

/// Returns the process id of this process's fork server, if one runs.
#[must_use]
pub fn forkserver_pid() -> Option<u32> {
    lock(FORKSERVER.get()).pid()
}

impl Forkserver {
    /// Starts a process, registers it with the supervisor and sends its order. Returns `None` if the system refuses fork
    /// servers.
    pub(super) fn start(
        &mut self,
        mut request: ForkRequest<'_>,
        give_up: GiveUp<'_>,
    ) -> Result<Option<Child>, StartError> {
        let mut killed = None;
        for _ in 0..ATTEMPTS {
            self.launch()?;
            if let Self::Starting(server) = self {
                let ready = server.await_ready(give_up);
                if matches!(ready, Err(StartError::Interrupted)) {
                    return Err(StartError::Interrupted); // the next start continues to wait
                }
                match (ready, std::mem::take(self)) {
                    (Ok(true), Self::Starting(server)) => *self = Self::Running(server),
                    (Ok(_), _) => *self = Self::Refused,
                    (Err(error @ StartError::Forkserver { .. }), _) => {
                        killed = Some(error);
                        continue;
                    }
                    (Err(error), _) => return Err(error),
                }
            }
            let Self::Running(server) = self else { return Ok(None) };
            match server.start(&mut request, give_up) {
                Ok(child) => {
                    if server.is_spare_requested() {
                        Supervisor::get()?.adopt_soon(adopt_spare);
                    }
                    return Ok(Some(child));
                }
                Err(Failure::Make(MakeError::Interrupted)) => return Err(StartError::Interrupted),
                Err(Failure::Start(error)) => return Err(error),
                Err(Failure::Make(MakeError::Gone)) => *self = Self::NotStarted,
                Err(Failure::Make(MakeError::Clone(error))) => {
                    if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)) {
                        return Err(os("cloning the fork server")(error));
                    }
                    let _ = self.retire();
                    *self = Self::Refused;
                }
                Err(Failure::Make(MakeError::Os(error))) => {
                    return Err(os("receiving a process from the fork server")(error));
                }
            }
        }
        Err(killed.unwrap_or_else(|| StartError::Forkserver {
            why: format!("the fork server was killed {ATTEMPTS} times in a row while it created a process"),
        }))
    }

    /// Executes a zygote, unless there is one with this process's credentials. Does not wait until it is ready.
    pub(super) fn launch(&mut self) -> Result<(), StartError> {
        self.retire_another_users()?;
        if matches!(self, Self::NotStarted) {
            *self = Self::Starting(Server::launch(lock(PRELOAD.get()).as_ref())?);
        }
        Ok(())
    }

    /// Retires a zygote with other credentials: a program that gave up privileges must not start processes that have them.
    fn retire_another_users(&mut self) -> Result<(), StartError> {
        if let Self::Starting(server) | Self::Running(server) = self
            && server.credentials != Credentials::own().map_err(os("reading the credentials of this process"))?
        {
            let _ = self.retire();
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Starting(server) | Self::Running(server) => Some(server.zygote.pid()),
            Self::NotStarted | Self::Refused => None,
        }
    }

    /// Ends the zygote and returns it; the next start executes another. A zygote that is ready is asked by a
    /// message to end in order. Otherwise it is killed, or, if it runs as another user, ends when its channel closes.
    pub(super) fn retire(&mut self) -> Option<Child> {
        let is_ready = matches!(self, Self::Running(_));
        let (Self::Starting(mut server) | Self::Running(mut server)) = std::mem::take(self) else { return None };
        if !is_ready || server.zygote.channel().send(tag::END, &[], &[]).is_err() {
            discard(&server.zygote);
        }
        // The zygote first answers an earlier request. If it does not do so in time, it is killed; then the pid_slot is final.
        let soon = Deadline::after(ASK_EVERY);
        let mut spare = server.take_spare(&|| soon.has_passed());
        if matches!(spare, Err(Failure::Make(MakeError::Interrupted))) {
            discard(&server.zygote);
            spare = server.take_spare(&|| false);
        }
        if let Ok(Some(spare)) = spare {
            discard(&spare);
        }
        Some(server.zygote)
    }

    /// Registers a requested spare with the supervisor. Returns false if the zygote has not answered yet.
    pub(super) fn adopt_spare(&mut self) -> bool {
        match self {
            Self::Running(server) => server.adopt_spare(),
            Self::NotStarted | Self::Starting(_) | Self::Refused => true,
        }
    }
}
