//! The child's loop: take a task, run it, answer, until told to retire or the parent is gone.

use std::collections::HashMap;
use std::io;

use super::task::{decode_task, send_outcome, tag};
use crate::conn::{Channel, Message, is_peer_gone};
use crate::frame::Payload;
use crate::frame::wire::Reader;
use crate::process::{Function, Outcome, ResolvedFunction, panic};

/// Functions found so far, by their encoded names.
type Known = HashMap<Vec<u8>, ResolvedFunction>;

/// Serves tasks until the pool says otherwise. The outcome is for the process, not for a task.
pub(crate) fn run(channel: &Channel) -> Outcome {
    match serve(channel) {
        Ok(()) => Outcome::Returned(Payload::default()),
        // The parent is gone: nobody reads this.
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

fn serve(channel: &Channel) -> io::Result<()> {
    let mut known = Known::new();
    channel.send(tag::READY, &[], &[])?;
    while let Some(message) = channel.receive()?.filter(|message| message.tag == tag::TASK) {
        answer(channel, &mut known, message)?;
    }
    Ok(())
}

fn answer(channel: &Channel, known: &mut Known, message: Message) -> io::Result<()> {
    let (task, name, input) = decode_task(message)?;
    let outcome = match find(known, name) {
        Err(why) => Outcome::Refused(why),
        Ok(function) => match panic::catch(true, || function.call(input)) {
            Ok(Ok(payload)) => Outcome::Returned(payload),
            Ok(Err(payload)) => Outcome::Raised(payload),
            Err(panic) => Outcome::Panicked(panic),
        },
    };
    match send_outcome(channel, task, &outcome) {
        // Too many descriptors, or no memory for the answer: the task fails, the worker lives.
        Err(error) if !is_peer_gone(&error) => {
            let why = format!("the result could not be sent to the parent: {error}");
            send_outcome(channel, task, &Outcome::Refused(why))
        }
        sent => sent,
    }
}

fn find(known: &mut Known, name: Vec<u8>) -> Result<ResolvedFunction, String> {
    if let Some(function) = known.get(&name) {
        return Ok(*function);
    }
    let function = Function::decode(&mut Reader::new(&name)).map_err(|error| error.to_string())?;
    let function = function.resolve().map_err(|error| error.to_string())?;
    known.insert(name, function);
    Ok(function)
}
