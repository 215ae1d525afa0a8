//! The permanent thread of a process that has children: it executes programs and reaps what nobody joins.
//!
//! It executes, because a child's parent-death signal comes when the *thread* that created it ends, and this thread ends
//! with the process only. It reaps, so that a child that nobody waits for does not stay a zombie. It looks at a new child
//! only after a moment: one that is joined at once should wake its joiner and nobody else (measured: two wake-ups for one
//! exit cost a start and join a tenth of its time).

use std::io;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::state::{State, lock};
use crate::deadline::Deadline;
use crate::prim::Ordering;
use crate::sys::exec;
use crate::sys::signal;
use crate::sys::watch::{Bell, Watch};

/// The key of the bell; those of children are larger.
pub(crate) const BELL: u64 = 0;
/// How long a new child is left to its joiner.
const MOMENT: Duration = Duration::from_millis(10);

type Request = Box<dyn FnOnce() + Send>;

/// The handle to the thread.
#[derive(Debug)]
pub(crate) struct Supervisor {
    watch: Watch,
    bell: Bell,
    requests: Mutex<Sender<Request>>,
    /// Keys of children that are not watched yet.
    new: Mutex<Vec<u64>>,
}

impl Supervisor {
    /// Starts the thread of `state`.
    pub(crate) fn start(state: &'static State) -> io::Result<&'static Self> {
        let (sender, receiver) = channel();
        let supervisor =
            Self { watch: Watch::new()?, bell: Bell::new()?, requests: Mutex::new(sender), new: Mutex::default() };
        supervisor.watch.add(&supervisor.bell, BELL)?;
        let supervisor: &'static Self = Box::leak(Box::new(supervisor));
        // Counted before it runs, so that a fork in between does not take it for the user's.
        state.own_threads.fetch_add(1, Ordering::Relaxed);
        let spawned =
            std::thread::Builder::new().name("polyproc".to_owned()).spawn(move || supervisor.run(state, &receiver));
        if let Err(error) = spawned {
            state.own_threads.fetch_sub(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(supervisor)
    }

    fn run(&self, state: &State, requests: &Receiver<Request>) {
        signal::block_all();
        let mut keys = Vec::new();
        let mut look_at_new = Deadline::NEVER;
        loop {
            // Fails for a descriptor that is no epoll only.
            self.watch.wait(&mut keys, look_at_new).expect("an epoll descriptor can be waited for");
            if look_at_new.has_passed() {
                look_at_new = Deadline::NEVER;
                let new = std::mem::take(&mut *lock(&self.new));
                for child in new.into_iter().filter_map(|key| state.child(key)) {
                    // Without memory for it, the child stays to its joiner.
                    let _ = self.watch.add_once(&child, child.key());
                }
            }
            for &key in &keys {
                if key == BELL {
                    self.bell.answer();
                    requests.try_iter().for_each(|request| request());
                    if look_at_new == Deadline::NEVER && !lock(&self.new).is_empty() {
                        look_at_new = Deadline::after(MOMENT);
                    }
                } else if let Some(child) = state.child(key) {
                    // An error is the joiner's to report, who asks again.
                    let _ = child.try_wait();
                }
            }
        }
    }

    /// Reaps the child of this key when it ends, unless somebody joins it first.
    pub(crate) fn watch_soon(&self, key: u64) {
        let mut new = lock(&self.new);
        new.push(key);
        if new.len() == 1 {
            self.bell.ring();
        }
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
