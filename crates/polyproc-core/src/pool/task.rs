//! A task on the wire, and how it ends.
//!
//! | tag | direction | head | descriptors |
//! |---|---|---|---|
//! | READY | from the worker, first | empty | |
//! | TASK | to the worker | task `u64`, function as `bytes`, argument | the argument's |
//! | RETURNED, RAISED | from the worker | task `u64`, payload | the payload's |
//! | PANICKED, REFUSED | from the worker | task `u64`, panic or text | |
//! | RETIRE | to the worker | empty | |

use std::io;
use std::os::fd::AsFd;

use crate::conn::{Channel, Message};
use crate::frame::Payload;
use crate::frame::wire::{Reader, WireError, Writer};
use crate::process::{Ending, Outcome, Panic, StartError};

pub(super) mod tag {
    pub(in crate::pool) const READY: u8 = 16;
    pub(in crate::pool) const TASK: u8 = 17;
    pub(in crate::pool) const RETIRE: u8 = 18;
    pub(in crate::pool) const RETURNED: u8 = 19;
    pub(in crate::pool) const RAISED: u8 = 20;
    pub(in crate::pool) const PANICKED: u8 = 21;
    pub(in crate::pool) const REFUSED: u8 = 22;
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
pub(super) fn decode_task(message: Message) -> Result<(u64, Vec<u8>, Payload), WireError> {
    let mut from = Reader::new(&message.payload.head);
    let (task, function) = (from.u64()?, from.bytes()?.to_vec());
    Ok((task, function, Payload { head: from.rest().to_vec(), fds: message.payload.fds }))
}

pub(super) fn send_outcome(channel: &Channel, task: u64, outcome: &Outcome) -> io::Result<()> {
    let mut out = Writer::default();
    out.u64(task);
    let mut fds = Vec::new();
    let tag = match outcome {
        Outcome::Returned(payload) | Outcome::Raised(payload) => {
            out.rest(&payload.head);
            fds.extend(payload.fds.iter().map(AsFd::as_fd));
            if matches!(outcome, Outcome::Returned(_)) { tag::RETURNED } else { tag::RAISED }
        }
        Outcome::Panicked(panic) => {
            out.rest(&panic.encode());
            tag::PANICKED
        }
        Outcome::Refused(why) => {
            out.rest(why.as_bytes());
            tag::REFUSED
        }
    };
    channel.send(tag, &out.into_bytes(), &fds)
}

/// Task and outcome of a worker's answer.
pub(super) fn decode_outcome(message: Message) -> Result<(u64, Outcome), WireError> {
    let Message { tag, payload: Payload { head, fds } } = message;
    let mut from = Reader::new(&head);
    let task = from.u64()?;
    let rest = from.rest();
    let payload = Payload { head: rest.to_vec(), fds };
    let outcome = match tag {
        tag::RETURNED => Outcome::Returned(payload),
        tag::RAISED => Outcome::Raised(payload),
        tag::PANICKED => Outcome::Panicked(Panic::decode(rest)?),
        tag::REFUSED => Outcome::Refused(String::from_utf8(payload.head).map_err(|_| WireError)?),
        _ => return Err(WireError),
    };
    Ok((task, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

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
