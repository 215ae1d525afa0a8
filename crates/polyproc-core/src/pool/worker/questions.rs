//! Questions of a worker to the parent. There is one at a time, and the parent sends nothing else to a worker that is ready.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::function_cache::CachedFunction;
use crate::conn::Channel;
use crate::error_chain;
use crate::pool::shared::task::{decode_function, tag};
use crate::process::{self, Function};
use crate::wire::{Context, Payload};

/// Sends a message to the parent. Blocks while the channel is full.
///
/// # Errors
/// As `Channel::send`: the parent has exited, or a descriptor cannot be sent.
pub(super) fn send(channel: &Channel, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut sent = Ok(());
    process::idle(|| sent = channel.send(tag, head, fds));
    sent
}

/// Asks the parent for a function. A name determines which code runs, so it travels over this worker's channel, where no
/// other worker can write.
///
/// An empty name in the answer means that the parent does not know the id. It cannot be decoded, so the items are refused.
pub(super) fn function(channel: &Channel, id: u64) -> CachedFunction {
    let received = || -> io::Result<(Function, Vec<u8>)> {
        let answer = ask(channel, tag::NEED_FUNCTION, id, tag::FUNCTION)?;
        let (of, name) = answer.bytes.split_first_chunk().ok_or(io::ErrorKind::InvalidData)?;
        if u64::from_le_bytes(*of) != id {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(decode_function(name)?)
    };
    match received() {
        Err(error) => {
            let why = format!("the function could not be received from the parent: {}", error_chain(&error));
            CachedFunction { function: Err(why), context: None }
        }
        Ok((function, context)) => CachedFunction {
            function: function.resolve().map_err(|error| error.to_string()),
            context: (!context.is_empty()).then(|| Context::new(context)),
        },
    }
}

/// Sends a question, and blocks until the answer. Returns its payload.
///
/// There is one question at a time, and the parent sends nothing else to a worker that is ready; so the next
/// message is the answer. The parent answers without blocking, with an empty answer if it must.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`] if the parent has exited or closed the channel, [`io::ErrorKind::InvalidData`]
/// if the message has another tag than `answer`; the errors of the channel.
fn ask(channel: &Channel, question: u8, number: u64, answer: u8) -> io::Result<Payload> {
    send(channel, question, &number.to_le_bytes(), &[])?;
    let mut received = Ok(None);
    process::idle(|| received = channel.receive());
    let message = received?.ok_or(io::ErrorKind::UnexpectedEof)?;
    if message.tag == answer { Ok(message.payload) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Requests the descriptors of the argument of the task at `position`. Returns why they are missing as text for the
/// result.
pub(super) fn argument_fds(channel: &Channel, position: u64) -> Result<Vec<OwnedFd>, String> {
    let answer = ask(channel, tag::NEED_FDS, position, tag::FDS);
    answer
        .map(|payload| payload.fds)
        .map_err(|error| format!("the argument's descriptors could not be received: {}", error_chain(&error)))
}
