//! The zygote: a helper program, one per process that starts others, which clones itself on request. `forkserver` is the other
//! side.
//!
//! The zygote is this program, executed again; the engine takes control before `main`. It has one thread and runs no user code
//! except `preload`. A request is one message with the new process's end of a channel. The zygote answers with the id and
//! descriptor of the new process, which is a child of the *requester* (`CLONE_PARENT`). The process receives its order over its
//! own channel, which the zygote does not read.
//!
//! | tag | direction | head | descriptors |
//! |---|---|---|---|
//! | PRELOAD | to the zygote, first | empty, or a function and its argument | the argument's |
//! | READY | back | the zygote's bounds | |
//! | NO_CLONE | back, instead of READY or MADE | `u32` errno | |
//! | BAD_PRELOAD | back, instead of READY | the reason, as text | |
//! | MAKE | to the zygote | empty | the new process's end of its channel |
//! | MADE | back | `u32` process id | process descriptor |
//! | END | to the zygote | empty | |
//!
//! At END, and when its parent closes the channel, the zygote ends in order ([`host::set_at_forkserver_end`](super::host)).
//!
//! One thread is what makes a bare clone sound: no lock can be held by a thread that the clone lacks. So the threads are
//! counted after the preload function, and nothing later in this file starts one. All signals stay blocked from the first step
//! on, in the clones too, until their set-up is done. The zygote keeps no record of its clones and does not reap them, as they
//! are its siblings; it is bound to its parent by the parent-death signal. An [`io::Error`] of [`serve`] ends it with 70, at
//! which the program kills and replaces it.

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;

use super::order::encode_bounds;
use super::{Function, panic};
use crate::conn::Channel;
use crate::sys::bounds::Bounds;
use crate::sys::clone::{self, Copied, SiblingMaker};
use crate::sys::exit::exit_now;
use crate::sys::pid_slot::PidSlot;
use crate::sys::{fd, parent_death, prefault, signal, title};
use crate::wire::Payload;
use crate::wire::{Reader, WireError, Writer};

/// The command line that `ps` shows for the zygote and for a spare. Tools that count the workers of a Python program leave out
/// processes whose command line contains this.
const TITLE: &str = "multiprocessing.forkserver";

/// The tags of the messages, as in the module's table. They are separate from those of [`process::tag`](super::tag): no other
/// protocol uses the zygote's channel.
pub(super) mod tag {
    pub(in crate::process) const PRELOAD: u8 = 1;
    pub(in crate::process) const READY: u8 = 2;
    pub(in crate::process) const NO_CLONE: u8 = 3;
    pub(in crate::process) const BAD_PRELOAD: u8 = 4;
    pub(in crate::process) const MAKE: u8 = 5;
    pub(in crate::process) const MADE: u8 = 6;
    pub(in crate::process) const END: u8 = 7;
}

/// Serves as a zygote until END or the end of the channel, then exits. Returns only errors, also in a cloned process, which
/// continues in [`enter::run`](super::enter::run).
///
/// `parent_pid` is the process that executed this one; if it is not the parent any more, the zygote exits. `channel` is the
/// zygote's end, `pid_slot` the word to which the kernel writes the id of each clone. A clone closes its copies of both.
///
/// Standard streams become `/dev/null` only after the preload function, whose output and errors the user can thus see.
///
/// # Errors
/// When a request has no descriptor, a message is malformed, or a system call failed. The parent's death is not an error: it is
/// the end of the channel, or a signal.
pub(crate) fn serve(parent_pid: u32, channel: &Channel, pid_slot: &PidSlot) -> io::Result<Infallible> {
    if !parent_death::die_with_creator(parent_pid, parent_death::DeathScope::Process)? {
        exit_now(0);
    }
    signal::block_all();
    clone::name_thread("forkserver");
    panic::install_hook(false);
    let Some(request) = channel.receive()? else { exit_now(0) };
    let mut maker = match prepare(request.payload) {
        Ok(Ok(maker)) => maker,
        Ok(Err(error)) => {
            channel.send(tag::NO_CLONE, &encode_errno(&error), &[])?;
            exit_now(0)
        }
        Err(why) => {
            channel.send(tag::BAD_PRELOAD, why.as_bytes(), &[])?;
            exit_now(1)
        }
    };
    // A reader of this program's output must not wait for the zygote to close it. Children get the parent's streams.
    let null = fd::above_standard(fd::dev_null()?)?;
    (0..=2).try_for_each(|number| fd::set_standard_stream(number, &null))?;
    drop(null);
    title::set(TITLE);
    prefault::keep_mapped_in_children();
    // A failure costs only speed.
    let _ = super::enter::rehearse();
    let mut bounds = Writer::default();
    encode_bounds(&Bounds::own(), &mut bounds);
    channel.send(tag::READY, &bounds.into_bytes(), &[])?;
    while let Some(mut request) = channel.receive()? {
        if request.tag == tag::END {
            break;
        }
        let Some(theirs) = request.payload.fds.pop() else { return Err(WireError.into()) };
        match super::host::copy(|| maker.make(pid_slot)) {
            Ok(Copied::Parent((pid, pidfd))) => {
                let pidfd: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
                channel.send(tag::MADE, &pid.to_le_bytes(), &pidfd)?;
            }
            Err(error) => channel.send(tag::NO_CLONE, &encode_errno(&error), &[])?,
            Ok(Copied::Child) => {
                fd::close_copy(channel.as_fd());
                fd::close_copy(pid_slot.as_fd());
                clone::name_thread("spare");
                // Bound to its parent until its order says whether it may outlive it.
                if !parent_death::die_with_creator(parent_pid, parent_death::DeathScope::Process)? {
                    exit_now(0);
                }
                return super::enter::run(Channel::from(theirs));
            }
        }
    }
    super::host::end_forkserver();
    exit_now(0)
}

/// Returns the errno of `error` as the head of NO_CLONE; `EIO` for an error without one.
fn encode_errno(error: &io::Error) -> [u8; 4] {
    error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes()
}

/// Runs the preload function, then checks whether this process can be cloned. The outer error is that of the preload.
///
/// Threads after a preload function are the fault of that function, and an outer error. Without one they come from a library of
/// the program, and the program is executed for each process instead, which the inner error requests.
fn prepare(preload: Payload) -> Result<io::Result<SiblingMaker>, String> {
    let preloads = !preload.bytes.is_empty();
    if preloads {
        let mut from = Reader::new(&preload.bytes);
        let function = Function::decode(&mut from).map_err(|error| error.to_string())?;
        let function = function.resolve().map_err(|error| error.to_string())?;
        let input = Payload { bytes: from.rest().to_vec(), fds: preload.fds };
        panic::catch(true, || function.call_once(input)).map_err(|panic| panic.to_string())?.map_err(|raised| {
            match raised.bytes.as_slice() {
                [] => "the preload function failed, or its argument could not be decoded".to_owned(),
                why => String::from_utf8_lossy(why).into_owned(),
            }
        })?;
    }
    match clone::settled_thread_count(1) {
        Ok(1) => Ok(SiblingMaker::new()),
        // A library of the program started threads: such a program cannot be cloned, but it can be executed.
        Ok(_) if !preloads => Ok(Err(io::Error::from_raw_os_error(libc::EPERM))),
        Ok(threads) => Err(format!(
            "cannot clone the fork server, in which {threads} threads run after preloading: start threads in the \
             processes instead, or use the start method `spawn`"
        )),
        // Without `/proc` the threads cannot be counted: handled like a refused clone.
        Err(error) => Ok(Err(error)),
    }
}
