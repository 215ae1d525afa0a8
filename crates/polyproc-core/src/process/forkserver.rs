//! The fork server as its program sees it. `zygote` is the other side.
//!
//! Once a program has started a second process, the zygote makes one process ahead of its need: a *spare* that waits for its
//! order. Then a start is one message to a process that is there already, and the next spare is cloned while the first one
//! runs. (Measured on two processors: two thirds of the time of a start and join.)

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use super::order::{StartRequest, decode_bounds};
use super::start::os;
use super::state::lock;
use super::zygote::tag;
use super::{Child, ExitStatus, ProcessState, Signal, StartError, StartMethod};
use crate::conn::{Channel, Message, is_peer_gone};
use crate::deadline::Deadline;
use crate::frame::Payload;
use crate::frame::wire::{Reader, WireError, Writer};
use crate::sys::bootstrap::Role;
use crate::sys::bounds::Bounds;
use crate::sys::cell::PidCell;
use crate::sys::credentials::Credentials;
use crate::sys::{pidfd, watch};

/// How long the requester looks for an answer before it sleeps: about what the kernel takes to clone the zygote. Waking it
/// would keep the zygote, and behind it the new process, from running.
const SPIN: Duration = Duration::from_micros(150);
/// How often a start tries again when somebody kills the zygote meanwhile.
const ATTEMPTS: usize = 3;

/// The fork server of this process.
#[derive(Debug, Default)]
pub(crate) enum Forkserver {
    #[default]
    NotStarted,
    /// It was executed, and is not ready yet.
    Starting(Server),
    Running(Server),
    /// The system does not let a zygote make processes.
    Refused,
}

/// Says whether to give up waiting for the fork server, which may be stopped, or run a `preload` that takes long. Asked when a
/// signal handler ran, and every [`ASK_EVERY`].
pub(crate) type GiveUp<'a> = &'a dyn Fn() -> bool;

const ASK_EVERY: Duration = Duration::from_millis(100);

/// Waits for a lock that is held while somebody waits for the fork server.
///
/// # Errors
/// [`StartError::Interrupted`] when `give_up` says so.
pub(super) fn lock_unless<'a, T>(mutex: &'a Mutex<T>, give_up: GiveUp<'_>) -> Result<MutexGuard<'a, T>, StartError> {
    let mut pause = Duration::from_micros(20);
    loop {
        match mutex.try_lock() {
            Ok(guard) => return Ok(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Ok(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) if pause > ASK_EVERY / 10 && give_up() => {
                return Err(StartError::Interrupted);
            }
            Err(TryLockError::WouldBlock) => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(ASK_EVERY / 4);
            }
        }
    }
}

/// One zygote and what it is making.
#[derive(Debug)]
pub(crate) struct Server {
    zygote: Child,
    cell: PidCell,
    /// Environment and working directory that it was given, and gives its children.
    env: Vec<(OsString, OsString)>,
    current_dir: Option<PathBuf>,
    /// Those that it has, and its children.
    credentials: Credentials,
    /// As soon as it is ready: those that it has, and its children.
    bounds: Bounds,
    spare: Spare,
}

#[derive(Debug)]
enum Spare {
    /// No process has been started yet: perhaps there will be one only.
    NotWanted,
    None,
    /// A process was asked for; this is our end of its channel.
    Asked(Channel),
    /// It is there, and the supervisor knows it.
    Made(Child),
}

/// Why the zygote made no process.
#[derive(Debug)]
enum MakeError {
    /// It is dead, and made none.
    Gone,
    /// Neither `clone3` nor `clone` would.
    Clone(io::Error),
    /// The wait for its answer was given up. The answer may still come.
    Interrupted,
    /// Anything else.
    Os(io::Error),
}

/// What a new process is to be told, and the world it is to find.
pub(super) struct ForkRequest<'a> {
    pub(super) order: &'a mut StartRequest,
    pub(super) env: &'a [(OsString, OsString)],
    pub(super) current_dir: Option<&'a PathBuf>,
    pub(super) bounds: &'a Bounds,
    pub(super) stdio: &'a [BorrowedFd<'a>; 3],
    pub(super) life: Option<BorrowedFd<'a>>,
    pub(super) input: &'a Payload,
}

impl Forkserver {
    /// A process that has its order, and that the supervisor knows. `Ok(None)`: the system refuses fork servers.
    pub(super) fn start(
        &mut self,
        state: &'static ProcessState,
        mut request: ForkRequest<'_>,
        give_up: GiveUp<'_>,
    ) -> Result<Option<Child>, StartError> {
        let mut killed = None;
        for _ in 0..ATTEMPTS {
            self.launch(state)?;
            if let Self::Starting(server) = self {
                let ready = server.await_ready(state, give_up);
                if matches!(ready, Err(StartError::Interrupted)) {
                    return Err(StartError::Interrupted); // the next start waits on
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
            match server.start(state, &mut request, give_up) {
                Ok(child) => return Ok(Some(child)),
                Err(Failure::Make(MakeError::Interrupted)) => return Err(StartError::Interrupted),
                Err(Failure::Start(error)) => return Err(error),
                Err(Failure::Make(MakeError::Gone)) => *self = Self::NotStarted,
                Err(Failure::Make(MakeError::Clone(error))) => {
                    if !matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM | libc::EINVAL)) {
                        return Err(os("clone in the fork server")(error));
                    }
                    let _ = self.retire(state);
                    *self = Self::Refused;
                }
                Err(Failure::Make(MakeError::Os(error))) => {
                    return Err(os("taking over a process from the fork server")(error));
                }
            }
        }
        Err(killed.unwrap_or_else(|| StartError::Forkserver {
            why: format!("the fork server was killed {ATTEMPTS} times in a row while it made a process"),
        }))
    }

    /// Executes a zygote, if there is none of this user's, and does not wait until it is ready.
    pub(super) fn launch(&mut self, state: &'static ProcessState) -> Result<(), StartError> {
        self.retire_another_users(state)?;
        if matches!(self, Self::NotStarted) {
            *self = Self::Starting(Server::launch(state)?);
        }
        Ok(())
    }

    /// A program that gave up privileges does not start processes that have them.
    fn retire_another_users(&mut self, state: &'static ProcessState) -> Result<(), StartError> {
        if let Self::Starting(server) | Self::Running(server) = self
            && server.credentials != Credentials::own().map_err(os("looking who this process is"))?
        {
            let _ = self.retire(state);
        }
        Ok(())
    }

    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Starting(server) | Self::Running(server) => Some(server.zygote.pid()),
            Self::NotStarted | Self::Refused => None,
        }
    }

    /// Has the zygote end in order, by a message, or where it is another user's or not ready by the end of its channel; the next
    /// start makes another. Returns the zygote.
    pub(super) fn retire(&mut self, state: &'static ProcessState) -> Option<Child> {
        let is_ready = matches!(self, Self::Running(_));
        let (Self::Starting(mut server) | Self::Running(mut server)) = std::mem::take(self) else { return None };
        if !is_ready || server.zygote.channel().send(tag::END, &[], &[]).is_err() {
            discard(&server.zygote);
        }
        // It answers what it was asked before. One that stands still is dead in a moment: what it has made is known then.
        let soon = Deadline::after(ASK_EVERY);
        let mut spare = server.take_spare(state, &|| soon.has_passed());
        if matches!(spare, Err(Failure::Make(MakeError::Interrupted))) {
            discard(&server.zygote);
            spare = server.take_spare(state, &|| false);
        }
        if let Ok(Some(spare)) = spare {
            discard(&spare);
        }
        Some(server.zygote)
    }

    /// Has the supervisor know the process made ahead. False when it is not there yet.
    pub(super) fn adopt_spare(&mut self, state: &'static ProcessState) -> bool {
        match self {
            Self::Running(server) => server.adopt_spare(state),
            Self::NotStarted | Self::Starting(_) | Self::Refused => true,
        }
    }
}

enum Failure {
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
    /// Executes a zygote, and has it run `preload`.
    fn launch(state: &'static ProcessState) -> Result<Self, StartError> {
        let (channel, theirs) = Channel::pair().map_err(os("making a channel to the fork server"))?;
        let cell = PidCell::new().map_err(os("making the fork server's shared word"))?;
        let cell_fd = cell.as_fd().try_clone_to_owned().map_err(os("copying a descriptor"))?;
        let env: Vec<_> = std::env::vars_os().collect();
        let credentials = Credentials::own().map_err(os("looking who this process is"))?;
        let zygote = super::start::execute(state, Role::Zygote, env.clone(), channel, vec![theirs, cell_fd])?;
        let current_dir = std::env::current_dir().ok();
        let server =
            Self { zygote, cell, env, current_dir, credentials, bounds: Bounds::default(), spare: Spare::NotWanted };
        let preload = lock(&state.preload);
        let mut head = Writer::default();
        let mut fds = Vec::new();
        if let Some((function, input)) = &*preload {
            function.encode(&mut head);
            head.rest(&input.head);
            fds.extend(input.fds.iter().map(AsFd::as_fd));
        }
        match server.zygote.channel().send(tag::PRELOAD, &head.into_bytes(), &fds) {
            Err(error) if !is_peer_gone(&error) => {
                discard(&server.zygote);
                Err(os("starting the fork server")(error))
            }
            _ => Ok(server), // that it is dead is seen when it does not answer
        }
    }

    /// Waits until the zygote is ready. `Ok(false)`: the system refuses.
    fn await_ready(&mut self, state: &ProcessState, give_up: GiveUp<'_>) -> Result<bool, StartError> {
        let source = match self.hear(Duration::ZERO, give_up) {
            Ok(Some(message)) if message.tag == tag::READY => {
                let bounds = decode_bounds(&mut Reader::new(&message.payload.head));
                self.bounds = bounds.map_err(|error| os("starting the fork server")(error.into()))?;
                return Ok(true);
            }
            Ok(Some(message)) if message.tag == tag::NO_CLONE => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(StartError::Interrupted),
            Ok(Some(message)) if message.tag == tag::BAD_PRELOAD => {
                let why = String::from_utf8_lossy(&message.payload.head).into_owned();
                return Err(StartError::Preload { why });
            }
            Ok(Some(_)) => WireError.into(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error,
            Ok(None) | Err(_) => {
                let status = self.wait_for_end().map_err(os("waiting for the fork server's end"))?;
                let why = format!("the fork server ended before it was ready: {status}");
                let preloads = lock(&state.preload).is_some() && status.signal() != Some(Signal::KILL);
                return Err(if preloads { StartError::Preload { why } } else { StartError::Forkserver { why } });
            }
        };
        discard(&self.zygote);
        Err(StartError::Os { doing: "starting the fork server", source })
    }

    fn start(
        &mut self,
        state: &'static ProcessState,
        request: &mut ForkRequest<'_>,
        give_up: GiveUp<'_>,
    ) -> Result<Child, Failure> {
        request.order.env = super::start::delta(&self.env, request.env);
        let other_dir = request.current_dir.filter(|path| Some(*path) != self.current_dir.as_ref());
        request.order.current_dir = other_dir.map(|path| path.clone().into());
        request.order.bounds = request.bounds.clone().since(&self.bounds);
        let tell = |child: &Child| tell(child, request.order, request.stdio, request.life, request.input);
        let spare = match self.take_spare(state, give_up) {
            // Asked again for one that is needed now, it says so again.
            Err(Failure::Make(MakeError::Gone | MakeError::Clone(_))) => None,
            spare => spare?,
        };
        let child = match spare {
            Some(spare) if tell(&spare)? => spare,
            // None, or somebody killed it while it waited: the supervisor reaps it.
            _ => {
                let (channel, theirs) = Channel::pair().map_err(os("making a channel"))?;
                self.ask(&theirs)?;
                drop(theirs);
                let wanted = std::mem::replace(&mut self.spare, Spare::Asked(channel));
                let made = self.take_spare(state, give_up);
                if matches!(wanted, Spare::NotWanted) && !matches!(self.spare, Spare::Asked(_)) {
                    self.spare = Spare::NotWanted;
                }
                let child = made?.ok_or(MakeError::Gone)?;
                // If somebody has killed it already, joining it says so.
                tell(&child)?;
                child
            }
        };
        match self.spare {
            Spare::NotWanted => self.spare = Spare::None,
            Spare::None => {
                self.ask_for_spare();
                state.supervisor()?.look_soon();
            }
            Spare::Asked(_) | Spare::Made(_) => {}
        }
        Ok(child)
    }

    /// The process that was asked for, if one was. When the wait is given up, it stays asked for.
    fn take_spare(&mut self, state: &'static ProcessState, give_up: GiveUp<'_>) -> Result<Option<Child>, Failure> {
        match std::mem::replace(&mut self.spare, Spare::None) {
            Spare::Made(child) => Ok(Some(child)),
            Spare::Asked(channel) => match self.answer(give_up) {
                Err(MakeError::Interrupted) => {
                    self.spare = Spare::Asked(channel);
                    Err(MakeError::Interrupted.into())
                }
                answer => Ok(Some(answer?.adopt(state, channel)?)),
            },
            other => {
                self.spare = other;
                Ok(None)
            }
        }
    }

    /// Ends the process that the zygote made last, and that this one has no descriptor of.
    fn end_made(&self) {
        if let Some(pid) = self.cell.pid() {
            pidfd::end(pid.get());
        }
        self.cell.clear();
    }

    /// See [`Forkserver::adopt_spare`].
    fn adopt_spare(&mut self, state: &'static ProcessState) -> bool {
        if !matches!(self.spare, Spare::Asked(_)) {
            return true;
        }
        match self.zygote.channel().try_receive().map(|message| message.map(decode_made)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Ok(Some(Ok(Ok(made)))) => {
                // Without a supervisor nobody reaps anything.
                if let Spare::Asked(channel) = std::mem::replace(&mut self.spare, Spare::None)
                    && let Ok(child) = made.adopt(state, channel)
                {
                    self.spare = Spare::Made(child);
                }
                true
            }
            // It is dead: the next start finds what it left.
            Ok(None) => true,
            Err(error) if is_peer_gone(&error) => true,
            // It made none.
            Ok(Some(Ok(Err(_)))) => {
                self.spare = Spare::None;
                true
            }
            // There was no room for its descriptor.
            Ok(Some(Err(_))) | Err(_) => {
                self.end_made();
                self.spare = Spare::None;
                true
            }
        }
    }

    /// Without descriptors or memory for it there is no spare.
    fn ask_for_spare(&mut self) {
        if let Ok((channel, theirs)) = Channel::pair()
            && self.ask(&theirs).is_ok()
        {
            self.spare = Spare::Asked(channel);
        }
    }

    /// Asks for a process at the other end of `theirs`. One request is under way at a time.
    fn ask(&self, theirs: &OwnedFd) -> Result<(), MakeError> {
        self.cell.clear();
        match self.zygote.channel().send(tag::MAKE, &[], &[theirs.as_fd()]) {
            // The zygote is dead: the answer says so, and whether it left a process.
            Err(error) if is_peer_gone(&error) => Ok(()),
            sent => sent.map_err(MakeError::Os),
        }
    }

    /// The zygote's next message; `None` when it is dead. Its death counts and not only the end of its channel, whose other
    /// end a process that somebody forked at the wrong moment may hold as well.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when `give_up` says so.
    fn hear(&self, spin: Duration, give_up: GiveUp<'_>) -> io::Result<Option<Message>> {
        let channel = self.zygote.channel();
        let mut heard = channel.try_receive_for(spin);
        let would_block = |heard: &io::Result<_>| {
            heard.as_ref().is_err_and(|error: &io::Error| error.kind() == io::ErrorKind::WouldBlock)
        };
        while would_block(&heard) {
            let ready = match watch::readable(&[channel.as_fd(), self.zygote.as_fd()], Deadline::after(ASK_EVERY)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Vec::new(),
                ready => ready?,
            };
            if ready.is_empty() && give_up() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            heard = channel.try_receive();
            if would_block(&heard) && ready.contains(&1) {
                return Ok(None);
            }
        }
        heard
    }

    /// The process asked for. It has no order yet.
    fn answer(&self, give_up: GiveUp<'_>) -> Result<ForkedChild, MakeError> {
        let failure = match self.hear(SPIN, give_up) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(MakeError::Interrupted),
            Ok(Some(message)) => match decode_made(message) {
                Ok(answer) => return answer,
                Err(error) => Some(error.into()),
            },
            Ok(None) => None,
            Err(error) if is_peer_gone(&error) => None,
            Err(error) => Some(error),
        };
        // The zygote is dead, or out of step with us. If it came past `clone3`, the kernel left the id of a process in the
        // cell that is our child.
        self.wait_for_end().map_err(MakeError::Os)?;
        let made = self.cell.pid();
        self.cell.clear(); // so that the next answer from this dead zygote is not the same process
        match (made, failure) {
            (Some(pid), None) => Ok(ForkedChild { pid: pid.get(), pidfd: None }),
            (None, None) => Err(MakeError::Gone),
            // There is no descriptor for it: too many are open.
            (made, Some(error)) => {
                if let Some(pid) = made {
                    pidfd::end(pid.get());
                }
                Err(MakeError::Os(error))
            }
        }
    }

    /// Its end alone makes the cell final: the channel's end may come before it. And a zygote that closed its channel
    /// without ending is of no use.
    fn wait_for_end(&self) -> io::Result<ExitStatus> {
        self.zygote.signal(Signal::KILL)?;
        Ok(self.zygote.wait_through_signals(Deadline::NEVER)?.unwrap_or(ExitStatus::Unknown))
    }
}

/// A process that the zygote made.
struct ForkedChild {
    pid: u32,
    /// Where the zygote got none, this process opens one: it is its child.
    pidfd: Option<OwnedFd>,
}

impl ForkedChild {
    /// The supervisor knows it from now on.
    fn adopt(self, state: &'static ProcessState, channel: Channel) -> Result<Child, StartError> {
        let Some(pidfd) = self.pidfd else {
            return super::start::known(state, self.pid, channel, StartMethod::Forkserver);
        };
        let child = Child::new(self.pid, pidfd, channel, StartMethod::Forkserver);
        state.adopt(&child)?;
        Ok(child)
    }
}

/// Ends a process that has nothing to lose; the supervisor reaps it.
fn discard(child: &Child) {
    // Fails only when it has ended.
    let _ = child.signal(Signal::KILL);
}

/// Sends a new process its order; false when it is dead already, as joining it will say. A process that cannot be told for
/// another reason is ended.
pub(super) fn tell(
    child: &Child,
    order: &StartRequest,
    stdio: &[BorrowedFd<'_>; 3],
    life: Option<BorrowedFd<'_>>,
    input: &Payload,
) -> Result<bool, StartError> {
    match order.send(child.channel(), stdio, life, input) {
        Ok(()) => Ok(true),
        Err(error) if is_peer_gone(&error) => {
            child.note_gone();
            Ok(false)
        }
        Err(error) => {
            discard(child);
            Err(os("sending a new process its argument")(error))
        }
    }
}

fn decode_made(mut message: Message) -> Result<Result<ForkedChild, MakeError>, WireError> {
    let number = Reader::new(&message.payload.head).u32()?;
    match message.tag {
        tag::MADE => Ok(Ok(ForkedChild { pid: number, pidfd: message.payload.fds.pop() })),
        tag::NO_CLONE => Ok(Err(MakeError::Clone(io::Error::from_raw_os_error(number.cast_signed())))),
        _ => Err(WireError),
    }
}
