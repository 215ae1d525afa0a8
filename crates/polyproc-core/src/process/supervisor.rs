//! The permanent thread of a process that has children: it executes programs and reaps what nobody joins.
//!
//! It executes, because a child's parent-death signal comes when the *thread* that created it ends, and this thread ends
//! with the process only. It reaps, so that a child that nobody waits for does not stay a zombie. It looks at a new child
//! only after a moment: one that is joined at once should wake its joiner and nobody else (measured: two wake-ups for one
//! exit cost a start and join a tenth of its time).

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::state::{ProcessState, lock};
use crate::deadline::Deadline;
use crate::shm::registry;
use crate::sys::exec;
use crate::sys::identity::Identity;
use crate::sys::watch::{EventFd, Poller};

/// The key of the bell; those of children are larger.
pub(crate) const BELL: u64 = 0;
/// How long a new child is left to its joiner.
const MOMENT: Duration = Duration::from_millis(10);
/// How often it looks after the process that the fork server makes ahead, ever later: some five seconds in all.
const SPARE_LOOKS: u32 = 9;

type SupervisorCommand = Box<dyn FnOnce() + Send>;

/// Recovers all objects of this process when `process` dies, which need not be a child. Returns false if that cannot be watched, or
/// it has died already.
pub(crate) fn watch_death(process: Identity) -> bool {
    let state = ProcessState::current();
    state.supervisor().is_ok_and(|supervisor| supervisor.watch_other(state, process))
}

/// The handle to the thread.
#[derive(Debug)]
pub(crate) struct Supervisor {
    watch: Poller,
    bell: EventFd,
    requests: Mutex<Sender<SupervisorCommand>>,
    /// Keys of children that are not watched yet.
    new: Mutex<Vec<u64>>,
    /// Others whose deaths are waited for, by the keys by which they are watched.
    others: Mutex<HashMap<u64, (Identity, OwnedFd)>>,
}

impl Supervisor {
    /// Starts the thread of `state`.
    pub(crate) fn start(state: &'static ProcessState) -> io::Result<&'static Self> {
        let (sender, receiver) = channel();
        let supervisor = Self {
            watch: Poller::new()?,
            bell: EventFd::new()?,
            requests: Mutex::new(sender),
            new: Mutex::default(),
            others: Mutex::default(),
        };
        supervisor.watch.add(&supervisor.bell, BELL)?;
        let supervisor: &'static Self = Box::leak(Box::new(supervisor));
        state.own_threads.spawn("polyproc", move || supervisor.run_for_ever(state, receiver))?;
        Ok(supervisor)
    }

    /// The kernel ends this process's children when this thread does, so it never does. A program that closed all descriptors
    /// has no use for it any more: who asks it for something is told so.
    fn run_for_ever(&self, state: &'static ProcessState, requests: Receiver<SupervisorCommand>) {
        // A panic here would end all children without a word.
        let ended = catch_unwind(AssertUnwindSafe(|| self.run(state, &requests)));
        if ended.is_err() {
            std::process::abort();
        }
        drop(requests);
        loop {
            std::thread::park();
        }
    }

    /// Returns when its descriptors are gone.
    fn run(&self, state: &'static ProcessState, requests: &Receiver<SupervisorCommand>) {
        let mut keys = Vec::new();
        let mut look_at_new = Deadline::NEVER;
        let mut spare_looks = 0;
        loop {
            if self.watch.wait(&mut keys, look_at_new).is_err() {
                return;
            }
            if look_at_new.has_passed() {
                look_at_new = Deadline::NEVER;
                // Also the process that the fork server makes ahead is reaped when somebody kills it.
                let is_spare_known = state.forkserver.try_lock().is_ok_and(|mut server| server.adopt_spare(state));
                spare_looks = if is_spare_known { 0 } else { spare_looks + 1 };
                if (1..=SPARE_LOOKS).contains(&spare_looks) {
                    look_at_new = Deadline::after(MOMENT * 2u32.pow(spare_looks - 1));
                }
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
                    if !lock(&self.new).is_empty() {
                        spare_looks = 0;
                        look_at_new = Deadline::after(MOMENT);
                    }
                } else if let Some(child) = state.child(key) {
                    // An error is the joiner's to report, who asks again.
                    let _ = child.try_wait();
                } else if let Some((_, pidfd)) = lock(&self.others).remove(&key) {
                    self.watch.remove(&pidfd);
                    registry::recover_all();
                }
            }
        }
    }

    /// See [`watch_death`].
    fn watch_other(&self, state: &ProcessState, process: Identity) -> bool {
        let mut others = lock(&self.others);
        if process == Identity::LEFT || others.values().any(|(other, _)| *other == process) {
            return true;
        }
        let Some(pidfd) = process.pidfd() else { return false };
        let key = state.next_key();
        let is_watched = self.watch.add_once(&pidfd, key).is_ok();
        if is_watched {
            others.insert(key, (process, pidfd));
        }
        is_watched
    }

    /// Reaps the child of this key when it ends, unless somebody joins it first.
    pub(crate) fn watch_soon(&self, key: u64) {
        let mut new = lock(&self.new);
        new.push(key);
        if new.len() == 1 {
            self.bell.ring();
        }
    }

    /// Takes over the process that the fork server makes ahead, in a moment.
    pub(crate) fn look_soon(&self) {
        self.watch_soon(BELL); // the key of no child
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_recover_when_a_process_dies_that_is_no_child() {
        struct Recovers(Mutex<Sender<()>>);
        impl registry::SharedObject for Recovers {
            fn recover(&self) {
                let _ = lock(&self.0).send(()); // nobody listens when the test is over
            }
        }
        let (sender, recovered) = channel();
        let _object = registry::note(u64::MAX, Recovers(Mutex::new(sender)));
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        let identity = Identity::of(stranger.id()).expect("it lives");
        assert!(watch_death(identity) && watch_death(identity));
        assert!(recovered.try_recv().is_err());
        stranger.kill().expect("it lives");
        recovered.recv().expect("the object lives");
        let _ = stranger.wait();
        assert!(!watch_death(identity), "it has died");
    }
}
