//! The thread that runs callbacks, one after the other. It is started when it is first needed.
//!
//! Callbacks of a pool are the functions given to [`Call::then`](crate::pool::Call::then). They may take long, block, use the
//! pool and panic, so they run neither under the pool's lock nor on the pool's thread. `Driver::with` passes them on
//! after it has released the lock; [`Pool::join`](crate::pool::Pool::join) waits for them after the workers have exited.
//!
//! Unlike the pool's thread it does not block signals. Its queue is unbounded.
//!
//! 1. *Fresh*: no callback yet.
//! 2. *Running*: callbacks go to the thread.
//! 3. *Over*: the pool was joined. A later callback runs at once, on the thread that ends the call.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::latch::Latch;
use super::notifications::OnComplete;
use crate::deadline::Deadline;
use crate::process::lock;
use crate::robust::WaitError;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Callbacks {
    /// Held while a callback is handed over, never while one runs.
    state: Mutex<CallbackQueue>,
    /// Set when the thread is about to end.
    end: Arc<Latch>,
}

/// The states of the module's header; they only go forward.
#[derive(Debug, Default)]
enum CallbackQueue {
    /// No thread was started, or none could be.
    #[default]
    Fresh,
    /// The thread ends when the sender is dropped and the queue is empty.
    Running(Sender<OnComplete>, JoinHandle<()>),
    /// [`Callbacks::join`] was called. Holds the thread until it is joined.
    Over(Option<JoinHandle<()>>),
}

impl Callbacks {
    /// Runs `callback` on the thread. If it panics, the panic hook reports that, and the next callback runs.
    ///
    /// The caller does not hold the pool's lock. Returns at once, unless no thread runs: then it runs the callback
    /// itself.
    pub(super) fn run(&self, callback: OnComplete) {
        let mut state = lock(&self.state);
        if matches!(*state, CallbackQueue::Fresh) {
            let (sender, receiver) = channel::<OnComplete>();
            let end = Arc::clone(&self.end);
            let run = move || {
                receiver.into_iter().for_each(Self::run_here);
                end.set();
            };
            let spawned = std::thread::Builder::new().name("polyproc-callbacks".to_owned()).spawn(run);
            // If no thread can be started, the callback runs on this one.
            if let Ok(thread) = spawned {
                *state = CallbackQueue::Running(sender, thread);
            }
        }
        match &*state {
            CallbackQueue::Running(sender, _) => _ = sender.send(callback), // the thread lives as long as the sender
            CallbackQueue::Fresh | CallbackQueue::Over(_) => {
                drop(state);
                Self::run_here(callback);
            }
        }
    }

    /// Runs `callback` on this thread, which holds no lock. If it panics, the panic hook reports that.
    pub(super) fn run_here(callback: OnComplete) {
        let _ = catch_unwind(AssertUnwindSafe(callback)); // unwind safety: the data of the callback is dropped with it
    }

    /// Blocks until all callbacks so far have run; returns at once if a callback calls it. Returns false if the deadline passed
    /// first.
    ///
    /// # Errors
    /// [`WaitError::Interrupted`] if a signal handler ran.
    ///
    /// Several threads may call it, and again after a timeout. Callbacks that are added later run on the threads that
    /// add them.
    pub(super) fn join(&self, deadline: Deadline) -> Result<bool, WaitError> {
        let mut state = lock(&self.state);
        *state = match std::mem::replace(&mut *state, CallbackQueue::Over(None)) {
            CallbackQueue::Running(sender, thread) => {
                drop(sender); // the thread ends when it has run the pending callbacks
                CallbackQueue::Over(Some(thread))
            }
            CallbackQueue::Fresh => CallbackQueue::Over(None),
            over @ CallbackQueue::Over(_) => over,
        };
        let CallbackQueue::Over(Some(thread)) = &*state else { return Ok(true) };
        if thread.thread().id() == std::thread::current().id() {
            return Ok(true);
        }
        drop(state);
        if !self.end.wait(deadline)? {
            return Ok(false);
        }
        if let CallbackQueue::Over(thread) = &mut *lock(&self.state)
            && let Some(thread) = thread.take()
        {
            let _ = thread.join(); // it catches panics, and is about to end
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_they_were_joined_callbacks_run_where_they_are_given() {
        for first in [false, true] {
            let callbacks = Callbacks::default();
            let runs_here = || {
                let (sender, receiver) = channel();
                callbacks.run(Box::new(move || sender.send(std::thread::current().id()).expect("it is read")));
                receiver.recv() == Ok(std::thread::current().id())
            };
            assert!(!first || !runs_here());
            assert_eq!(callbacks.join(Deadline::NEVER), Ok(true));
            assert!(runs_here(), "no thread is started that nobody joins");
            assert_eq!(callbacks.join(Deadline::NEVER), Ok(true));
        }
    }
}
