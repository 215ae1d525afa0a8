//! [`readable`]: a future that is ready when a descriptor is readable. It works with any executor; one thread of the process
//! polls the descriptors of all futures. The Rust face awaits messages of queues and connections with it.
//!
//! 1. First poll: the executor's thread stores the waker under a new key, and adds a duplicate of the descriptor to the set of
//!    an `epoll(7)`, to be reported once with that key. If no other future waits, it rings the reactor's bell, so that the
//!    reactor's thread replaces its unlimited sleep by a bounded one.
//! 2. The descriptor is readable: the thread `polyproc-async` takes the waker of the key, leaves `None` as "ready", and wakes.
//! 3. Next poll: finds `None`, and the future is ready. If the waker is still there, replaces it.
//! 4. Drop of the future, at any time: removes descriptor and key. A report that is under way finds no key.
//!
//! Each process has its own reactor, which the first poll starts and which lasts as long as the process. A forked child starts
//! a new one. A future that was polled before the fork belongs to the parent's reactor: the child must not use it.
//!
//! A process that was about to make a queue's descriptor readable may die before it does. So while futures wait, the thread
//! sleeps for at most 200 ms at first, and for twice as long after each sleep without a report, up to 64 s. After such a sleep
//! it makes all queues of this process check their descriptors. Without futures it sleeps without a limit.
//!
//! Wakers are code of the user: they are called without a lock, their panics are caught, and the thread counts as one of the
//! user's for `fork` meanwhile.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use crate::deadline::Deadline;
use crate::prim::{AtomicU64, Ordering};
use crate::process::{call_user, lock, own_threads};
use crate::shm::registry;
use crate::sys::per_process::PerProcess;
use crate::sys::watch::{EventFd, Poller};

/// The key of the bell. Keys of futures are larger.
const BELL: u64 = 0;

/// The reactor of one process. Leaked, as its thread and the futures use it until the process ends. Shared by the thread and
/// all futures; only [`Reactor::run`] waits.
struct Reactor {
    /// The bell, permanently, and a duplicate descriptor for each future, until it is reported or the future is dropped.
    watch: Poller,
    /// Rung when a future begins to wait while no other does.
    bell: EventFd,
    /// The key of the next future. Keys are not reused, so a late report cannot reach another future.
    next_key: AtomicU64,
    /// The waker of each future by its key, until the future is dropped; `None` once the future is ready. Never locked while a
    /// waker is called or dropped, since that code may poll or drop a future.
    waiting: Mutex<HashMap<u64, Option<Waker>>>,
}

/// `None` until the first future is polled. The lock is held during the start, so that there is one thread.
static REACTOR: PerProcess<Mutex<Option<&'static Reactor>>> = PerProcess::new(|_| Mutex::default());

impl Reactor {
    /// Returns the reactor of this process, and starts it at the first call.
    ///
    /// # Errors
    /// If there is no descriptor for the set or the bell, or the thread cannot be created. The next call tries again.
    fn current() -> io::Result<&'static Self> {
        let mut started = lock(REACTOR.get());
        if let Some(reactor) = *started {
            return Ok(reactor);
        }
        let reactor = Self {
            watch: Poller::new()?,
            bell: EventFd::new()?,
            next_key: AtomicU64::new(BELL + 1),
            waiting: Mutex::default(),
        };
        reactor.watch.add(&reactor.bell, BELL)?;
        let reactor: &'static Self = Box::leak(Box::new(reactor));
        own_threads().spawn("polyproc-async", move || reactor.run())?;
        Ok(started.insert(reactor))
    }

    /// Reports readiness to the futures. The loop of the thread `polyproc-async`, which has all signals blocked. Returns only
    /// if the program has closed the reactor's descriptors: then no future is woken any more.
    fn run(&self) {
        let (mut keys, interval) = (Vec::new(), registry::refresh_interval());
        loop {
            let idle = lock(&self.waiting).is_empty();
            let until = if idle { Deadline::NEVER } else { Deadline::after(interval.next()) };
            if self.watch.wait(&mut keys, until).is_err() {
                return; // the program has closed all descriptors
            }
            match keys.is_empty() {
                true if !idle => {
                    interval.lengthen();
                    registry::refresh_all();
                }
                _ => interval.restart(),
            }
            for key in &keys {
                if *key == BELL {
                    self.bell.answer();
                    continue;
                }
                // Woken without the lock: the waker may poll or drop a future, which locks `waiting`.
                let waker = lock(&self.waiting).get_mut(key).and_then(Option::take);
                if let Some(waker) = waker {
                    call_user(|| waker.wake());
                }
            }
        }
    }
}

/// Returns a future that is ready when `fd` is readable or closed by its peer. Another reader may have been first: read without
/// blocking, and wait again if there is nothing.
///
/// The future does nothing until it is polled. It can be dropped at any time; nothing is lost, as it reads nothing. Several
/// futures may wait for one descriptor, and all become ready.
///
/// # Errors
/// The future's value is an error if the process has no descriptor left for a duplicate, if the reactor's thread cannot be
/// started, or if `epoll(7)` cannot watch the descriptor, as for a regular file.
#[must_use = "futures do nothing unless polled"]
pub fn readable(fd: BorrowedFd<'_>) -> Readable<'_> {
    Readable { fd, registered: None }
}

/// The future of [`readable`]. Borrows the descriptor, which so stays open while it waits.
#[derive(Debug)]
pub struct Readable<'a> {
    fd: BorrowedFd<'a>,
    /// A duplicate of `fd`, since `epoll(7)` has one entry for each descriptor and several futures may wait for the same, and
    /// the key of the waker. `None` before the first poll.
    registered: Option<(OwnedFd, u64)>,
}

impl Future for Readable<'_> {
    type Output = io::Result<()>;

    /// Registers the waker at the first call, and replaces it at later ones. The key is stored before the descriptor is
    /// watched, so that a report finds its waker.
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reactor = Reactor::current()?;
        if let Some((_, key)) = &self.registered {
            let new = context.waker().clone();
            // The old waker is dropped after the lock is released.
            let old = match lock(&reactor.waiting).get_mut(key) {
                Some(Some(waker)) => Some(std::mem::replace(waker, new)),
                _ => None,
            };
            return if old.is_some() { Poll::Pending } else { Poll::Ready(Ok(())) };
        }
        let own = self.fd.try_clone_to_owned()?;
        let key = reactor.next_key.fetch_add(1, Ordering::Relaxed);
        let is_first = {
            let mut waiting = lock(&reactor.waiting);
            waiting.insert(key, Some(context.waker().clone()));
            waiting.len() == 1
        };
        if let Err(error) = reactor.watch.add_once(&own, key) {
            let removed = lock(&reactor.waiting).remove(&key);
            drop(removed); // after the lock
            return Poll::Ready(Err(error));
        }
        if is_first {
            reactor.bell.ring();
        }
        self.registered = Some((own, key));
        Poll::Pending
    }
}

impl Drop for Readable<'_> {
    /// Stops watching. The waker is dropped after the lock is released. A reactor that cannot be had has nothing to remove.
    fn drop(&mut self) {
        if let (Some((fd, key)), Ok(reactor)) = (self.registered.take(), Reactor::current()) {
            reactor.watch.remove(fd.as_fd());
            let removed = lock(&reactor.waiting).remove(&key);
            drop(removed); // after the lock
        }
    }
}
