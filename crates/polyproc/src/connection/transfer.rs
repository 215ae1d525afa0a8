//! Operations on the engine's connections that the types of ends share.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use polyproc_core::conn as core;
use polyproc_core::reactor::readable;
use polyproc_core::{Deadline, Payload, retry_interrupted};
use serde::Deserializer;

use super::{RecvError, SendError};
use crate::codec::{self, Transfer, TransferError};

/// Encodes a value, and sends it.
pub(super) fn send<T: Transfer>(
    connection: &core::Connection,
    value: T,
    deadline: Deadline,
) -> Result<(), SendError<T>> {
    let sent = codec::with_buffer(|buffer| {
        let fds = codec::encode_to("the value", &value, buffer)?;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        retry_interrupted(|| connection.send(buffer, &fds, deadline)).map_err(TransferError::Os)
    });
    match sent {
        Ok(()) => Ok(()),
        Err(TransferError::Os(error)) => match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(SendError::Closed(value)),
            io::ErrorKind::TimedOut => Err(SendError::Full(value)),
            _ => Err(SendError::Failed(value, TransferError::Os(error))),
        },
        Err(error) => Err(SendError::Failed(value, error)),
    }
}

fn receive_payload(connection: &core::Connection, deadline: Deadline) -> Result<Payload, RecvError> {
    match retry_interrupted(|| connection.receive(deadline)) {
        Ok(Some(payload)) => Ok(payload),
        Ok(None) => Err(RecvError::Closed),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(RecvError::Empty),
        Err(error) => Err(TransferError::Os(error).into()),
    }
}

/// Receives the next value, and decodes it.
pub(super) fn receive<T: Transfer>(connection: &core::Connection, deadline: Deadline) -> Result<T, RecvError> {
    Ok(codec::decode("the value", receive_payload(connection, deadline)?).map_err(TransferError::from)?)
}

/// As [`receive`], but suspends the task instead of blocking the thread.
pub(super) async fn receive_async<T: Transfer>(connection: &core::Connection) -> Result<T, RecvError> {
    loop {
        match receive(connection, Deadline::PASSED) {
            Err(RecvError::Empty) => readable(connection.as_fd()).await.map_err(TransferError::Os)?,
            received => return received,
        }
    }
}

pub(super) fn send_bytes(connection: &core::Connection, bytes: &[u8]) -> io::Result<()> {
    retry_interrupted(|| connection.send(bytes, &[], Deadline::NEVER))
}

pub(super) fn receive_bytes(connection: &core::Connection) -> Result<Vec<u8>, RecvError> {
    Ok(receive_payload(connection, Deadline::NEVER)?.bytes)
}

pub(super) fn poll(connection: &core::Connection, deadline: Deadline) -> io::Result<bool> {
    retry_interrupted(|| connection.poll(deadline))
}

pub(super) fn try_clone(connection: &core::Connection) -> io::Result<core::Connection> {
    Ok(connection.as_fd().try_clone_to_owned()?.into())
}

/// Decodes a handle to an end.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<core::Connection, D::Error> {
    let [socket]: [OwnedFd; 1] = codec::take(deserializer)?;
    Ok(socket.into())
}
