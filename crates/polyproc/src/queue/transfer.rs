//! Operations on the engine's queue that the queue types share: puts and gets of values.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use polyproc_core::queue as core;
use polyproc_core::reactor::readable;
use polyproc_core::{Deadline, OutOfSpace, retry_interrupted};
use serde::Deserializer;

use super::{GetError, PutError};
use crate::codec::{self, Transfer, TransferError};

/// Why a value was not put. Large errors are boxed, to keep the `Result`s of successful puts small.
enum Refusal {
    Full,
    Closed,
    OutOfSpace(Box<OutOfSpace>),
    Failed(Box<TransferError>),
}

impl<E: Into<TransferError>> From<E> for Refusal {
    #[cold]
    fn from(error: E) -> Self {
        Self::Failed(Box::new(error.into()))
    }
}

/// Encodes a value, and puts it into the queue.
pub(super) fn put<T: Transfer>(queue: &core::Queue, value: T, deadline: Deadline) -> Result<(), PutError<T>> {
    let put = codec::with_buffer(|buffer| {
        let fds = codec::encode_to("the value", &value, buffer)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        retry_interrupted(|| queue.put(buffer, &fds, deadline)).map_err(|error| match error {
            core::PutError::Full => Refusal::Full,
            core::PutError::Closed => Refusal::Closed,
            core::PutError::OutOfSpace(error) => Refusal::OutOfSpace(Box::new(error)),
            core::PutError::Memory(error) => error.into(),
            core::PutError::Descriptors(error) => TransferError::Descriptors(error).into(),
            _ => TransferError::NotReturnable.into(),
        })
    });
    match put {
        Ok(()) => Ok(()),
        Err(Refusal::Full) => Err(PutError::Full(value)),
        Err(Refusal::Closed) => Err(PutError::Closed(value)),
        Err(Refusal::OutOfSpace(error)) => Err(PutError::OutOfSpace(value, *error)),
        Err(Refusal::Failed(error)) => Err(PutError::Failed(value, *error)),
    }
}

/// Takes the next value from the queue, and decodes it.
pub(super) fn get<T: Transfer>(queue: &core::Queue, deadline: Deadline) -> Result<T, GetError> {
    codec::with_buffer(|buffer| {
        let mut fds = Vec::new();
        retry_interrupted(|| queue.get(buffer, &mut fds, deadline)).map_err(|error| match error {
            core::GetError::Empty => GetError::Empty,
            core::GetError::Closed => GetError::Closed,
            core::GetError::Memory(error) => TransferError::from(error).into(),
            core::GetError::Descriptors(error) => TransferError::Descriptors(error).into(),
            error => TransferError::Descriptors(io::Error::other(error)).into(),
        })?;
        codec::decode_from("the value", buffer, fds).map_err(|error| TransferError::from(error).into())
    })
}

/// As [`get`], but suspends the task instead of blocking the thread.
pub(super) async fn get_async<T: Transfer>(queue: &core::Queue) -> Result<T, GetError> {
    loop {
        match get(queue, Deadline::PASSED) {
            Err(GetError::Empty) => readable(queue.as_fd()).await.map_err(TransferError::Os)?,
            got => return got,
        }
    }
}

/// Returns whether the queue holds its maximum number of values.
pub(super) fn is_full(queue: &core::Queue) -> bool {
    let maxsize = queue.maxsize();
    maxsize > 0 && queue.len() >= maxsize
}

/// Decodes a handle to a queue.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<core::Queue, D::Error> {
    core::Queue::from_fds(codec::take(deserializer)?).map_err(serde::de::Error::custom)
}
