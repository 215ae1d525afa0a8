//! One message with descriptors over a `SOCK_SEQPACKET` pair: whole or not at all, and end of file when the peer is gone.

use std::cell::Cell;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

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

/// The longest message that is received whole.
pub(crate) const MAX_LEN_BYTES: usize = 32 * 1024 + 8;

/// Sends one message; waits while the peer's buffer is full, or fails with `EAGAIN`. `EPIPE` or `ECONNRESET` when the peer
/// is gone, `EMSGSIZE` when the message is larger than the socket's buffer.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    parts: &[IoSlice<'_>],
    fds: &[BorrowedFd<'_>],
    wait: bool,
) -> rustix::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    let flags = if wait { SendFlags::NOSIGNAL } else { SendFlags::NOSIGNAL | SendFlags::DONTWAIT };
    rustix::io::retry_on_intr(|| rustix::net::sendmsg(socket, parts, &mut ancillary, flags))?;
    Ok(())
}

/// How many bytes of messages, and of what the kernel keeps with each, may be unread.
pub(crate) fn send_buffer_len(socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    rustix::net::sockopt::socket_send_buffer_size(socket)
}

/// Receives one message and its descriptors (close-on-exec). An empty message is the end of file.
///
/// # Errors
/// `EAGAIN` with `wait` false and nothing there; `EINTR` when a signal handler ran; `EMFILE` when the process has no
/// room for the descriptors. What is behind [`MAX_LEN_BYTES`] is dropped: it is padding, see `conn::channel`.
pub(crate) fn receive(socket: BorrowedFd<'_>, wait: bool) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    receive_with(socket, MAX_LEN_BYTES, flags)?.whole()
}

/// As [`receive`] without waiting, also when the process has no room for the descriptors: the bytes are told all the same.
pub(crate) fn receive_any(socket: BorrowedFd<'_>) -> rustix::io::Result<ReceivedMessage> {
    receive_with(socket, MAX_LEN_BYTES, RecvFlags::DONTWAIT)
}

/// A copy of the next message, of that length at most, and of its descriptors, which stays where it is. As [`receive`] without
/// waiting; `EMSGSIZE` for a longer one.
pub(crate) fn peek(socket: BorrowedFd<'_>, len_bytes: usize) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let received = receive_with(socket, len_bytes, RecvFlags::DONTWAIT | RecvFlags::PEEK)?;
    if received.is_longer && !received.are_fds_lost { Err(Errno::MSGSIZE) } else { received.whole() }
}

thread_local! {
    /// Where messages are received.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The first bytes of the next message, without waiting, and without the descriptors that came with it, which the kernel drops;
/// and its whole length. 0 is the end of file.
pub(crate) fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> rustix::io::Result<usize> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, len) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *bytes, flags))?;
    Ok(len)
}

/// The user id of the process at the other end when it connected or listened.
pub(crate) fn peer_user(socket: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// A message that was received.
#[derive(Debug)]
pub(crate) struct ReceivedMessage {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
    /// The kernel dropped descriptors that did not fit in this process's table.
    pub(crate) are_fds_lost: bool,
    is_longer: bool,
}

impl ReceivedMessage {
    fn whole(self) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        if self.are_fds_lost { Err(Errno::MFILE) } else { Ok((self.bytes, self.fds)) }
    }
}

fn receive_with(socket: BorrowedFd<'_>, len_bytes: usize, flags: RecvFlags) -> rustix::io::Result<ReceivedMessage> {
    let mut bytes = SCRATCH.take();
    bytes.resize(bytes.len().max(len_bytes), 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut receive = |bytes: &mut [u8]| {
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(bytes)];
        let got = rustix::net::recvmsg(socket, &mut parts, &mut ancillary, flags | RecvFlags::CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        Ok((got.bytes, got.flags, fds))
    };
    let received = match receive(&mut bytes[..len_bytes]) {
        // Says once that the peer went without reading all of ours; what it sent before is still there.
        Err(Errno::CONNRESET) => receive(&mut bytes[..len_bytes]),
        other => other,
    };
    let received = received.map(|(len, flags, fds)| (bytes[..len].to_vec(), flags, fds));
    SCRATCH.set(bytes);
    let (bytes, flags, fds) = received?;
    let (are_fds_lost, is_longer) = (flags.contains(ReturnFlags::CTRUNC), flags.contains(ReturnFlags::TRUNC));
    Ok(ReceivedMessage { bytes, fds, are_fds_lost, is_longer })
}

pub(crate) use rustix::net::SocketAddrUnix as UnixAddress;

pub(crate) fn path_address(path: &Path) -> io::Result<UnixAddress> {
    Ok(UnixAddress::new(path)?)
}

pub(crate) fn abstract_address(name: &[u8]) -> io::Result<UnixAddress> {
    Ok(UnixAddress::new_abstract_name(name)?)
}

/// The system makes up an abstract name for who binds to it.
pub(crate) fn unnamed_address() -> UnixAddress {
    UnixAddress::new_unnamed()
}

/// A socket that listens at a path, or at an abstract name, of at most `backlog` connections.
pub(crate) fn listen(address: &UnixAddress, backlog: i32) -> io::Result<OwnedFd> {
    let socket = new()?;
    // Several may accept: who comes too late waits on by its own rules.
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// The abstract name of a listening socket.
pub(crate) fn abstract_name(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let address = UnixAddress::try_from(rustix::net::getsockname(socket)?)?;
    Ok(address.abstract_name().ok_or(Errno::INVAL)?.to_vec())
}

/// The next connection to a listening socket.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] when a signal handler ran.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(socket, SocketFlags::CLOEXEC)?)
}

/// A connection to who listens at an address.
pub(crate) fn connect(address: &UnixAddress) -> io::Result<OwnedFd> {
    let socket = new()?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, address))?;
    Ok(socket)
}

fn new() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// No more sending, or no more receiving, on this end, whoever else holds it.
pub(crate) fn shut_half(socket: BorrowedFd<'_>, sending: bool) -> io::Result<()> {
    let half = if sending { rustix::net::Shutdown::Write } else { rustix::net::Shutdown::Read };
    Ok(rustix::net::shutdown(socket, half)?)
}
