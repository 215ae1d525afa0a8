//! [`readable`]: a future that is ready when a descriptor is readable. It works with any executor; one thread of the process
//! polls the descriptors of all futures.

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

const BELL: u64 = 0;

struct Reactor {
    watch: Poller,
    /// Rung when a future begins to wait while no other does.
    bell: EventFd,
    next_key: AtomicU64,
    /// The waker of each waiting future by its key; `None` once the future is ready.
    waiting: Mutex<HashMap<u64, Option<Waker>>>,
}

/// `None` until the first future is polled.
static REACTOR: PerProcess<Mutex<Option<&'static Reactor>>> = PerProcess::new(|_| Mutex::default());

impl Reactor {
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
#[must_use = "futures do nothing unless polled"]
pub fn readable(fd: BorrowedFd<'_>) -> Readable<'_> {
    Readable { fd, registered: None }
}

/// The future of [`readable`].
#[derive(Debug)]
pub struct Readable<'a> {
    fd: BorrowedFd<'a>,
    /// A duplicate of `fd`, since several futures may wait for one descriptor, and the key of the waker.
    registered: Option<(OwnedFd, u64)>,
}

impl Future for Readable<'_> {
    type Output = io::Result<()>;

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
    fn drop(&mut self) {
        if let (Some((fd, key)), Ok(reactor)) = (self.registered.take(), Reactor::current()) {
            reactor.watch.remove(fd.as_fd());
            let removed = lock(&reactor.waiting).remove(&key);
            drop(removed); // after the lock
        }
    }
}
