//! The program's side of the fork server: its life, its preload function and its replacement. `zygote` is the other side, and
//! [`server`](super::server) the requests to one zygote.
//!
//! Once a program has started a second process, the zygote creates one process in advance: a *spare*, which waits for its
//! order. A start is then one message to an existing process, and the next spare is cloned while that process runs. (Measured
//! on two processors: a start and join takes two thirds of its time without a spare.)
//!
//! A process has at most one fork server, which is executed at the first start that needs it, or by [`start_forkserver`]. One
//! mutex guards it. A start holds that mutex while it waits for the zygote, which may take as long as a preload function.
//! Starts therefore acquire it by [`lock_forkserver`], which can be given up, and the supervisor thread only tries it: the
//! owner may be waiting for that thread to execute a program.
//!
//! Order of locks: [`ProcessState::starting`], the fork server, the preload function; the supervisor's locks come after all of
//! them.
//!
//! A copy of the process has no fork server and no preload function: both belong to the process that set them.

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

/// How many attempts a start makes if the zygote is killed during each of them. The limit ends the loop where each zygote is
/// killed, as by a limit on memory.
const ATTEMPTS: usize = 3;

/// The fork server of this process. [`FORKSERVER`] holds the only value.
#[derive(Debug, Default)]
pub(crate) enum Forkserver {
    /// There is no zygote: none was needed yet, or the last one was retired or found dead. The next start executes one.
    #[default]
    NotStarted,
    /// The zygote was executed, and is not ready yet: its preload function may be running, or have failed.
    Starting(Server),
    /// The zygote has reported that it is ready. It may have died since, which the next request detects.
    Running(Server),
    /// The system does not allow a zygote to create processes. Final: no later start tries again, unless [`set_preload`] or
    /// [`end_forkserver`] resets it.
    Refused,
}

/// The fork server of this process. Never destroyed, so a program that ends leaves the zygote to [`exit`](super::exit).
static FORKSERVER: PerProcess<Mutex<Forkserver>> = PerProcess::new(|_| Mutex::default());
/// The preload function, which the next zygote receives with its argument. Descriptors of the argument stay open here, for
/// later zygotes.
static PRELOAD: PerProcess<Mutex<Option<(Function, Payload)>>> = PerProcess::new(|_| Mutex::default());

/// Waits for the fork server of this process, which another thread may be using. Panics of earlier owners are ignored.
///
/// # Errors
/// [`StartError::Interrupted`] when `give_up` returns true.
pub(super) fn lock_forkserver(give_up: GiveUp<'_>) -> Result<MutexGuard<'static, Forkserver>, StartError> {
    lock_unless(FORKSERVER.get(), give_up)
}

/// Returns whether there is a preload function: then a process of another start method cannot replace one of the fork server.
pub(super) fn has_preload() -> bool {
    lock(PRELOAD.get()).is_some()
}

/// Registers a requested spare, so that it is reaped if it is killed. Returns false if it does not exist yet, or if a thread is
/// using the fork server. Runs on the supervisor thread, and never blocks.
fn adopt_spare() -> bool {
    FORKSERVER.get().try_lock().is_ok_and(|mut server| server.adopt_spare())
}

/// Sets a function that runs once in the fork server, before it creates processes, which share the memory that the function
/// initialised. `None` removes it. A fork server that runs ends in order, and the next start executes another. Blocks while
/// another thread waits for the fork server.
pub fn set_preload(preload: Option<(Function, Payload)>) {
    *lock(PRELOAD.get()) = preload;
    let _ = lock(FORKSERVER.get()).retire(); // the next fork server starts with the new function
}

/// Starts the fork server, if none runs, without waiting until it is ready: its preload function runs in the background. The
/// next start with [`StartMethod::Forkserver`](super::StartMethod::Forkserver) waits until it is ready, and fails if it fails.
/// Blocks while another thread waits for the fork server.
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
/// takes longer than `grace`. Does nothing if another thread uses the fork server for all that time. The next start executes
/// another.
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
/// slower. False before the first start has found that out, and while another thread uses the fork server; never blocks.
#[must_use]
pub fn is_forkserver_refused() -> bool {
    let server = FORKSERVER.existing().map(|server| server.try_lock());
    matches!(server, Some(Ok(server)) if matches!(*server, Forkserver::Refused))
}

/// Returns the process id of this process's fork server, if one runs or starts. Blocks while another thread waits for the fork
/// server.
#[must_use]
pub fn forkserver_pid() -> Option<u32> {
    lock(FORKSERVER.get()).pid()
}

impl Forkserver {
    /// Starts a process, registers it with the supervisor and sends its order. Returns `None` if the system refuses fork
    /// servers; no process exists then. Executes a zygote if there is none, waits until it is ready, and makes up to
    /// [`ATTEMPTS`] attempts if zygotes die. No attempt runs the function twice: see [`Server::start`].
    ///
    /// Where the zygote reports `ENOSYS`, `EPERM` or `EINVAL` for its clone, the system refuses; any other error, such as
    /// `EAGAIN` at a limit on processes, fails this start only, and the zygote continues to serve.
    ///
    /// # Errors
    /// - [`StartError::Interrupted`] when `give_up` returned true. The zygote, and a request to it, are kept for the next
    ///   start.
    /// - [`StartError::Preload`] when the preload function failed. The next start executes another zygote and runs the function
    ///   again.
    /// - [`StartError::Forkserver`] when zygotes died in each attempt.
    /// - [`StartError::NotInitialised`], and [`StartError::Os`] when a system call failed.
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
    ///
    /// # Errors
    /// [`StartError::NotInitialised`], and [`StartError::Os`] when a system call failed.
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

    /// Returns the process id of the zygote, which may have died.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Starting(server) | Self::Running(server) => Some(server.zygote.pid()),
            Self::NotStarted | Self::Refused => None,
        }
    }

    /// Ends the zygote and returns it; the next start executes another. A zygote that is ready is asked by a message to end in
    /// order. Otherwise it is killed, or, if it runs as another user, ends when its channel closes. The spare is killed.
    ///
    /// The zygote reads END after an earlier request, so this waits for the answer to that for up to [`ASK_EVERY`]; then the
    /// zygote is killed too. Returns `None` if there was no zygote. In any case the state is [`Forkserver::NotStarted`]
    /// afterwards, also after [`Forkserver::Refused`]. The supervisor reaps the zygote.
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

    /// Registers a requested spare with the supervisor. Returns false if the zygote has not answered yet. See
    /// [`Server::adopt_spare`].
    pub(super) fn adopt_spare(&mut self) -> bool {
        match self {
            Self::Running(server) => server.adopt_spare(),
            Self::NotStarted | Self::Starting(_) | Self::Refused => true,
        }
    }
}
