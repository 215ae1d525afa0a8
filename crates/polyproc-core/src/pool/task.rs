//! A task on the wire, and how it ends.
//!
//! | tag | direction | head | descriptors |
//! |---|---|---|---|
//! | READY | from the worker, first | empty | |
//! | TASK | to the worker | task `u64`, function as `bytes`, argument | the argument's |
//! | ANSWER | from the worker | task `u64`, tag of the outcome `u8`, outcome as a process sends its own | the outcome's |
//! | RETIRE | to the worker | empty | |

use std::io;
use std::os::fd::AsFd;

use crate::conn::{Channel, Message};
use crate::frame::Payload;
use crate::frame::wire::{Reader, WireError, Writer};
use crate::process::{Ending, Outcome, StartError};

pub(super) mod tag {
    pub(in crate::pool) const READY: u8 = 16;
    pub(in crate::pool) const TASK: u8 = 17;
    pub(in crate::pool) const RETIRE: u8 = 18;
    pub(in crate::pool) const ANSWER: u8 = 19;
}

/// How a task ended.
#[derive(Debug)]
pub enum TaskEnd {
    /// Its function ran, or could not be run.
    Outcome(Outcome),
    /// Its worker died.
    WorkerLost(Ending),
    /// The pool was terminated, or closed, before the task was run.
    Terminated,
    /// No worker could be started, or none lived long enough to take a task.
    NoWorkers(Option<StartError>),
}

pub(super) fn send_task(channel: &Channel, task: u64, function: &[u8], input: &Payload) -> io::Result<()> {
    let mut out = Writer::default();
    out.u64(task);
    out.bytes(function);
    out.rest(&input.head);
    let fds: Vec<_> = input.fds.iter().map(AsFd::as_fd).collect();
    channel.send(tag::TASK, &out.into_bytes(), &fds)
}

/// Task, encoded function and argument of a TASK message.
pub(crate) fn decode_task(message: Message) -> Result<(u64, Vec<u8>, Payload), WireError> {
    let mut from = Reader::new(&message.payload.head);
    let (task, function) = (from.u64()?, from.bytes()?.to_vec());
    Ok((task, function, Payload { head: from.rest().to_vec(), fds: message.payload.fds }))
}

pub(super) fn send_outcome(channel: &Channel, task: u64, outcome: &Outcome) -> io::Result<()> {
    let (kind, bytes, fds) = outcome.parts();
    let mut out = Writer::default();
    out.u64(task);
    out.u8(kind);
    out.rest(&bytes);
    channel.send(tag::ANSWER, &out.into_bytes(), &fds)
}

/// Task and outcome of a worker's answer.
pub(crate) fn decode_outcome(message: Message) -> Result<(u64, Outcome), WireError> {
    if message.tag != tag::ANSWER {
        return Err(WireError);
    }
    let mut from = Reader::new(&message.payload.head);
    let (task, kind) = (from.u64()?, from.u8()?);
    let payload = Payload { head: from.rest().to_vec(), fds: message.payload.fds };
    Ok((task, Outcome::decode(kind, payload)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Panic;

    #[test]
    fn outcomes_survive_the_wire() {
        let (ours, theirs) = Channel::pair().expect("a socket pair");
        let theirs = Channel::from(theirs);
        let panic = Panic { message: "x".to_owned(), location: None, backtrace: None };
        for (task, outcome) in (7..).zip([
            Outcome::Returned(Payload::from(vec![1])),
            Outcome::Raised(Payload::from(vec![2])),
            Outcome::Panicked(panic),
            Outcome::Refused("no".to_owned()),
        ]) {
            send_outcome(&ours, task, &outcome).expect("the peer is there");
            let message = theirs.receive().expect("a good message").expect("not the end");
            let (got_task, got) = decode_outcome(message).expect("well formed");
            assert_eq!((got_task, format!("{got:?}")), (task, format!("{outcome:?}")));
        }
        ours.send(99, &[0; 8], &[]).expect("the peer is there");
        let message = theirs.receive().expect("a good message").expect("not the end");
        assert!(decode_outcome(message).is_err());
    }
}
