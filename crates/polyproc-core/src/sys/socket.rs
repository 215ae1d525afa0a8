//! One message with descriptors over a `SOCK_SEQPACKET` pair: whole or not at all, and end of file when the peer is gone.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The kernel's limit on descriptors in one message (`SCM_MAX_FD`).
pub(crate) const MAX_FDS: usize = 253;

/// Two connected ends, close-on-exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Whether `fd` is an end of such a pair.
pub(crate) fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
}

/// Ends the connection for both sides, whoever else holds its ends: the peer sees the end of file.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    // Fails only when it is shut down already.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// Sends one message; waits while the peer's buffer is full. `EPIPE` or `ECONNRESET` when the peer is gone, `EMSGSIZE`
/// when the message is larger than the socket's buffer.
pub(crate) fn send(socket: BorrowedFd<'_>, parts: &[IoSlice<'_>], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    send_with(socket, parts, fds, SendFlags::NOSIGNAL)
}

fn send_with(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, parts, &mut ancillary, flags))?;
    Ok(())
}

/// Receives one message and its descriptors (close-on-exec). An empty message is the end of file.
///
/// # Errors
/// `EAGAIN` with `wait` false and nothing there; `EINTR` when a signal handler ran; `EMFILE` when the process has no
/// room for the descriptors.
pub(crate) fn receive(socket: BorrowedFd<'_>, wait: bool) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    receive_with(socket, if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT })
}

/// A copy of the next message and of its descriptors, which stays where it is. As [`receive`] without waiting.
pub(crate) fn peek(socket: BorrowedFd<'_>) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    receive_with(socket, RecvFlags::DONTWAIT | RecvFlags::PEEK)
}

/// Sends one message without waiting: `EAGAIN` when the peer's buffer is full. As [`send`] otherwise.
pub(crate) fn try_send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    send_with(socket, &[IoSlice::new(bytes)], fds, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)
}

fn receive_with(socket: BorrowedFd<'_>, flags: RecvFlags) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let peek = || rustix::net::recv(socket, &mut [0u8; 0][..], flags | RecvFlags::PEEK | RecvFlags::TRUNC);
    let (_, len_bytes) = match peek() {
        // Says once that the peer went without reading all of ours; what it sent before is still there.
        Err(Errno::CONNRESET) => peek()?,
        other => other?,
    };
    let mut bytes = vec![0; len_bytes];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let got = rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)?;
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.contains(ReturnFlags::CTRUNC) {
        return Err(Errno::MFILE); // the kernel dropped descriptors that did not fit in our table
    }
    bytes.truncate(got.bytes);
    Ok((bytes, fds))
}
