//! One zygote as its program sees it: requests to it, and its answers.

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

/// One zygote, and the process that was requested from it.
#[derive(Debug)]
pub(crate) struct Server {
    pub(super) zygote: Child,
    pid_slot: PidSlot,
    /// Environment and working directory that the zygote was executed with, and its children inherit.
    env: Vec<(OsString, OsString)>,
    current_dir: Option<PathBuf>,
    /// The credentials of the zygote and its children.
    pub(super) credentials: Credentials,
    /// The bounds of the zygote and its children; empty until it is ready.
    bounds: Bounds,
    spare: Spare,
    /// True if it runs a preload function.
    preloads: bool,
}

#[derive(Debug)]
enum Spare {
    /// No process has been started yet; there may never be a second one.
    NotWanted,
    None,
    /// A process was requested; this is the program's end of its channel.
    Asked(Channel),
    /// The process exists and is registered with the supervisor.
    Made(Child),
}

/// Why the zygote created no process.
#[derive(Debug)]
pub(super) enum MakeError {
    /// It is dead, and created none.
    Gone,
    /// Neither `clone3` nor `clone` succeeded.
    Clone(io::Error),
    /// The wait for its answer was given up. The answer may still arrive.
    Interrupted,
    /// Any other error.
    Os(io::Error),
}

/// The order of a new process, and the settings that it must have.
pub(super) struct ForkRequest<'a> {
    pub(super) order: &'a mut StartRequest,
    pub(super) env: &'a [(OsString, OsString)],
    pub(super) current_dir: Option<&'a PathBuf>,
    pub(super) bounds: &'a Bounds,
    pub(super) stdio: &'a [BorrowedFd<'a>; 3],
    pub(super) parent_death: Option<BorrowedFd<'a>>,
    pub(super) input: &'a Payload,
}

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
    /// Executes a zygote and sends it the preload function.
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

    /// Waits until the zygote is ready. Returns false if the system refuses fork servers.
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

    pub(super) fn start(&mut self, request: &mut ForkRequest<'_>, give_up: GiveUp<'_>) -> Result<Child, Failure> {
        request.order.env = delta(&self.env, request.env);
        let other_dir = request.current_dir.filter(|path| Some(*path) != self.current_dir.as_ref());
        request.order.current_dir = other_dir.map(|path| path.clone().into());
        request.order.bounds = request.bounds.clone().since(&self.bounds);
        let send_order =
            |child: &Child| send_order(child, request.order, request.stdio, request.parent_death, request.input);
        let spare = match self.take_spare(give_up) {
            // The request below fails in the same way.
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

    /// Returns the requested process, if there was a request. If the wait is given up, the request remains.
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

    /// Kills and reaps the process that the zygote created last, for which this process has no descriptor.
    fn end_made(&self) {
        if let Some(pid) = self.pid_slot.pid() {
            pidfd::end(pid.get());
        }
        self.pid_slot.clear();
    }

    /// See [`Forkserver::adopt_spare`].
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

    /// Requests a spare. Without descriptors or memory for it there is none.
    fn ask_for_spare(&mut self) {
        if let Ok((channel, theirs)) = Channel::pair()
            && self.ask(&theirs).is_ok()
        {
            self.spare = Spare::Asked(channel);
        }
    }

    /// Requests a process that gets `theirs`, its end of a channel. Only one request may be pending.
    fn ask(&self, theirs: &OwnedFd) -> Result<(), MakeError> {
        self.pid_slot.clear();
        match self.zygote.channel().send(tag::MAKE, &[], &[theirs.as_fd()]) {
            // The zygote is dead: `answer` reports that, and whether it left a process.
            Err(error) if is_peer_gone(&error) => Ok(()),
            sent => sent.map_err(MakeError::Os),
        }
    }

    /// Returns the zygote's next message; `None` when it is dead. Checks for its death as well as for the end of its channel,
    /// since an unrelated fork may have copied the channel's other end.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when `give_up` returns true.
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

    /// Returns the requested process, which has no order yet.
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
        // The zygote is dead, or its answer was malformed or not received. If it has cloned itself, the pid_slot holds the id of
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

    /// Kills the zygote and waits for its end. Only then is the pid_slot final, since the channel may close earlier. A zygote that
    /// closed its channel without ending is of no use.
    fn wait_for_end(&self) -> io::Result<ExitStatus> {
        self.zygote.signal(Signal::KILL)?;
        Ok(self.zygote.wait_through_signals(Deadline::NEVER)?.unwrap_or(ExitStatus::Unknown))
    }
}

/// A process that the zygote created.
struct ForkedChild {
    pid: u32,
    /// `None` where the zygote got none: this process then opens one, as the parent.
    pidfd: Option<OwnedFd>,
}

impl ForkedChild {
    /// Registers the process with the supervisor.
    fn adopt(self, channel: Channel) -> Result<Child, StartError> {
        let Some(pidfd) = self.pidfd else {
            return launch::known(self.pid, channel, StartMethod::Forkserver);
        };
        let child = Child::new(self.pid, pidfd, channel, StartMethod::Forkserver);
        supervisor::adopt(&child)?;
        Ok(child)
    }
}

fn decode_made(mut message: Message) -> Result<Result<ForkedChild, MakeError>, WireError> {
    let number = Reader::new(&message.payload.bytes).u32()?;
    match message.tag {
        tag::MADE => Ok(Ok(ForkedChild { pid: number, pidfd: message.payload.fds.pop() })),
        tag::NO_CLONE => Ok(Err(MakeError::Clone(io::Error::from_raw_os_error(number.cast_signed())))),
        _ => Err(WireError),
    }
}
