//! [`readable`]: a future that is ready when a descriptor is readable. For any executor; one thread for all of a process.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, Waker};

use crate::deadline::Deadline;
use crate::prim::{AtomicU64, Ordering};
use crate::process::{ProcessState, call_user, lock};
use crate::shm::registry;
use crate::sys::per_process::PerProcess;
use crate::sys::watch::{EventFd, Poller};

const BELL: u64 = 0;

struct Reactor {
    watch: Poller,
    /// Rung when the first of several futures begins to wait.
    bell: EventFd,
    next_key: AtomicU64,
    /// Who waits; `None` once it is ready.
    waiting: Mutex<HashMap<u64, Option<Waker>>>,
}

/// `None` until it is needed.
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
        ProcessState::current().own_threads.spawn("polyproc-async", move || reactor.run())?;
        Ok(started.insert(reactor))
    }

    fn run(&self) {
        let (mut keys, interval) = (Vec::new(), registry::refresh_interval());
        loop {
            let idle = lock(&self.waiting).is_empty();
            let until = if idle { Deadline::NEVER } else { Deadline::after(interval.next()) };
            if self.watch.wait(&mut keys, until).is_err() {
                return; // the program closed all descriptors
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
                // Not under the lock: what is woken, or dropped by that, may come here itself.
                let waker = lock(&self.waiting).get_mut(key).and_then(Option::take);
                if let Some(waker) = waker {
                    call_user(|| waker.wake());
                }
            }
        }
    }
}

/// Ready when `fd` is readable, or closed by its peer. It may be readable no more by then: look, and wait again.
#[must_use = "futures do nothing unless polled"]
pub fn readable(fd: BorrowedFd<'_>) -> Readable<'_> {
    Readable { fd, registered: None }
}

/// See [`readable`].
#[derive(Debug)]
pub struct Readable<'a> {
    fd: BorrowedFd<'a>,
    /// A descriptor of its own, as several may wait for one, and the key of its waker.
    registered: Option<(OwnedFd, u64)>,
}

impl Future for Readable<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let reactor = Reactor::current()?;
        if let Some((_, key)) = &self.registered {
            let new = context.waker().clone();
            // The old one is dropped after the lock was released.
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
