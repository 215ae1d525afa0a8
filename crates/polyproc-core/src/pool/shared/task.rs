//! How a task ends, and the messages on a worker's channel.
//!
//! | tag | direction | head | descriptors |
//! |---|---|---|---|
//! | READY | from the worker, first | empty | |
//! | UNFIT | from the worker, instead of READY: the initializer failed | tag of the outcome `u8`, outcome | |
//! | NEED_FDS | from the worker | position `u64` | |
//! | FDS | to the worker | empty | the argument's |
//! | NEED_FUNCTION | from the worker | id `u64` | |
//! | FUNCTION | to the worker | id `u64`, name and context; the latter are empty if the function is unknown | |
//! | RESULT_FDS | from the worker, before the record of the result | empty | the result's |
//! | LOG | from the worker | the position of its task `u64`, the record that a face logged | |
//!
//! Messages travel over the channel of each worker's process, in both directions, with the framing of
//! `conn/channel.rs`. The parent reads them in `messages` and trusts none; a worker trusts the parent. A worker has at
//! most one question without an answer. Tags below 16 are those of `process/tag.rs`, for any process.
//!
//! The file also defines the start message of a worker ([`Setup`]), the encoding of a task's items ([`Items`]), and how
//! an item ends ([`TaskEnd`]).

use std::fmt;

use super::result_ring::ResultKind;
use crate::process::{Function, Outcome, Panic, StartError};
use crate::wire::Payload;
use crate::wire::{Reader, WireError, Writer};

/// Tags of the messages in the table above.
pub(in crate::pool) mod tag {
    pub(in crate::pool) const READY: u8 = 16;
    pub(in crate::pool) const UNFIT: u8 = 17;
    pub(in crate::pool) const NEED_FDS: u8 = 18;
    pub(in crate::pool) const FDS: u8 = 19;
    pub(in crate::pool) const RESULT_FDS: u8 = 20;
    pub(in crate::pool) const LOG: u8 = 21;
    pub(in crate::pool) const NEED_FUNCTION: u8 = 22;
    pub(in crate::pool) const FUNCTION: u8 = 23;
}

/// How an item of a task ended.
///
/// Exactly one for each item that did not return a result. The faces convert it to their errors.
#[derive(Debug, Clone)]
pub enum TaskEnd {
    /// Its function failed: an error in the encoding of the face.
    Raised(Vec<u8>),
    /// Its function panicked.
    Panicked(Panic),
    /// It could not be run, for this reason.
    Refused(String),
    /// Its worker died.
    ///
    /// Its side effects may have happened.
    WorkerLost(Ended),
    /// It or its call exceeded its time limit.
    TimedOut,
    /// Its worker exceeded its memory limit, and was killed.
    OutOfMemory,
    /// It was cancelled.
    Cancelled,
    /// The pool was terminated, or was closed before the item was submitted.
    Terminated,
    /// No worker could be started, or none lived long enough to take a task.
    NoWorkers(NoWorkersReason),
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its process id.
    pub pid: u32,
    /// How the process ended.
    pub status: crate::process::ExitStatus,
    /// It reported that its stack overflowed.
    pub stack_overflow: bool,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stack_overflow {
            true => write!(f, "stack overflow ({})", self.status),
            false => self.status.fmt(f),
        }
    }
}

/// An event of a pool's workers.
///
/// Passed to [`PoolSettings::on_event`](crate::pool::PoolSettings::on_event), in the order in which the parent detects them.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PoolEvent {
    /// A worker process was started.
    WorkerStarted {
        /// Its process id.
        pid: u32,
    },
    /// A worker takes tasks from now on.
    WorkerReady {
        /// Its process id.
        pid: u32,
    },
    /// A worker process has ended, whether it was asked to or not.
    WorkerEnded {
        /// Its process id.
        pid: u32,
        /// How it ended.
        ended: Ended,
    },
    /// A worker could not be started.
    WorkerNotStarted {
        /// The reason.
        error: std::sync::Arc<StartError>,
    },
    /// An item was lost with its worker, and will be retried.
    ItemRetried {
        /// Its index in the call.
        index: u64,
        /// Number of attempts so far.
        attempts: u32,
    },
    /// An item was lost with its worker, or its worker was killed because of it.
    ItemLost {
        /// Its index in the call.
        index: u64,
    },
}

/// Why a pool has no workers.
///
/// All tasks of the pool fail with it, and later ones, too.
#[derive(Debug, Clone)]
pub enum NoWorkersReason {
    /// Workers fail to start.
    Start(std::sync::Arc<StartError>),
    /// Workers died before they were ready, one of them like this.
    Died(Ended),
    /// Their initializer panicked.
    InitializerPanicked(Panic),
    /// Their initializer failed: an error in the encoding of the face.
    InitializerRaised(Vec<u8>),
    /// Their initializer could not be run, for this reason.
    InitializerRefused(String),
}

impl TaskEnd {
    /// Decodes the record of an item that failed. Fails for the kinds of other records.
    ///
    /// `bytes` were copied from the worker's memory, and may be anything.
    ///
    /// # Errors
    /// [`WireError`] for the other kinds, and if the bytes do not decode.
    pub(in crate::pool) fn of_record(kind: ResultKind, bytes: Vec<u8>) -> Result<Self, WireError> {
        match kind {
            ResultKind::Raised => Ok(Self::Raised(bytes)),
            ResultKind::Panicked => Ok(Self::Panicked(Panic::decode(&bytes)?)),
            ResultKind::Refused => Ok(Self::Refused(String::from_utf8(bytes).map_err(|_| WireError)?)),
            ResultKind::Begin | ResultKind::Returned => Err(WireError),
        }
    }
}

/// Decodes why the initializer failed, from a worker's UNFIT message.
///
/// # Errors
/// [`WireError`] if the message is malformed, or says that the initializer returned.
pub(in crate::pool) fn decode_unfit(payload: Payload) -> Result<NoWorkersReason, WireError> {
    let (kind, rest) = payload.bytes.split_first().ok_or(WireError)?;
    match Outcome::decode(*kind, Payload::from(rest.to_vec()))? {
        Outcome::Panicked(panic) => Ok(NoWorkersReason::InitializerPanicked(panic)),
        Outcome::Raised(payload) => Ok(NoWorkersReason::InitializerRaised(payload.bytes)),
        Outcome::Refused(why) => Ok(NoWorkersReason::InitializerRefused(why)),
        Outcome::Returned(_) => Err(WireError),
    }
}

/// The message with which a worker starts. It carries descriptors: the board, the orders, the bell, the worker's stream, then
/// those of the initializer.
///
/// It is the input of the worker's process function, and comes from the parent: a malformed one ends the worker.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::pool) struct Setup {
    /// The number by which the worker claims tasks.
    pub(in crate::pool) number: u32,
    /// Number of items after which the worker exits; 0 for no limit.
    pub(in crate::pool) max_tasks: u64,
    /// See [`may_lend`](crate::pool::may_lend).
    pub(in crate::pool) most_fds: u64,
    /// The niceness of the worker; `None` for that of the parent.
    pub(in crate::pool) nice: Option<i32>,
    /// Processors that the worker may use; empty for no restriction.
    pub(in crate::pool) cpus: Vec<u32>,
    /// Runs before the first task, with its encoded argument.
    pub(in crate::pool) initializer: Option<(Function, Vec<u8>)>,
    /// Runs after the last task.
    pub(in crate::pool) finalizer: Option<Function>,
}

impl Setup {
    /// Encodes it without its descriptors, which travel beside the bytes.
    pub(in crate::pool) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(self.number);
        out.u64(self.max_tasks);
        out.u64(self.most_fds);
        out.u8(self.nice.is_some().into());
        out.u32(self.nice.unwrap_or(0).cast_unsigned());
        out.u32(u32::try_from(self.cpus.len()).unwrap_or(0));
        self.cpus.iter().for_each(|cpu| out.u32(*cpu));
        out.u8(self.finalizer.is_some().into());
        if let Some(function) = &self.finalizer {
            function.encode(&mut out);
        }
        out.u8(self.initializer.is_some().into());
        if let Some((function, argument)) = &self.initializer {
            function.encode(&mut out);
            out.rest(argument);
        }
        out.into_bytes()
    }

    /// Decodes the bytes of [`Setup::encode`].
    ///
    /// # Errors
    /// [`WireError`] if they are malformed.
    pub(in crate::pool) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let from = &mut Reader::new(bytes);
        let (number, max_tasks, most_fds) = (from.u32()?, from.u64()?, from.u64()?);
        let (has_nice, nice) = (from.flag()?, from.u32()?.cast_signed());
        let cpus = from.list(Reader::u32)?;
        let finalizer = if from.flag()? { Some(Function::decode(from)?) } else { None };
        let initializer = if from.flag()? { Some((Function::decode(from)?, from.rest().to_vec())) } else { None };
        Ok(Self { number, max_tasks, most_fds, nice: has_nice.then_some(nice), cpus, initializer, finalizer })
    }
}

/// Encodes a function with its context for a FUNCTION message: its encoded name, then the bytes of the context.
pub(in crate::pool) fn encode_function(function: &Function, context: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    function.encode(&mut out);
    out.rest(context);
    out.into_bytes()
}

/// Decodes the bytes of [`encode_function`]: the name, and the context, empty if there is none.
pub(in crate::pool) fn decode_function(bytes: &[u8]) -> Result<(Function, Vec<u8>), WireError> {
    let mut from = Reader::new(bytes);
    Ok((Function::decode(&mut from)?, from.rest().to_vec()))
}

/// Length in bytes of an item's length field.
const LEN_LEN: usize = 8;

/// The items of a task, each a length `u64` followed by that number of bytes.
///
/// The bytes are the argument of a task as workers read it.
#[derive(Debug, Default)]
pub struct Items {
    /// All items, the first one first.
    bytes: Vec<u8>,
    /// Number of items in `bytes`.
    count: u32,
    /// Offset of the last item.
    last: usize,
}

impl Items {
    /// Creates an empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an item: the bytes that `encode` appends to the given vector.
    ///
    /// # Errors
    /// The error of `encode`. Nothing is added in that case.
    pub fn push<T, E>(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> Result<T, E>) -> Result<T, E> {
        let start = self.bytes.len();
        self.bytes.extend([0; LEN_LEN]);
        match encode(&mut self.bytes) {
            Ok(with) => {
                let len = (self.bytes.len() - start - LEN_LEN) as u64;
                self.bytes[start..start + LEN_LEN].copy_from_slice(&len.to_le_bytes());
                self.count += 1;
                self.last = start;
                Ok(with)
            }
            Err(error) => {
                self.bytes.truncate(start);
                Err(error)
            }
        }
    }

    /// Returns the number of items.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Returns the length of all items in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Removes the last item, and returns it.
    #[must_use]
    pub fn split_off_last(&mut self) -> Self {
        let bytes = self.bytes.split_off(self.last);
        self.count -= u32::from(!bytes.is_empty());
        Self { count: u32::from(!bytes.is_empty()), last: 0, bytes }
    }

    /// Removes all items, and returns their bytes. Further items go to `spare`.
    pub(in crate::pool) fn take(&mut self, spare: Vec<u8>) -> Vec<u8> {
        (self.count, self.last) = (0, 0);
        std::mem::replace(&mut self.bytes, spare)
    }
}

/// Splits the first item off `bytes`.
///
/// # Errors
/// [`WireError`] if `bytes` are too short. Then they may have lost their first bytes.
pub(in crate::pool) fn next_item<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], WireError> {
    let len =
        bytes.split_off(..LEN_LEN).and_then(|len| len.try_into().ok()).map(u64::from_le_bytes).ok_or(WireError)?;
    bytes.split_off(..usize::try_from(len).map_err(|_| WireError)?).ok_or(WireError)
}

/// Decodes `bytes` as each message, for the fuzz targets: no decoder may panic.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decode_any(bytes: &[u8]) {
    let _ = Setup::decode(bytes);
    let _ = decode_function(bytes);
    let _ = decode_unfit(Payload::from(bytes.to_vec()));
    let mut rest = bytes;
    while next_item(&mut rest).is_ok() {}
    let mut rest = bytes;
    while super::result_ring::parse(&mut rest).is_ok() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_survives_the_wire() {
        let setup = Setup { number: 3, max_tasks: 5, nice: Some(-7), cpus: vec![0, 9], ..Setup::default() };
        assert_eq!(Setup::decode(&setup.encode()), Ok(setup));
    }

    #[test]
    fn items_come_apart_as_they_were_put_together() {
        let mut items = Items::new();
        for item in [&b"one"[..], b"", b"three"] {
            let add = |out: &mut Vec<u8>| {
                out.extend(item);
                Ok::<_, ()>(())
            };
            items.push(add).expect("no error");
        }
        assert_eq!(
            items.push(|out| {
                out.push(1);
                Err::<(), _>("no")
            }),
            Err("no")
        );
        let mut rest = &items.bytes[..];
        let mut next = || next_item(&mut rest);
        assert_eq!(
            (next(), next(), next(), next()),
            (Ok(&b"one"[..]), Ok(&b""[..]), Ok(&b"three"[..]), Err(WireError))
        );
        assert_eq!(items.count(), 3);
    }
}
