//! One zygote (the fork server's process, which clones itself for each start) as its program sees it: requests and answers.
//!
//! The module [`forkserver`](super::forkserver) owns the only [`Server`] of a process, behind its mutex, and is its only caller:
//! in starts, at the zygote's end, and on the supervisor thread, in [`Server::adopt_spare`], which does not wait for the zygote.
//! The messages are listed in [`zygote`](super::zygote), deaths at each step in `docs/design/start.md`. An *order* is a message
//! with a process's settings, function and argument; a *spare* is a process that was requested before its order was known.
//!
//! A start ([`Server::start`]) has these steps:
//!
//! 1. It computes the differences between the wanted settings and the zygote's own, which the order contains.
//! 2. It takes the spare, if one was requested, and sends it the order.
//! 3. Without a spare, or if the spare was killed while it waited, it requests a process, waits for the answer and sends that
//!    process the order.
//! 4. From the second process on, it requests the next spare, and does not wait for the answer.
//!
//! Invariants:
//!
//! - At most one request is pending, so an answer needs no number: it belongs to [`Spare::Asked`].
//! - The pid slot is 0 when a request is sent. After the zygote has been reaped, it holds the id of the process of the last
//!   request, or 0 if that request made no process. After a valid answer it is not read.
//! - A process receives its order only after this process holds its pidfd and has registered it, so a failed start has run
//!   nothing.
//!
//! The zygote may be killed or stopped at any time, or be damaged by a preload function. After a malformed answer a start kills
//! the zygote, as after its death, and reads the pid slot; [`Server::adopt_spare`] ends only the process in the pid slot.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::environment::delta;
use super::error::{StartError, os};
use super::give_up::{ASK_EVERY, GiveUp};
use super::launch::{self, discard, send_order};
use super::order::{StartRequest, decode_bounds};
use super::role::Role;
use super::supervisor;
use super::zygote::tag;
use super::{Child, ExitStatus, Signal, StartMethod};
use crate::conn::{Channel, Message, is_peer_gone};
use crate::deadline::Deadline;
use crate::function::Function;
use crate::sys::bounds::Bounds;
use crate::sys::credentials::Credentials;
use crate::sys::pid_slot::PidSlot;
use crate::sys::{pidfd, watch};
use crate::wire::Payload;
use crate::wire::{Reader, WireError, Writer};

/// How long the requester polls for an answer before it sleeps: about the time in which the kernel clones the zygote. Waking
/// the requester would delay the zygote, and the new process after it.
const SPIN: Duration = Duration::from_micros(150);

/// One zygote, and the process that was requested from it. Lives in [`Forkserver`](super::forkserver::Forkserver), whose mutex
/// guards all fields, from the execution of the zygote until it is retired or found dead.
///
/// Dropping it closes the program's end of the zygote's channel only when the supervisor has reaped the zygote too, as the
/// table of children holds another handle.
#[derive(Debug)]
pub(crate) struct Server {
    /// The zygote's process and channel. It has no [`ProcessInfo`](super::child::ProcessInfo), so it is invisible to the user.
    pub(super) zygote: Child,
    /// The word to which the kernel writes the id of a process that the zygote creates. This process clears it before each
    /// request, and reads it only after the zygote was reaped, or when an answer is of no use.
    pid_slot: PidSlot,
    /// The environment that the zygote was executed with. Its children inherit it, and the order contains the difference.
    env: Vec<(OsString, OsString)>,
    /// The working directory that the zygote was executed in, absolute; `None` if it did not exist any more.
    current_dir: Option<PathBuf>,
    /// The credentials of the zygote and its children. [`Forkserver::launch`](super::forkserver::Forkserver::launch) retires a
    /// server whose credentials differ from this process's.
    pub(super) credentials: Credentials,
    /// The bounds of the zygote and its children, as the zygote reported them; empty until it is ready.
    bounds: Bounds,
    /// The process that was requested ahead of its order.
    spare: Spare,
    /// True if it runs a preload function, which [`Server::await_ready`] then names as the cause of an early end.
    preloads: bool,
}

/// The state of the process that is requested ahead of its order. A start that finds no spare also passes through
/// [`Spare::Asked`], for the process that it waits for.
#[derive(Debug)]
enum Spare {
    /// No process has been started yet. The first start requests no spare, as there may never be a second one.
    NotWanted,
    /// No process is requested. The next successful start requests one.
    None,
    /// A process was requested; this is the program's end of its channel. An answer to the request is in the zygote's channel
    /// or will come, unless the zygote dies. Dropping the channel ends the process, which reads the end of file instead of an
    /// order.
    Asked(Channel),
    /// The process exists and is registered with the supervisor. It waits for its order, and may have been killed since.
    Made(Child),
}

/// Why a request supplied no process. [`Forkserver::start`](super::forkserver::Forkserver::start) decides whether to try again.
#[derive(Debug)]
pub(super) enum MakeError {
    /// It is dead, and created none: the pid slot was 0 after it was reaped.
    Gone,
    /// Neither `clone3` nor `clone` succeeded; the error is that of the last call in the zygote. The zygote continues to serve.
    Clone(io::Error),
    /// The wait for its answer was given up. The answer may still arrive: the request stays in [`Spare::Asked`].
    Interrupted,
    /// Any other error: a malformed answer, no room for the descriptor, or a failed system call of this process. A process that
    /// was created all the same has been killed and reaped, or ends as its channel is closed.
    Os(io::Error),
}

/// The order of a new process, and the settings that it must have. Borrows from one call of `start_program` in
/// [`start`](mod@super::start); may be used for several attempts.
pub(super) struct ForkRequest<'a> {
    /// [`Server::start`] overwrites `env`, `current_dir` and `bounds`, whose values depend on the zygote.
    pub(super) order: &'a mut StartRequest,
    /// The whole environment, not a difference.
    pub(super) env: &'a [(OsString, OsString)],
    /// The absolute path of the working directory; `None` leaves the process in that of the zygote.
    pub(super) current_dir: Option<&'a PathBuf>,
    /// The bounds of the thread that starts the process.
    pub(super) bounds: &'a Bounds,
    /// Standard input, output and error.
    pub(super) stdio: &'a [BorrowedFd<'a>; 3],
    /// The read end of the parent-death pipe, for a process that must not outlive this one.
    pub(super) parent_death: Option<BorrowedFd<'a>>,
    /// The argument of the function.
    pub(super) input: &'a Payload,
}

/// Why a start failed: [`Failure::Make`] when the zygote supplied no process, after which another attempt may succeed;
/// [`Failure::Start`] when the start fails with that error.
pub(super) enum Failure {
    Make(MakeError),
    Start(StartError),
}

impl From<MakeError> for Failure {
    fn from(error: MakeError) -> Self {
        Self::Make(error)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl Server {
    /// Executes a zygote and sends it the preload function, with its argument. Does not wait: the zygote answers after the
    /// function has returned.
    ///
    /// The zygote inherits its end of the channel and the pid slot as descriptors 3 and 4. A zygote that is dead already is not
    /// an error here, as [`Server::await_ready`] reports it with its exit status.
    ///
    /// # Errors
    /// [`StartError::NotInitialised`], and [`StartError::Os`] when a system call failed. The zygote is killed then, if it was
    /// executed.
    pub(super) fn launch(preload: Option<&(Function, Payload)>) -> Result<Self, StartError> {
        let (channel, theirs) = Channel::pair().map_err(os("creating a channel to the fork server"))?;
        let pid_slot = PidSlot::new().map_err(os("creating the fork server's shared memory"))?;
        let pid_slot_fd = pid_slot.as_fd().try_clone_to_owned().map_err(os("copying a descriptor"))?;
        let env: Vec<_> = std::env::vars_os().collect();
        let credentials = Credentials::own().map_err(os("reading the credentials of this process"))?;
        let zygote = launch::execute(Role::Zygote, env.clone(), channel, vec![theirs, pid_slot_fd])?;
        let current_dir = std::env::current_dir().ok();
        let server = Self {
            zygote,
            pid_slot,
            env,
            current_dir,
            credentials,
            bounds: Bounds::default(),
            spare: Spare::NotWanted,
            preloads: preload.is_some(),
        };
        let mut head = Writer::default();
        let mut fds = Vec::new();
        if let Some((function, input)) = preload {
            function.encode(&mut head);
            head.rest(&input.bytes);
            fds.extend(input.fds.iter().map(AsFd::as_fd));
        }
        match server.zygote.channel().send(tag::PRELOAD, &head.into_bytes(), &fds) {
            Err(error) if !is_peer_gone(&error) => {
                discard(&server.zygote);
                Err(os("starting the fork server")(error))
            }
            _ => Ok(server), // a dead zygote is detected by `await_ready`
        }
    }

    /// Waits until the zygote is ready, and records its bounds. Must succeed before the first request. Returns false if the
    /// zygote cannot be cloned, as the system refuses it or a library has started threads; the zygote exits then.
    ///
    /// # Errors
    /// - [`StartError::Interrupted`] when `give_up` returned true. The answer may still come: call this again.
    /// - [`StartError::Preload`] when the preload function failed, or the zygote ended while it ran, unless by `SIGKILL`.
    /// - [`StartError::Forkserver`] when the zygote was killed, or ended without a preload function. This function also kills it
    ///   if it closed its channel or the wait failed. Another attempt may succeed.
    /// - [`StartError::Os`] when the answer was malformed, or the zygote's end could not be awaited.
    ///
    /// After all but the first, the server is of no use, and the caller drops it.
    pub(super) fn await_ready(&mut self, give_up: GiveUp<'_>) -> Result<bool, StartError> {
        let source = match self.receive(Duration::ZERO, give_up) {
            Ok(Some(message)) if message.tag == tag::READY => {
                let bounds = decode_bounds(&mut Reader::new(&message.payload.bytes));
                self.bounds = bounds.map_err(|error| os("starting the fork server")(error.into()))?;
                return Ok(true);
            }
            Ok(Some(message)) if message.tag == tag::NO_CLONE => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(StartError::Interrupted),
            Ok(Some(message)) if message.tag == tag::BAD_PRELOAD => {
                let why = String::from_utf8_lossy(&message.payload.bytes).into_owned();
                return Err(StartError::Preload { why });
            }
            Ok(Some(_)) => WireError.into(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error,
            Ok(None) | Err(_) => {
                let status = self.wait_for_end().map_err(os("waiting for the fork server's end"))?;
                let why = format!("the fork server ended before it was ready: {status}");
                let preloads = self.preloads && status.signal() != Some(Signal::KILL);
                return Err(if preloads { StartError::Preload { why } } else { StartError::Forkserver { why } });
            }
        };
        discard(&self.zygote);
        Err(StartError::Os { doing: "starting the fork server", source })
    }

    /// Creates a process, registers it with the supervisor and sends it its order; then requests the next spare.
    ///
    /// A process that dies after its order was sent has started: a join reports its death. So the order is sent a second time
    /// only if it could not be sent to the spare.
    ///
    /// # Errors
    /// [`Failure::Make`] when the zygote supplied no process; [`Failure::Start`] when this process is out of descriptors or
    /// memory. In either case the function did not run, and no process that holds the order remains.
    pub(super) fn start(&mut self, request: &mut ForkRequest<'_>, give_up: GiveUp<'_>) -> Result<Child, Failure> {
        request.order.env = delta(&self.env, request.env);
        let other_dir = request.current_dir.filter(|path| Some(*path) != self.current_dir.as_ref());
        request.order.current_dir = other_dir.map(|path| path.clone().into());
        request.order.bounds = request.bounds.clone().since(&self.bounds);
        let send_order =
            |child: &Child| send_order(child, request.order, request.stdio, request.parent_death, request.input);
        let spare = match self.take_spare(give_up) {
            // The request below finds a dead zygote again, or repeats the clone.
            Err(Failure::Make(MakeError::Gone | MakeError::Clone(_))) => None,
            spare => spare?,
        };
        let child = match spare {
            Some(spare) if send_order(&spare)? => spare,
            // There is no spare, or it was killed while it waited, and the supervisor reaps it.
            _ => {
                let (channel, theirs) = Channel::pair().map_err(os("creating a channel"))?;
                self.ask(&theirs)?;
                drop(theirs);
                let wanted = std::mem::replace(&mut self.spare, Spare::Asked(channel));
                let made = self.take_spare(give_up);
                if matches!(wanted, Spare::NotWanted) && !matches!(self.spare, Spare::Asked(_)) {
                    self.spare = Spare::NotWanted;
                }
                let child = made?.ok_or(MakeError::Gone)?;
                // If it has been killed already, a join reports that.
                send_order(&child)?;
                child
            }
        };
        match self.spare {
            Spare::NotWanted => self.spare = Spare::None,
            Spare::None => {
                self.ask_for_spare();
            }
            Spare::Asked(_) | Spare::Made(_) => {}
        }
        Ok(child)
    }

    /// Returns the requested process, a spare or not, registered with the supervisor; `None` if none was requested. Blocks until
    /// the zygote answers or ends. If the wait is given up, the request remains for the next call.
    ///
    /// # Errors
    /// As [`Server::answer`]; [`Failure::Start`] when the process could not be registered: dropping its channel then ends it.
    pub(super) fn take_spare(&mut self, give_up: GiveUp<'_>) -> Result<Option<Child>, Failure> {
        match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Made(child) => Ok(Some(child)),
            Spare::Asked(channel) => match self.answer(give_up) {
                Err(MakeError::Interrupted) => {
                    self.spare = Spare::Asked(channel);
                    Err(MakeError::Interrupted.into())
                }
                answer => Ok(Some(answer?.adopt(channel)?)),
            },
            other => {
                self.spare = other;
                Ok(None)
            }
        }
    }

    /// Returns whether a spare was requested, and is not registered yet.
    pub(super) fn is_spare_requested(&self) -> bool {
        matches!(self.spare, Spare::Asked(_))
    }

    /// Kills and reaps the process that the zygote created last, for which this process has no descriptor. The id cannot belong
    /// to another process yet, as only this process can reap its child.
    fn end_made(&self) {
        if let Some(pid) = self.pid_slot.pid() {
            pidfd::end(pid.get());
        }
        self.pid_slot.clear();
    }

    /// Reads the zygote's answer to a pending request, without waiting for it, and registers the spare with the supervisor.
    /// Returns false if there is no answer yet; true if there is nothing left to do.
    ///
    /// The supervisor thread calls this, so that a spare that another process kills is reaped before the next start. Errors are
    /// not reported: the next start finds no spare and requests a process itself. If the zygote is dead, the request stays in
    /// [`Spare::Asked`] for that start, since the pid slot is final only after the zygote was reaped.
    pub(super) fn adopt_spare(&mut self) -> bool {
        if !matches!(self.spare, Spare::Asked(_)) {
            return true;
        }
        match self.zygote.channel().try_receive().map(|message| message.map(decode_made)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Ok(Some(Ok(Ok(made)))) => {
                // If this fails, the channel is closed, at which the process ends.
                if let Spare::Asked(channel) = std::mem::replace(&mut self.spare, Spare::None)
                    && let Ok(child) = made.adopt(channel)
                {
                    self.spare = Spare::Made(child);
                }
                true
            }
            // The zygote is dead: the next start finds any process that it left.
            Ok(None) => true,
            Err(error) if is_peer_gone(&error) => true,
            // The zygote created no process.
            Ok(Some(Ok(Err(_)))) => {
                self.spare = Spare::None;
                true
            }
            // There was no room for the descriptor, or the answer is malformed.
            Ok(Some(Err(_))) | Err(_) => {
                self.end_made();
                self.spare = Spare::None;
                true
            }
        }
    }

    /// Requests a spare. Without descriptors or memory for it there is none, and the next start requests its process itself.
    fn ask_for_spare(&mut self) {
        if let Ok((channel, theirs)) = Channel::pair()
            && self.ask(&theirs).is_ok()
        {
            self.spare = Spare::Asked(channel);
        }
    }

    /// Requests a process that gets `theirs`, its end of a channel. Only one request may be pending. The caller drops `theirs`
    /// afterwards: while this process holds it, the end of file does not report the death of the new process.
    ///
    /// # Errors
    /// [`MakeError::Os`] when the request could not be sent. A dead zygote is not an error here.
    fn ask(&self, theirs: &OwnedFd) -> Result<(), MakeError> {
        self.pid_slot.clear();
        match self.zygote.channel().send(tag::MAKE, &[], &[theirs.as_fd()]) {
            // The zygote is dead: `answer` reports that, and whether it left a process.
            Err(error) if is_peer_gone(&error) => Ok(()),
            sent => sent.map_err(MakeError::Os),
        }
    }

    /// Returns the zygote's next message; `None` when it is dead. Checks for its death as well as for the end of its channel,
    /// since an unrelated fork may have copied the channel's other end. Polls for `spin`, then sleeps, and asks `give_up` after
    /// each signal handler and every [`ASK_EVERY`].
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when `give_up` returns true; [`io::ErrorKind::InvalidData`] for a malformed message;
    /// `ECONNRESET` or `EMFILE` as for [`Channel::try_receive`].
    fn receive(&self, spin: Duration, give_up: GiveUp<'_>) -> io::Result<Option<Message>> {
        let channel = self.zygote.channel();
        let mut received = channel.try_receive_for(spin);
        let would_block = |received: &io::Result<_>| {
            received.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::WouldBlock)
        };
        while would_block(&received) {
            let ready = match watch::readable(&[channel.as_fd(), self.zygote.as_fd()], Deadline::after(ASK_EVERY)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Vec::new(),
                ready => ready?,
            };
            if ready.is_empty() && give_up() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            received = channel.try_receive();
            if would_block(&received) && ready.contains(&1) {
                return Ok(None);
            }
        }
        received
    }

    /// Returns the requested process, which has no order yet. Blocks until the zygote answers or ends.
    ///
    /// If there is no valid answer, the zygote is killed and reaped first, which makes the pid slot final. A process that a
    /// dead zygote has created is returned as if the zygote had answered. After an error of the channel that process is killed
    /// instead.
    ///
    /// # Errors
    /// [`MakeError::Interrupted`] leaves the zygote and its answer as they are; see the variants for the others.
    fn answer(&self, give_up: GiveUp<'_>) -> Result<ForkedChild, MakeError> {
        let failure = match self.receive(SPIN, give_up) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(MakeError::Interrupted),
            Ok(Some(message)) => match decode_made(message) {
                Ok(answer) => return answer,
                Err(error) => Some(error.into()),
            },
            Ok(None) => None,
            Err(error) if is_peer_gone(&error) => None,
            Err(error) => Some(error),
        };
        // The zygote is dead, or its answer was malformed or not received. If it has cloned itself, the pid slot holds the id of
        // the new process, which is a child of this one.
        self.wait_for_end().map_err(MakeError::Os)?;
        let made = self.pid_slot.pid();
        self.pid_slot.clear(); // so that the next call does not return the same process
        match (made, failure) {
            (Some(pid), None) => Ok(ForkedChild { pid: pid.get(), pidfd: None }),
            (None, None) => Err(MakeError::Gone),
            // Without a valid answer there is no descriptor for the process.
            (made, Some(error)) => {
                if let Some(pid) = made {
                    pidfd::end(pid.get());
                }
                Err(MakeError::Os(error))
            }
        }
    }

    /// Kills the zygote and waits for its end. Only then is the pid slot final, since the channel may close earlier. A zygote
    /// that closed its channel without ending is of no use.
    ///
    /// # Errors
    /// When the zygote cannot be signalled, as its user differs, or a system call on its pidfd failed.
    fn wait_for_end(&self) -> io::Result<ExitStatus> {
        self.zygote.signal(Signal::KILL)?;
        Ok(self.zygote.wait_through_signals(Deadline::NEVER)?.unwrap_or(ExitStatus::Unknown))
    }
}

/// A process that the zygote created, a child of this process that has no order yet.
struct ForkedChild {
    /// Its process id, which no other process gets before this process has reaped it.
    pid: u32,
    /// `None` where the zygote got none (`clone` instead of `clone3`), or died: this process then opens one, as the parent.
    pidfd: Option<OwnedFd>,
}

impl ForkedChild {
    /// Registers the process with the supervisor.
    ///
    /// # Errors
    /// [`StartError::Os`] without a descriptor or the supervisor thread. The process then ends: it reads the end of file when
    /// `channel` is dropped, or is killed.
    fn adopt(self, channel: Channel) -> Result<Child, StartError> {
        let Some(pidfd) = self.pidfd else {
            return launch::known(self.pid, channel, StartMethod::Forkserver);
        };
        let child = Child::new(self.pid, pidfd, channel, StartMethod::Forkserver);
        supervisor::adopt(&child)?;
        Ok(child)
    }
}

/// Decodes the answer to MAKE. The outer error is a malformed answer, the inner one the zygote's failure to clone itself.
fn decode_made(mut message: Message) -> Result<Result<ForkedChild, MakeError>, WireError> {
    let number = Reader::new(&message.payload.bytes).u32()?;
    match message.tag {
        tag::MADE => Ok(Ok(ForkedChild { pid: number, pidfd: message.payload.fds.pop() })),
        tag::NO_CLONE => Ok(Err(MakeError::Clone(io::Error::from_raw_os_error(number.cast_signed())))),
        _ => Err(WireError),
    }
}
