//! [`Channel`]: tagged messages with descriptors between two processes of a program.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 1 | tag: the kind of message, defined by the protocol that uses the channel |
//! | 1 | 1 | 1 if the head is in a memory file, the first descriptor of the message; else 0 |
//! | 2 | 6 | length of the head in bytes, little-endian |
//! | 8 | | the head, unless it is in a memory file |
//! | | | padding, ignored |
//!
//! **Unread data is bounded.** The kernel does not count the bytes in memory files: the socket's buffer would hold about two
//! hundred messages, however large their files are. So a message is padded in proportion to the data outside the socket, such
//! that [`WINDOW_BYTES`] fill the buffer. The kernel then enforces the bound, for any number of senders and receivers,
//! whichever of them dies.
//!
//! `docs/design/channel.md` lists the protocols over channels, what a death leaves and what the end of file means. `process`
//! uses a channel for each zygote and child, `pool` for its workers, [`Connection`](super::Connection) for the user's pipes.
//!
//! A channel has no lock and no state besides the socket: any thread, and any process that has a copy of an end, may send and
//! receive, and the kernel keeps messages whole. A received message is copied out of the socket before it is decoded; a head in
//! a memory file is copied out of the file, which the sender may still write to. Decoding refuses malformed messages. It limits
//! neither their number nor their descriptors: each protocol limits these for its own peers.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;

use crate::deadline::Deadline;
use crate::robust::HAS_SPARE_PROCESSOR;
use crate::sys::{memory, socket};
use crate::wire::Payload;

const HEADER_LEN: usize = 8;
/// Longer heads travel in a memory file. Two messages of this length fit in the default socket buffer (212,992 bytes).
const INLINE_LEN_BYTES: usize = 32 * 1024;

/// How many bytes the peer may leave unread, in addition to the message that exceeds this limit.
const WINDOW_BYTES: usize = 16 << 20;
/// The source of padding, and its limit: a socket's buffer can be made larger than this.
static PADDING: [u8; 1 << 20] = [0; 1 << 20];

/// A message that is about to be sent. Lives for one send, which may take several attempts while the peer's buffer is full; the
/// memory file is created once.
#[derive(Debug)]
pub(super) struct Outgoing<'a> {
    tag: u8,
    head: &'a [u8],
    /// The memory file that holds a large head; `None` for a head that is sent inline.
    spilled: Option<OwnedFd>,
    /// The descriptors of the message, without the memory file.
    fds: &'a [BorrowedFd<'a>],
    /// The number of zero bytes after the head.
    padding: usize,
}

/// Returns the first 8 bytes of a message. `len_bytes` is the length of the head, below 2^48.
fn header(tag: u8, spilled: bool, len_bytes: usize) -> [u8; HEADER_LEN] {
    let mut header = ((len_bytes as u64) << 16).to_le_bytes();
    header[0] = tag;
    header[1] = spilled.into();
    header
}

/// Returns whether sending or receiving failed because the peer has closed its end or died.
pub(crate) fn is_peer_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPIPE | libc::ECONNRESET))
}

/// Returns a whole message with an empty head, for a signal handler, which cannot allocate.
pub(crate) const fn bare_message(tag: u8) -> [u8; HEADER_LEN] {
    [tag, 0, 0, 0, 0, 0, 0, 0]
}

/// A received message. Its descriptors are close-on-exec and belong to the receiver; the one of a memory file is not among
/// them.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) tag: u8,
    pub(crate) payload: Payload,
}

/// Returns the head of an untrusted message; `None` unless the head is inline and has exactly the stated length.
pub(super) fn bare_bytes(message: &[u8]) -> Option<&[u8]> {
    let (header, head) = message.split_first_chunk::<HEADER_LEN>()?;
    let len_bytes = usize::try_from(u64::from_le_bytes(*header) >> 16).ok()?;
    (header[1] == 0 && head.len() == len_bytes).then_some(head)
}

/// The result of [`Channel::try_receive_any`].
#[derive(Debug)]
pub(crate) enum Arrival {
    /// A message with all its descriptors.
    Whole(Message),
    /// A message with this tag, whose descriptors did not fit in this process's table and were dropped.
    FdsLost(u8),
}

/// One end of a socket pair. Messages arrive whole and in order, or not at all. Dropping it closes this process's copy of the
/// end; the peer reads the end of file when all copies are closed.
#[derive(Debug)]
pub(crate) struct Channel {
    /// A blocking `SOCK_SEQPACKET` socket. Calls that must not block request that for themselves, as a forked process shares
    /// the socket's flags.
    socket: OwnedFd,
}

impl Channel {
    /// Returns a new channel and the peer's end, close-on-exec, to pass on to another process. The caller closes its copy of
    /// that end then: otherwise it never reads the end of file.
    ///
    /// # Errors
    /// When no descriptors are available.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socket::pair()?;
        Ok((Self { socket: ours }, theirs))
    }

    /// Sends a message. Blocks while the peer's buffer is full, also through signals.
    ///
    /// # Errors
    /// `EPIPE` or `ECONNRESET` when the peer has closed its end; `EMFILE` or `ENOMEM` when a large head got no memory file;
    /// [`io::ErrorKind::InvalidInput`] for more than 252 descriptors. Nothing was sent then.
    pub(crate) fn send(&self, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(tag, head, fds, true)
    }

    /// As [`Channel::send`], without blocking.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the peer's buffer is full.
    pub(crate) fn try_send(&self, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.send_with(tag, head, fds, false)
    }

    fn send_with(&self, tag: u8, head: &[u8], fds: &[BorrowedFd<'_>], wait: bool) -> io::Result<()> {
        self.transmit(&mut self.outgoing(tag, head, fds, 0)?, wait)
    }

    /// Prepares a message for [`Channel::transmit`]. `lent_bytes` is the size of the data behind `fds`, in bytes; it counts
    /// against [`WINDOW_BYTES`].
    pub(super) fn outgoing<'a>(
        &self,
        tag: u8,
        head: &'a [u8],
        fds: &'a [BorrowedFd<'a>],
        lent_bytes: usize,
    ) -> io::Result<Outgoing<'a>> {
        if fds.len() >= socket::MAX_FDS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "cannot send {} descriptors in one message: at most {} are possible",
                    fds.len(),
                    socket::MAX_FDS - 1
                ),
            ));
        }
        let mut message = Outgoing { tag, head, spilled: None, fds, padding: 0 };
        if head.len() > INLINE_LEN_BYTES {
            message.spilled = Some(memory::create_with(head)?);
        }
        let (inline, spilled) = if message.spilled.is_some() { (0, head.len()) } else { (head.len(), 0) };
        let beside = lent_bytes.saturating_add(spilled);
        if beside > 0 {
            message.padding = self.padding(beside, HEADER_LEN + inline);
        }
        Ok(message)
    }

    /// Returns the padding, in bytes, for a message of `len` bytes with `beside` bytes of data outside the socket: the same
    /// fraction of the buffer as `beside` is of the window, and not more than the kernel accepts in one message.
    fn padding(&self, beside: usize, len: usize) -> usize {
        let Ok(buffer) = socket::send_buffer_len(self.as_fd()) else { return 0 };
        // The kernel rejects a message as long as the buffer.
        let most = buffer.saturating_sub(len + 256).min(PADDING.len());
        (beside.min(WINDOW_BYTES) as u128 * buffer as u128 / WINDOW_BYTES as u128).try_into().unwrap_or(most).min(most)
    }

    /// Sends a prepared message. After an error the same message can be sent again. A head that the socket's buffer cannot hold
    /// is moved to a memory file, and the message is sent once more with the same padding.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the peer's buffer is full and `wait` is false; else as [`Channel::send`].
    pub(super) fn transmit(&self, message: &mut Outgoing<'_>, wait: bool) -> io::Result<()> {
        let &mut Outgoing { tag, head, fds, padding, .. } = message;
        let padding = IoSlice::new(&PADDING[..padding]);
        if message.spilled.is_none() {
            let header = header(tag, false, head.len());
            match socket::send(self.as_fd(), &[IoSlice::new(&header), IoSlice::new(head), padding], fds, wait) {
                Err(Errno::MSGSIZE) => {} // the socket's buffer is smaller than the default
                sent => return Ok(sent?),
            }
            message.spilled = Some(memory::create_with(head)?);
        }
        let all: Vec<_> = message.spilled.iter().map(AsFd::as_fd).chain(fds.iter().copied()).collect();
        Ok(socket::send(self.as_fd(), &[IoSlice::new(&header(tag, true, head.len())), padding], &all, wait)?)
    }

    /// Ends the connection in both directions, for all processes that have an end: the peer reads the end of file. For a worker
    /// that may not be signalled.
    pub(crate) fn shut_down(&self) {
        socket::shut_down(self.as_fd());
    }

    /// Returns the next message; `None` when the peer has closed its end and all messages have been read. Blocks until then,
    /// also through signals.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] for a malformed message; `EMFILE` when its descriptors do not fit in this process's
    /// table. The message is lost in both cases, and the next call returns the one after it.
    pub(crate) fn receive(&self) -> io::Result<Option<Message>> {
        decode(rustix::io::retry_on_intr(|| socket::receive(self.as_fd(), true))?)
    }

    /// As [`Channel::receive`], but a signal handler ends the wait.
    ///
    /// # Errors
    /// As [`Channel::receive`]; [`io::ErrorKind::Interrupted`] when a signal handler ran.
    pub(super) fn receive_unless_interrupted(&self) -> io::Result<Option<Message>> {
        decode(socket::receive(self.as_fd(), true)?)
    }

    /// As [`Channel::try_receive`], but polls for up to `spin`, unless the answering process needs this processor.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when no message arrived.
    pub(crate) fn try_receive_for(&self, spin: Duration) -> io::Result<Option<Message>> {
        let deadline = Deadline::after(if *HAS_SPARE_PROCESSOR { spin } else { Duration::ZERO });
        loop {
            match self.try_receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && !deadline.has_passed() => {}
                other => return other,
            }
        }
    }

    /// As [`Channel::receive`], without blocking.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when no message has arrived.
    pub(crate) fn try_receive(&self) -> io::Result<Option<Message>> {
        decode(rustix::io::retry_on_intr(|| socket::receive(self.as_fd(), false))?)
    }

    /// As [`Channel::try_receive`], but also returns the tag of a message whose descriptors did not fit in this process's
    /// table.
    ///
    /// # Errors
    /// As [`Channel::try_receive`].
    pub(crate) fn try_receive_any(&self) -> io::Result<Option<Arrival>> {
        let received = rustix::io::retry_on_intr(|| socket::receive_any(self.as_fd()))?;
        match received.bytes.first() {
            Some(&tag) if received.are_fds_lost => Ok(Some(Arrival::FdsLost(tag))),
            _ => Ok(decode((received.bytes, received.fds))?.map(Arrival::Whole)),
        }
    }
}

/// Decodes bytes and descriptors that a peer may have forged; `None` for the end of file. Bytes after the head are padding.
/// Descriptors of a refused message are closed.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a header that is incomplete or contradicts the message; the error of [`memory::read`] for
/// a head that is not in a memory file of that length.
pub(crate) fn decode((mut bytes, mut fds): (Vec<u8>, Vec<OwnedFd>)) -> io::Result<Option<Message>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed message on a polyproc channel");
    let header: [u8; HEADER_LEN] = bytes.get(..HEADER_LEN).and_then(|h| h.try_into().ok()).ok_or_else(malformed)?;
    let len_bytes = usize::try_from(u64::from_le_bytes(header) >> 16).map_err(|_| malformed())?;
    let head = match header[1] {
        0 if bytes.len() - HEADER_LEN >= len_bytes => {
            bytes.truncate(HEADER_LEN + len_bytes);
            bytes.split_off(HEADER_LEN)
        }
        1 if !fds.is_empty() => memory::read(fds.remove(0), len_bytes)?,
        _ => return Err(malformed()),
    };
    Ok(Some(Message { tag: header[0], payload: Payload { bytes: head, fds } }))
}

impl From<OwnedFd> for Channel {
    fn from(socket: OwnedFd) -> Self {
        Self { socket }
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.socket
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_every_size_arrive_whole_with_their_descriptors() {
        let (ours, theirs) = Channel::pair().expect("a socket pair");
        let theirs = Channel::from(theirs);
        for len in [0, 1, INLINE_LEN_BYTES, INLINE_LEN_BYTES + 1, 3_000_000] {
            let head: Vec<u8> = (0..=250).cycle().take(len).collect();
            let null = crate::sys::fd::dev_null().expect("/dev/null");
            ours.send(7, &head, &[null.as_fd()]).expect("the peer is there");
            let message = theirs.receive().expect("a good message").expect("not the end");
            assert_eq!((message.tag, message.payload.bytes == head, message.payload.fds.len()), (7, true, 1));
        }
        drop(ours);
        assert!(theirs.receive().expect("a clean end").is_none());
    }

    #[test]
    fn malformed_messages_are_errors() {
        for bytes in [&[1u8][..], &[1, 0, 9, 0, 0, 0, 0, 0, 1], &[1, 1, 4, 0, 0, 0, 0, 0], &[1, 2, 0, 0, 0, 0, 0, 0]] {
            let error = decode((bytes.to_vec(), Vec::new())).expect_err("malformed");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn what_is_said_to_lie_in_a_memory_file_is_there() {
        let spilled = |len: u64| [&[1, 1][..], &len.to_le_bytes()[..6]].concat();
        let sparse = crate::sys::memory::create(c"polyproc-test", 1 << 30).expect("a memory file");
        assert!(decode((spilled(1 << 30), vec![sparse])).is_err(), "it costs the peer nothing");
        let executable = std::fs::File::open("/proc/self/exe").expect("this program");
        assert!(decode((spilled(4), vec![executable.into()])).is_err(), "a read of another file may wait for ever");
        let whole = memory::create_with(b"four").expect("a memory file");
        let message = decode((spilled(4), vec![whole])).expect("a good message").expect("not the end");
        assert_eq!(message.payload.bytes, b"four");
    }

    #[test]
    fn what_a_dead_peer_sent_is_still_read() {
        let (ours, theirs) = Channel::pair().expect("a socket pair");
        let theirs = Channel::from(theirs);
        ours.send(1, b"never read by the peer", &[]).expect("the peer is there");
        theirs.send(2, b"last words", &[]).expect("the peer is there");
        drop(theirs);
        let message = ours.try_receive().expect("not an error").expect("not the end");
        assert_eq!((message.tag, &message.payload.bytes[..]), (2, &b"last words"[..]));
        assert!(ours.try_receive().expect("a clean end").is_none());
    }
}
