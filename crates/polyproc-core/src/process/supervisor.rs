//! The permanent thread of a process that has children: it executes programs and reaps what nobody joins.
//!
//! It executes, because a child's parent-death signal comes when the *thread* that created it ends, and this thread ends
//! with the process only. It reaps, so that a child that nobody waits for does not stay a zombie.

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::state::{State, lock};
use super::Child;
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::sys::exec;
use crate::sys::signal;
use crate::sys::watch::{Bell, Watch};

/// The key of the bell; those of children are larger.
pub(crate) const BELL: u64 = 0;

type Request = Box<dyn FnOnce() + Send>;

/// The handle to the thread.
#[derive(Debug)]
pub(crate) struct Supervisor {
    watch: Watch,
    bell: Bell,
    requests: Mutex<Sender<Request>>,
}

impl Supervisor {
    /// Starts the thread of `state`.
    pub(crate) fn start(state: &'static State) -> io::Result<&'static Self> {
        let (sender, receiver) = channel();
        let supervisor = Self { watch: Watch::new()?, bell: Bell::new()?, requests: Mutex::new(sender) };
        supervisor.watch.add(&supervisor.bell, BELL)?;
        let supervisor: &'static Self = Box::leak(Box::new(supervisor));
        // Counted before it runs, so that a fork in between does not take it for the user's.
        state.own_threads.fetch_add(1, Ordering::Relaxed);
        let spawned = std::thread::Builder::new()
            .name("polyproc".to_owned())
            .spawn(move || supervisor.run(state, &receiver));
        if let Err(error) = spawned {
            state.own_threads.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(supervisor)
    }

    fn run(&self, state: &State, requests: &Receiver<Request>) {
        signal::block_all();
        let mut keys = Vec::new();
        loop {
            // Fails for a descriptor that is no epoll only.
            self.watch.wait(&mut keys, Deadline::NEVER).expect("an epoll descriptor can be waited for");
            for &key in &keys {
                if key == BELL {
                    self.bell.answer();
                    requests.try_iter().for_each(|request| request());
                } else if let Some(child) = state.child(key) {
                    // An error is the joiner's to report, who asks again.
                    let _ = child.try_wait();
                }
            }
        }
    }

    /// Reaps `child` when it ends.
    pub(crate) fn watch(&self, child: &Child) -> io::Result<()> {
        self.watch.add_once(child, child.key())
    }

    /// Executes `program` from the supervisor thread and returns the new process's id.
    pub(crate) fn exec(&self, program: exec::Program) -> io::Result<u32> {
        let ended = || io::Error::other("the supervisor thread has ended");
        let (answer, answered) = channel();
        let request = Box::new(move || {
            // Fails when nobody waits for the answer any more, which does not happen.
            let _ = answer.send(exec::spawn(program));
        });
        lock(&self.requests).send(request).map_err(|_| ended())?;
        self.bell.ring();
        answered.recv().map_err(|_| ended())?
    }
}
