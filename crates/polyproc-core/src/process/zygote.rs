//! The zygote: a helper program, one per process that starts others, which clones itself on request. `forkserver` is the
//! other side.
//!
//! The zygote is this program, executed anew and taken over before `main`. It has one thread and runs no user code but
//! `preload`. A request is one message with the new process's end of a channel; the zygote answers with the id and
//! descriptor of a new process, which is a child of the *requester* (`CLONE_PARENT`). What the process is to do comes over
//! its own channel: the zygote never sees it.
//!
//! | tag | direction | head | descriptors |
//! |---|---|---|---|
//! | PRELOAD | to the zygote, first | empty, or a function and its argument | the argument's |
//! | READY | back | empty | |
//! | NO_CLONE | back, instead of READY or MADE | `u32` errno | |
//! | BAD_PRELOAD | back, instead of READY | why, as text | |
//! | MAKE | to the zygote | empty | the new process's end of its channel |
//! | MADE | back | `u32` process id | process descriptor |
//! | END | to the zygote | empty | |
//!
//! At END, and when its parent closes the channel, it ends in order ([`host::set_at_forkserver_end`](super::host)).

use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;

use super::order::encode_bounds;
use super::{Function, panic};
use crate::conn::Channel;
use crate::frame::Payload;
use crate::frame::wire::{Reader, WireError, Writer};
use crate::sys::bounds::Bounds;
use crate::sys::cell::PidCell;
use crate::sys::clone::{self, Copied, SiblingMaker};
use crate::sys::{fd, life, signal, title, warm};

/// What `ps` shows of the zygote and of a process made ahead. Tools that count the workers of a Python program leave out processes
/// whose command line contains this.
const TITLE: &str = "multiprocessing.forkserver";

pub(super) mod tag {
    pub(in crate::process) const PRELOAD: u8 = 1;
    pub(in crate::process) const READY: u8 = 2;
    pub(in crate::process) const NO_CLONE: u8 = 3;
    pub(in crate::process) const BAD_PRELOAD: u8 = 4;
    pub(in crate::process) const MAKE: u8 = 5;
    pub(in crate::process) const MADE: u8 = 6;
    pub(in crate::process) const END: u8 = 7;
}

/// Runs this process as a zygote until its parent is gone. Returns in none of the processes that come out of it.
pub(crate) fn serve(parent_pid: u32, channel: &Channel, cell: &PidCell) -> io::Result<Infallible> {
    if !life::die_with_creator(parent_pid, life::Whom::Process)? {
        clone::exit_now(0);
    }
    signal::block_all();
    clone::name_thread("forkserver");
    panic::install_hook(false);
    let Some(request) = channel.receive()? else { clone::exit_now(0) };
    let mut maker = match prepare(request.payload) {
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
    let null = fd::above_standard(fd::dev_null()?)?;
    (0..=2).try_for_each(|number| fd::set_standard_stream(number, &null))?;
    drop(null);
    title::set(TITLE);
    warm::keep_mapped_in_children();
    // Only for speed: failing changes nothing else.
    let _ = super::enter::rehearse();
    let mut bounds = Writer::default();
    encode_bounds(&Bounds::own(), &mut bounds);
    channel.send(tag::READY, &bounds.into_bytes(), &[])?;
    while let Some(mut request) = channel.receive()? {
        if request.tag == tag::END {
            break;
        }
        let Some(theirs) = request.payload.fds.pop() else { return Err(WireError.into()) };
        match super::host::copy(|| maker.make(cell)) {
            Ok(Copied::Parent((pid, pidfd))) => {
                let pidfd: Vec<_> = pidfd.iter().map(AsFd::as_fd).collect();
                channel.send(tag::MADE, &pid.to_le_bytes(), &pidfd)?;
            }
            Err(error) => channel.send(tag::NO_CLONE, &encode_errno(&error), &[])?,
            Ok(Copied::Child) => {
                fd::close_copy(channel.as_fd());
                fd::close_copy(cell.as_fd());
                clone::name_thread("spare");
                // Until the order says whether it is to outlive its parent, it must not.
                if !life::die_with_creator(parent_pid, life::Whom::Process)? {
                    clone::exit_now(0);
                }
                return super::run_child(Channel::from(theirs));
            }
        }
    }
    super::host::end_forkserver();
    clone::exit_now(0)
}

fn encode_errno(error: &io::Error) -> [u8; 4] {
    error.raw_os_error().unwrap_or(libc::EIO).to_le_bytes()
}

/// Runs the preload function, then looks whether this process can be cloned at all.
fn prepare(preload: Payload) -> Result<io::Result<SiblingMaker>, String> {
    let preloads = !preload.head.is_empty();
    if preloads {
        let mut from = Reader::new(&preload.head);
        let function = Function::decode(&mut from).map_err(|error| error.to_string())?;
        let function = function.resolve().map_err(|error| error.to_string())?;
        let input = Payload { head: from.rest().to_vec(), fds: preload.fds };
        panic::catch(true, || function.call_once(input)).map_err(|panic| panic.to_string())?.map_err(|raised| {
            match raised.head.as_slice() {
                [] => "the preload function failed, or its argument could not be decoded".to_owned(),
                why => String::from_utf8_lossy(why).into_owned(),
            }
        })?;
    }
    match clone::settled_thread_count(1) {
        Ok(1) => Ok(SiblingMaker::new()),
        // A library of the program starts them: such a program cannot be cloned, but it can be executed.
        Ok(_) if !preloads => Ok(Err(io::Error::from_raw_os_error(libc::EPERM))),
        Ok(threads) => Err(format!(
            "{threads} threads run in the fork server after it was prepared: a process with more than one thread cannot \
             be copied soundly; start threads in the processes instead, or use the start method `spawn`"
        )),
        // Without `/proc` nobody knows whether it is sound: as where it is refused.
        Err(error) => Ok(Err(error)),
    }
}
