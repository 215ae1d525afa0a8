//! Waiting for descriptors: `poll(2)` for a few, `epoll(7)` for a changing set, `eventfd(2)` to wake a thread.
//!
//! | item | users |
//! |---|---|
//! | [`is_readable`], [`is_writable`], [`readable`] | waits for a process, a message, a connection, or the zygote's answer |
//! | [`Poller`] | sleeps of the engine's own threads: supervisor, pool thread, reactor |
//! | [`EventFd`] | a *bell*: wakes such a thread (a pool's workers ring it, too), or a thread in `Listener::accept` |
//!
//! Each wait takes a [`Deadline`]. The functions of the first row also run in threads of the user: there they fail with
//! [`io::ErrorKind::Interrupted`] after a signal handler ran, and the face serves the signal and repeats the call. The engine's
//! own threads have all signals blocked.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll};
use rustix::io::Errno;

use super::signal;
use crate::deadline::Deadline;

/// Blocks until `fd` is readable or closed by its peer. Returns false if the deadline passes first. With [`Deadline::PASSED`],
/// checks once without blocking.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] if a signal handler ran. Also after [`signal::recheck_interval`] in the main thread of a
/// program that acts on signals only outside the engine, as Python does ([`signal::set_handlers_run_later`]).
pub(crate) fn is_readable(fd: BorrowedFd<'_>, deadline: Deadline) -> io::Result<bool> {
    Ok(!readable(&[fd], deadline)?.is_empty())
}

/// Blocks until `fd` is writable or closed by its peer. Returns false if the deadline passes first. Fails as [`is_readable`].
pub(crate) fn is_writable(fd: BorrowedFd<'_>, deadline: Deadline) -> io::Result<bool> {
    poll(&mut [PollFd::new(&fd, PollFlags::OUT)], deadline)
}

/// Blocks until some of `fds` are readable or closed by their peer. Returns their positions in `fds`, in order: none if the
/// deadline passes first. A closed or invalid descriptor counts as readable, so that the caller's next call on it reports the
/// error.
///
/// # Errors
/// As [`is_readable`].
pub(crate) fn readable<Fd: AsFd>(fds: &[Fd], deadline: Deadline) -> io::Result<Vec<usize>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
    poll(&mut polled, deadline)?;
    Ok(polled.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(at, _)| at).collect())
}

/// Calls `poll(2)`. Returns false if the deadline passes first. If this thread must return to act on signals
/// ([`signal::comes_back`]), [`signal::recheck_interval`] bounds the wait, and its end counts as an interruption.
fn poll(polled: &mut [PollFd<'_>], deadline: Deadline) -> io::Result<bool> {
    let is_bounded = deadline != Deadline::PASSED && signal::comes_back();
    let until = if is_bounded { deadline.or_sooner(signal::recheck_interval()) } else { deadline };
    match rustix::event::poll(polled, until.timespec().as_ref())? {
        0 if is_bounded && !deadline.has_passed() => {
            signal::lengthen_recheck_interval();
            Err(io::ErrorKind::Interrupted.into())
        }
        count => Ok(count > 0),
    }
}

/// A changing set of descriptors, each with a key. An entry lasts until every duplicate of its descriptor is closed, in all
/// processes. So call [`Poller::remove`] before closing a descriptor that may have duplicates.
///
/// Any thread may add and remove; one thread waits. A forked child must not use the set, which its parent still uses.
#[derive(Debug)]
pub(crate) struct Poller {
    epoll: OwnedFd,
}

impl Poller {
    /// Creates an empty set.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM`.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Adds `fd`, to report `key` as long as it is readable.
    ///
    /// # Errors
    /// `EPERM` for a file that cannot be polled, `EEXIST` if it is in the set, `ENOMEM` or `ENOSPC`.
    pub(crate) fn add(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN)?)
    }

    /// Adds `fd`, to report `key` once, the first time that it is readable. It stays in the set, silently, until it is removed
    /// or closed.
    ///
    /// # Errors
    /// As [`Poller::add`].
    pub(crate) fn add_once(&self, fd: impl AsFd, key: u64) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ONESHOT;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(key), flags)?)
    }

    /// Stops reporting `fd`. Does nothing if it is not in the set.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        // ENOENT: it is not in the set. EBADF: the program has closed it or the set.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// Blocks until a descriptor is readable. Replaces `keys` by the keys of the readable ones, at most 64: none if the
    /// deadline passed first, or after `EINTR`. The next call reports the others. A key may be reported after another thread
    /// has removed its descriptor.
    ///
    /// # Errors
    /// `EBADF` or `EINVAL` if the program has closed the descriptor of the set.
    pub(crate) fn wait(&self, keys: &mut Vec<u64>, deadline: Deadline) -> io::Result<()> {
        keys.clear();
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), deadline.timespec().as_ref()) {
            Ok(_) => keys.extend(events.iter().map(|event: &epoll::Event| event.data.u64())),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

/// A counter with a descriptor, by which one thread wakes another that polls it (`eventfd(2)`), also across processes. Readable
/// from a [`EventFd::ring`] to the next [`EventFd::answer`]; rings in between count as one.
#[derive(Debug)]
pub(crate) struct EventFd {
    eventfd: OwnedFd,
}

impl EventFd {
    /// Creates an eventfd that is not readable, non-blocking and close-on-exec.
    ///
    /// # Errors
    /// `EMFILE`, `ENFILE` or `ENOMEM`.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { eventfd: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)? })
    }

    /// Makes the descriptor readable. Never blocks.
    pub(crate) fn ring(&self) {
        // Fails only if 2^64 - 2 rings are unanswered, in which case the descriptor is readable anyway.
        let _ = rustix::io::write(&self.eventfd, &1u64.to_ne_bytes());
    }

    /// Clears the rings so far, so that the descriptor is no longer readable. The woken thread calls this before it
    /// checks for work, so that a ring after the check wakes it again.
    pub(crate) fn answer(&self) {
        // EAGAIN: there was no ring.
        let _ = rustix::io::read(&self.eventfd, &mut [0u8; 8]);
    }
}

/// Wraps an eventfd, for instance one that another process created.
impl From<OwnedFd> for EventFd {
    fn from(eventfd: OwnedFd) -> Self {
        Self { eventfd }
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> i32 {
        self.eventfd.as_raw_fd()
    }
}
