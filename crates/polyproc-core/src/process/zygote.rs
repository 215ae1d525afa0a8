//! The zygote, or fork server: one helper program per process, which clones itself on request.
//!
//! The zygote is this program, executed anew and taken over before `main`. It has one thread and runs no user code but
//! `preload`. A request is one message with the new process's end of a channel; the zygote answers with the id and
//! descriptor of a new process, which is a child of the *requester* (`CLONE_PARENT`). What the process is to do waits in
//! its channel: the zygote never sees it.
//!
//! | tag | direction | head | descriptors |
//! |---|---|---|---|
//! | PRELOAD | to the zygote, first | empty, or a function and its argument | the argument's |
//! | READY | back | empty | |
//! | NO_CLONE | back, instead of READY or MADE | `u32` errno | |
//! | BAD_PRELOAD | back, instead of READY | why, as text | |
//! | MAKE | to the zygote | empty | the new process's end of its channel |
//! | MADE | back | `u32` process id | process descriptor |

use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use super::child::Parts;
use super::state::lock;
use super::{Child, Function, Signal, StartError, StartMethod, State, panic};
use crate::conn::{Channel, Message};
use crate::deadline::Deadline;
use crate::frame::Payload;
use crate::frame::wire::{Reader, WireError, Writer};
use crate::sys::bootstrap::Role;
use crate::sys::cell::PidCell;
use crate::sys::clone::{self, Copied, SiblingMaker};
use crate::sys::{fd, life, pidfd, signal, warm};

mod tag {
    pub(super) const PRELOAD: u8 = 1;
    pub(super) const READY: u8 = 2;
    pub(super) const NO_CLONE: u8 = 3;
    pub(super) const BAD_PRELOAD: u8 = 4;
    pub(super) const MAKE: u8 = 5;
    pub(super) const MADE: u8 = 6;
}

/// How long the requester looks for the answer before it sleeps: about what the kernel takes to clone the zygote. Waking
/// it would keep the zygote, and behind it the new process, from running (measured: a sixth of a start and join).
const SPIN: Duration = Duration::from_micros(150);

/// The zygote of this process, when there is one.
#[derive(Debug, Default)]
pub(crate) enum Slot {
    #[default]
    NotStarted,
    Running(Zygote),
    /// The system does not let a zygote make processes.
    Refused,
}

/// The parent's side.
#[derive(Debug)]
pub(crate) struct Zygote {
    child: Child,
    cell: PidCell,
    /// Environment and working directory that it was given, and gives its children.
    pub(super) env: Vec<(OsString, OsString)>,
    pub(super) current_dir: Option<PathBuf>,
}

/// Why the zygote made no process.
#[derive(Debug)]
pub(super) enum MakeError {
    /// It is dead, and made none.
    Gone,
    /// `clone3` failed.
    Clone(io::Error),
    /// Anything else.
    Os(io::Error),
}

impl Zygote {
    /// Executes a zygote, has it run `preload`, and waits until it is ready. `Ok(None)`: the system refuses.
    pub(super) fn launch(state: &'static State) -> Result<Option<Self>, StartError> {
        let os = |doing| move |source| StartError::Os { doing, source };
        let (channel, theirs) = Channel::pair().map_err(os("making a channel to the fork server"))?;
        let cell = PidCell::new().map_err(os("making the fork server's shared word"))?;
        let cell_fd = cell.as_fd().try_clone_to_owned().map_err(os("copying a descriptor"))?;
        let env: Vec<_> = std::env::vars_os().collect();
        let pid = super::start::execute(state, Role::Zygote, env.clone(), vec![theirs, cell_fd])?;
        let pidfd = pidfd::open(pid).map_err(os("opening a process descriptor (pidfd_open, Linux 5.3)"))?;
        let child = Child::new(Parts {
            pid,
            pidfd,
            name: "forkserver".to_owned(),
            daemon: true,
            visible: false,
            method: StartMethod::Spawn,
            channel,
            captured: [None, None],
        });
        state.adopt(&child)?;
        let zygote = Self { child, cell, env, current_dir: std::env::current_dir().ok() };
        zygote.prepare(state)
    }

    fn prepare(self, state: &State) -> Result<Option<Self>, StartError> {
        let preload = lock(&state.preload);
        let mut head = Writer::default();
        let mut fds = Vec::new();
        if let Some((function, input)) = &*preload {
            function.encode(&mut head);
            head.rest(&input.head);
            fds.extend(input.fds.iter().map(AsFd::as_fd));
        }
        let answer = self
            .child
            .channel()
            .send(tag::PRELOAD, &head.into_bytes(), &fds)
            .and_then(|()| self.child.channel().receive());
        let source = match answer {
            Ok(Some(message)) if message.tag == tag::READY => return Ok(Some(self)),
            Ok(Some(message)) if message.tag == tag::NO_CLONE => return Ok(None),
            Ok(Some(message)) if message.tag == tag::BAD_PRELOAD => {
                let why = String::from_utf8_lossy(&message.payload.head).into_owned();
                return Err(StartError::Preload { why });
            }
            Ok(Some(_)) => WireError.into(),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => error,
            Ok(None) | Err(_) => {
                let status = wait_for_end(&self.child)?;
                let why = format!("the fork server ended before it was ready: {status}");
                return Err(if preload.is_some() {
                    StartError::Preload { why }
                } else {
                    StartError::Forkserver { why }
                });
            }
        };
        Err(StartError::Os { doing: "starting the fork server", source })
    }

    /// A new process at the other end of `theirs`: its id and descriptor.
    pub(super) fn make(&self, theirs: &OwnedFd) -> Result<(u32, OwnedFd), MakeError> {
        self.cell.clear();
        let channel = self.child.channel();
        let answer = channel.send(tag::MAKE, &[], &[theirs.as_fd()]).and_then(|()| channel.receive_soon(SPIN));
        match answer {
            Ok(Some(message)) => decode_made(message).map_err(|error| MakeError::Os(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(MakeError::Os(error)),
            // The zygote died. If it was after `clone3`, the kernel left the id in the cell, and the process is our child.
            Ok(None) | Err(_) => {
                // Only its end makes the cell final: it might have closed its channel before.
                wait_for_end(&self.child).map_err(|_| MakeError::Gone)?;
                let pid = self.cell.pid().ok_or(MakeError::Gone)?.get();
                Ok((pid, pidfd::open(pid).map_err(MakeError::Os)?))
            }
        }
    }

    /// Ends the zygote, which has nothing to lose.
    pub(super) fn retire(&self) {
        // It ends by itself too, when its channel closes.
        let _ = self.child.signal(Signal::KILL);
    }
}

fn wait_for_end(child: &Child) -> Result<super::ExitStatus, StartError> {
    // The channel's end may come before the process's, and a zygote that closed it without ending is of no use.
    let _ = child.signal(Signal::KILL);
    loop {
        match child.wait(Deadline::NEVER) {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(StartError::Os { doing: "waiting for the fork server's end", source }),
        }
    }
}

fn decode_made(mut message: Message) -> Result<Result<(u32, OwnedFd), MakeError>, WireError> {
    let number = Reader::new(&message.payload.head).u32()?;
    match message.tag {
        tag::MADE => Ok(Ok((number, message.payload.fds.pop().ok_or(WireError)?))),
        tag::NO_CLONE => Ok(Err(MakeError::Clone(io::Error::from_raw_os_error(number.cast_signed())))),
        _ => Err(WireError),
    }
}

/// Runs this process as a zygote until its parent is gone. Returns in none of the processes that come out of it.
pub(crate) fn serve(parent_pid: u32, channel: &Channel, cell: &PidCell) -> io::Result<Infallible> {
    if !life::die_with_creator(parent_pid)? {
        clone::exit_now(0);
    }
    signal::block_all();
    clone::name_thread("forkserver");
    panic::install_hook(false);
    let Some(request) = channel.receive()? else { clone::exit_now(0) };
    let maker = match prepare(request.payload) {
        Ok(Ok(maker)) => maker,
        Ok(Err(error)) => {
            channel.send(tag::NO_CLONE, &encode_errno(&error), &[])?;
            clone::exit_now(0)
        }
        Err(why) => {
            channel.send(tag::BAD_PRELOAD, why.as_bytes(), &[])?;
            clone::exit_now(1)
        }
    };
    // Whoever reads this program's output to its end must not wait for the zygote; children get the parent's streams.
    let null = fd::dev_null()?;
    (0..=2).try_for_each(|number| fd::set_standard_stream(number, &null))?;
    drop(null);
    warm::keep_mapped_in_children();
    // Only for speed: failing changes nothing else.
    let _ = super::enter::rehearse();
    channel.send(tag::READY, &[], &[])?;
    while let Some(mut request) = channel.receive()? {
        let Some(theirs) = request.payload.fds.pop() else { return Err(WireError.into()) };
        match maker.make(cell) {
            Ok(Copied::Parent((pid, pidfd))) => channel.send(tag::MADE, &pid.to_le_bytes(), &[pidfd.as_fd()])?,
            Err(error) => channel.send(tag::NO_CLONE, &encode_errno(&error), &[])?,
            Ok(Copied::Child) => {
                fd::close_copy(channel.as_fd());
                fd::close_copy(cell.as_fd());
                return super::run_child(Channel::from(theirs));
            }
        }
    }
    clone::exit_now(0)
}

fn encode_errno(error: &io::Error) -> [u8; 4] {
    error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes()
}

/// Runs the preload function, then looks whether this process can be cloned at all.
fn prepare(preload: Payload) -> Result<io::Result<SiblingMaker>, String> {
    if !preload.head.is_empty() {
        let mut from = Reader::new(&preload.head);
        let function = Function::decode(&mut from).map_err(|error| error.to_string())?;
        let function = function.resolve().map_err(|error| error.to_string())?;
        let input = Payload { head: from.rest().to_vec(), fds: preload.fds };
        panic::catch(true, || function.call(input))
            .map_err(|panic| panic.to_string())?
            .map_err(|_| "the argument of the preload function could not be decoded".to_owned())?;
    }
    match clone::thread_count() {
        Ok(1) => Ok(SiblingMaker::new()),
        Ok(threads) => Err(format!(
            "{threads} threads run in the fork server after it was prepared: a process with more than one thread cannot \
             be copied soundly; start threads in the processes instead, or use the start method `spawn`"
        )),
        Err(error) => Err(format!("could not count the threads of the fork server in /proc/self/task: {error}")),
    }
}
