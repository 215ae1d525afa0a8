//! Messages with descriptors over a `SOCK_SEQPACKET` pair (`unix(7)`). A message arrives whole or not at all; a closed peer is
//! the end of file.
//!
//! Users: channels, pipes, listeners and their authentication (`conn`), and the bell of a queue (`queue/bell.rs`). They define
//! the format of the bytes; here a message is bytes and up to [`MAX_FDS`] descriptors.
//!
//! Any number of threads and processes may use an end at the same time. The kernel keeps the messages: they outlive their
//! sender, and a death at any moment leaves whole messages or none. All descriptors that are created here, or received, are
//! close-on-exec. Functions that a protocol calls in a loop return the plain [`Errno`], since their callers decide by it.

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

/// Creates two connected sockets, close-on-exec.
///
/// # Errors
/// `EMFILE` or `ENFILE` if there are no descriptors left; `ENOBUFS` or `ENOMEM`.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Returns whether `fd` is a `SOCK_SEQPACKET` socket: an executed child thereby distinguishes its channel from a descriptor of
/// a program that has copied the token of its environment.
pub(crate) fn is_seqpacket(fd: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_type(fd) == Ok(SocketType::SEQPACKET)
}

/// Shuts down the connection for both sides, also for other processes that have its ends. The peer reads the end of file.
pub(crate) fn shut_down(socket: BorrowedFd<'_>) {
    // Fails only if it is shut down already.
    let _ = rustix::net::shutdown(socket, rustix::net::Shutdown::Both);
}

/// The length in bytes of the longest message that is received whole: a header and the longest head of `conn::channel`.
pub(crate) const MAX_LEN_BYTES: usize = 32 * 1024 + 8;

/// Sends one message, the concatenation of `parts`, and copies of `fds`. If the peer's buffer is full, blocks (`wait`) or
/// fails. Continues after a signal handler: a caller that must react to signals passes false and polls. `SIGPIPE` is never
/// raised.
///
/// # Errors
/// `EAGAIN` if the buffer is full and `wait` is false; `EPIPE` or `ECONNRESET` if the peer is closed; `EMSGSIZE` if the message
/// is larger than the socket's buffer; `ETOOMANYREFS` for more than [`MAX_FDS`] descriptors, or if this user has too many
/// descriptors in transit (`RLIMIT_NOFILE`).
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

/// Returns the limit in bytes on unread messages, including the kernel's overhead for each.
pub(crate) fn send_buffer_len(socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    rustix::net::sockopt::socket_send_buffer_size(socket)
}

/// Receives one message and its descriptors (close-on-exec). An empty message is the end of file. Drops the bytes beyond
/// [`MAX_LEN_BYTES`], which are padding: see `conn::channel`. With `wait`, blocks until a message arrives.
///
/// # Errors
/// `EAGAIN` if there is no message and `wait` is false; `EINTR` if a signal handler ran; `EMFILE` if the descriptors do not fit
/// in the process's table: then the message is lost.
pub(crate) fn receive(socket: BorrowedFd<'_>, wait: bool) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    receive_with(socket, MAX_LEN_BYTES, flags)?.whole()
}

/// As [`receive`] without blocking, but returns the bytes even if the descriptors do not fit in the process's table. The parent
/// of a pool can so fail the one item that the message belongs to.
pub(crate) fn receive_any(socket: BorrowedFd<'_>) -> rustix::io::Result<ReceivedMessage> {
    receive_with(socket, MAX_LEN_BYTES, RecvFlags::DONTWAIT)
}

/// Returns a copy of the next message and of its descriptors, and leaves the message in the socket. As [`receive`] without
/// blocking. A consumer that dies between this and the next [`receive`] loses nothing.
///
/// # Errors
/// `EMSGSIZE` if the message is longer than `len_bytes`; otherwise as [`receive`], but with `EMFILE` the message stays.
pub(crate) fn peek(socket: BorrowedFd<'_>, len_bytes: usize) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let received = receive_with(socket, len_bytes, RecvFlags::DONTWAIT | RecvFlags::PEEK)?;
    if received.is_longer && !received.are_fds_lost { Err(Errno::MSGSIZE) } else { received.whole() }
}

thread_local! {
    /// The buffer into which messages are received, kept so that it is not zeroed for each message. Empty while a receive is
    /// under way.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Receives the first bytes of the next message into `bytes`, without blocking. The kernel drops its descriptors. Returns the
/// length in bytes of the whole message, which may be larger than `bytes`; 0 is the end of file. For peers that are not
/// authenticated.
///
/// # Errors
/// `EAGAIN` if there is no message.
pub(crate) fn receive_bytes(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> rustix::io::Result<usize> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, len) = rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut *bytes, flags))?;
    Ok(len)
}

/// Returns the effective user id that the peer had when it connected or listened. The kernel records it, so the peer cannot
/// forge it.
pub(crate) fn peer_user(socket: BorrowedFd<'_>) -> rustix::io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(socket)?.uid.as_raw())
}

/// A received message.
#[derive(Debug)]
pub(crate) struct ReceivedMessage {
    /// The bytes, up to the limit of the call.
    pub(crate) bytes: Vec<u8>,
    /// The descriptors, owned by this process and close-on-exec.
    pub(crate) fds: Vec<OwnedFd>,
    /// The kernel dropped descriptors that did not fit in this process's table.
    pub(crate) are_fds_lost: bool,
    /// The message is longer than the limit of the call; the rest was dropped, except by a peek.
    is_longer: bool,
}

impl ReceivedMessage {
    /// Returns the message, or `EMFILE` if descriptors are lost.
    fn whole(self) -> rustix::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        if self.are_fds_lost { Err(Errno::MFILE) } else { Ok((self.bytes, self.fds)) }
    }
}

/// Calls `recvmsg(2)` for at most `len_bytes` bytes, with room for as many descriptors as a message can have. The scratch
/// buffer goes back also after an error.
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
        // Reported once, if the peer closed before it had read all messages; the messages that it sent can still be received.
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

/// Returns the address of a file.
///
/// # Errors
/// `ENAMETOOLONG` if the path is longer than 108 bytes.
pub(crate) fn path_address(path: &Path) -> io::Result<UnixAddress> {
    Ok(UnixAddress::new(path)?)
}

/// Returns the address of a name without a file.
///
/// # Errors
/// `ENAMETOOLONG` if the name is longer than 107 bytes.
pub(crate) fn abstract_address(name: &[u8]) -> io::Result<UnixAddress> {
    Ok(UnixAddress::new_abstract_name(name)?)
}

/// Returns the address with which `bind(2)` chooses an abstract name.
pub(crate) fn unnamed_address() -> UnixAddress {
    UnixAddress::new_unnamed()
}

/// Returns a non-blocking socket that listens at a path or an abstract name, with a queue of at most `backlog` connections.
/// Creates the file of a path; the caller removes it.
///
/// # Errors
/// [`io::ErrorKind::AddrInUse`] if the file exists or a socket has the name; otherwise an error of `bind(2)` or `listen(2)`.
pub(crate) fn listen(address: &UnixAddress, backlog: i32) -> io::Result<OwnedFd> {
    let socket = new()?;
    // Several processes may accept: one that finds no connection left must not block in `accept(2)`, but wait by its deadline.
    rustix::io::ioctl_fionbio(&socket, true)?;
    rustix::net::bind(&socket, address)?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Returns the abstract name of a listening socket.
///
/// # Errors
/// `EINVAL` if it listens at a path.
pub(crate) fn abstract_name(socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let address = UnixAddress::try_from(rustix::net::getsockname(socket)?)?;
    Ok(address.abstract_name().ok_or(Errno::INVAL)?.to_vec())
}

/// Accepts the next connection to a listening socket.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] if there is none; [`io::ErrorKind::Interrupted`] if a signal handler ran.
pub(crate) fn accept(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(socket, SocketFlags::CLOEXEC)?)
}

/// Connects to the process that listens at an address. Blocks while the listener's queue is full. Continues after a signal
/// handler.
///
/// # Errors
/// [`io::ErrorKind::ConnectionRefused`] or [`io::ErrorKind::NotFound`] if no process listens there.
pub(crate) fn connect(address: &UnixAddress) -> io::Result<OwnedFd> {
    let socket = new()?;
    rustix::io::retry_on_intr(|| rustix::net::connect(&socket, address))?;
    Ok(socket)
}

/// Creates an unconnected socket, close-on-exec.
fn new() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Shuts down sending, or else receiving, on this end, also for other processes that have it.
pub(crate) fn shut_half(socket: BorrowedFd<'_>, sending: bool) -> io::Result<()> {
    let half = if sending { rustix::net::Shutdown::Write } else { rustix::net::Shutdown::Read };
    Ok(rustix::net::shutdown(socket, half)?)
}
