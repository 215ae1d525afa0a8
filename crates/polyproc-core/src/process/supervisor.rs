//! The permanent thread of a process that has children: it executes programs and reaps children that no other thread joins.
//! [`launch`](super::launch) and [`server`](super::server) use it for each child.
//!
//! It executes programs, because a child's parent-death signal is sent when the *thread* that created the child ends, and this
//! thread ends only with the process. It reaps, so that a child that no other thread waits for does not stay a zombie. It
//! watches a new child only after [`FIRST_CHECK`], so that a child that is joined at once wakes only its joiner (measured: the
//! second wake-up at each exit costs a start and join a tenth of its time).
//!
//! It also watches processes that are not children, for queues, locks and barriers in shared memory ([`watch_death`]), and
//! registers a *spare*, a child that the fork server creates ahead of a start ([`Supervisor::adopt_soon`]).
//!
//! The thread starts at the first start of a process or the first call of [`watch_death`], with all signals blocked. A forked
//! copy of the process starts its own. Other threads communicate with it by the fields of [`Supervisor`]: they change a field
//! under its mutex and ring the bell, or add a descriptor to the poller. The thread runs commands outside all locks. It must not
//! block on the fork server's mutex, whose owner may wait for a command, nor on any other lock that is held during
//! [`Supervisor::exec`].

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::child::{Child, children};
use super::error::{StartError, os};
use super::state::lock;
use super::threads::own_threads;
use crate::deadline::Deadline;
use crate::shm::registry;
use crate::sys::exec;
use crate::sys::per_process::PerProcess;
use crate::sys::process_stamp::ProcessStamp;
use crate::sys::watch::{EventFd, Poller};

/// The key of the bell in the poller; the keys of children, and of other watched processes, are larger.
const BELL: u64 = 0;
/// How long a new child is left to its joiner before it is watched.
const FIRST_CHECK: Duration = Duration::from_millis(10);
/// How many times the thread checks again for a requested spare, at intervals that double from [`FIRST_CHECK`]: about 5 s in
/// all. A spare that comes later is registered by the next start.
const SPARE_CHECKS: u32 = 9;

/// Work for the supervisor thread. Runs once, on that thread; it must not block for long, as reaping waits meanwhile.
type SupervisorCommand = Box<dyn FnOnce() + Send>;

/// Recovers all shared-memory objects of this process ([`registry`]) when `process` dies, which need not be a child. Returns
/// false if it has died already or cannot be watched; the caller then re-checks at intervals. A process is watched once, however
/// often this is called. [`ProcessStamp::EXITED_CLEANLY`] never dies: returns true and watches nothing.
///
/// Waiters call this for the processes on which their wait depends: of a lock for its owner, of a queue for its consumers, of a
/// condition or barrier for the other waiters. Starts the supervisor thread if there is none.
pub(crate) fn watch_death(process: ProcessStamp) -> bool {
    Supervisor::get().is_ok_and(|supervisor| supervisor.watch_other(process))
}

/// Keeps `child` until it is reaped. The supervisor reaps it unless another thread does so first. Called once for each child,
/// before it is sent its order, the message with its function.
///
/// # Errors
/// [`StartError::Os`] when there is no supervisor thread and none can be started. The child is not registered then.
pub(super) fn adopt(child: &Child) -> Result<(), StartError> {
    let supervisor = Supervisor::get()?;
    children().insert(child);
    supervisor.watch_soon(child.key());
    Ok(())
}

/// The supervisor of this process; `None` before it is started. Locked while it starts, so that there is one thread only.
static SUPERVISOR: PerProcess<Mutex<Option<&'static Supervisor>>> = PerProcess::new(|_| Mutex::default());

/// The handle to the supervisor thread. One value for each process, leaked, since the thread uses it until the process ends.
#[derive(Debug)]
pub(super) struct Supervisor {
    /// The descriptors for which the thread sleeps: the bell, the pidfds of watched children and of other processes. Any thread
    /// may add one.
    watch: Poller,
    /// Wakes the thread after a change of `commands` or `new`.
    bell: EventFd,
    /// The queue of commands. Its receiver is on the thread; if the thread cannot poll any more, sending fails.
    commands: Mutex<Sender<SupervisorCommand>>,
    /// The keys of children that are not watched yet. The thread takes all of them [`FIRST_CHECK`] after the bell; keys of
    /// children that were reaped meanwhile are dropped.
    new: Mutex<Vec<u64>>,
    /// Watched processes that are not children, by their keys, with the pidfd that the poller watches. An entry is removed when
    /// its process has ended.
    others: Mutex<HashMap<u64, (ProcessStamp, OwnedFd)>>,
    /// The function of [`Supervisor::adopt_soon`]; `None` until the first spare is requested.
    adopt_spare: Mutex<Option<fn() -> bool>>,
}

impl Supervisor {
    /// Returns the supervisor of this process, which is started if there is none. Also registers the function that ends
    /// children at exit.
    ///
    /// # Errors
    /// [`StartError::Os`] when there are no descriptors, no memory or no thread. The next call tries again.
    pub(super) fn get() -> Result<&'static Self, StartError> {
        let mut supervisor = lock(SUPERVISOR.get());
        if let Some(supervisor) = *supervisor {
            return Ok(supervisor);
        }
        let started = Self::start().and_then(|started| super::exit::register().map(|()| started));
        Ok(supervisor.insert(started.map_err(os("starting the supervisor thread"))?))
    }

    /// Creates the handle and starts the thread.
    fn start() -> io::Result<&'static Self> {
        let (sender, receiver) = channel();
        let supervisor = Self {
            watch: Poller::new()?,
            bell: EventFd::new()?,
            commands: Mutex::new(sender),
            new: Mutex::default(),
            others: Mutex::default(),
            adopt_spare: Mutex::default(),
        };
        supervisor.watch.add(&supervisor.bell, BELL)?;
        let supervisor: &'static Self = Box::leak(Box::new(supervisor));
        own_threads().spawn("polyproc", move || supervisor.run_for_ever(receiver))?;
        Ok(supervisor)
    }

    /// Never returns, since the kernel ends this process's children when this thread ends. If the program has closed the
    /// thread's descriptors, the thread parks, and later commands fail. A panic aborts the process.
    fn run_for_ever(&self, commands: Receiver<SupervisorCommand>) {
        // A panic that ended this thread would end all children silently.
        let ended = catch_unwind(AssertUnwindSafe(|| self.run(&commands)));
        if ended.is_err() {
            std::process::abort();
        }
        drop(commands); // so that `exec` fails instead of waiting
        loop {
            std::thread::park();
        }
    }

    /// Runs commands, reaps children and recovers objects. Returns when its descriptors are closed.
    ///
    /// Each turn handles `check_new_at` if it has passed, then the keys that the poller reported. A pidfd is reported once: if a
    /// child cannot be reaped then, as its tracer must reap it first, it is left to a joiner.
    fn run(&self, commands: &Receiver<SupervisorCommand>) {
        let mut keys = Vec::new();
        let mut check_new_at = Deadline::NEVER;
        let mut spare_checks = 0;
        loop {
            if self.watch.wait(&mut keys, check_new_at).is_err() {
                return;
            }
            if check_new_at.has_passed() {
                check_new_at = Deadline::NEVER;
                // Registers a spare, so that it is reaped if it is killed.
                let adopt_spare = *lock(&self.adopt_spare);
                let is_spare_known = adopt_spare.is_none_or(|adopt_spare| adopt_spare());
                spare_checks = if is_spare_known { 0 } else { spare_checks + 1 };
                if (1..=SPARE_CHECKS).contains(&spare_checks) {
                    check_new_at = Deadline::after(FIRST_CHECK * 2u32.pow(spare_checks - 1));
                }
                let new = std::mem::take(&mut *lock(&self.new));
                for child in new.into_iter().filter_map(|key| children().get(key)) {
                    // Fails without memory: then only a joiner reaps the child.
                    let _ = self.watch.add_once(&child, child.key());
                }
            }
            for &key in &keys {
                if key == BELL {
                    self.bell.answer();
                    commands.try_iter().for_each(|command| command());
                    if !lock(&self.new).is_empty() {
                        spare_checks = 0;
                        check_new_at = check_new_at.or_sooner(FIRST_CHECK); // not postponed by further starts
                    }
                } else if let Some(child) = children().get(key) {
                    // The joiner calls this again and reports an error.
                    let _ = child.try_wait();
                } else if let Some((_, pidfd)) = lock(&self.others).remove(&key) {
                    self.watch.remove(&pidfd);
                    registry::recover_all();
                }
            }
        }
    }

    /// See [`watch_death`].
    fn watch_other(&self, process: ProcessStamp) -> bool {
        let mut others = lock(&self.others);
        if process == ProcessStamp::EXITED_CLEANLY || others.values().any(|(other, _)| *other == process) {
            return true;
        }
        let Some(pidfd) = process.pidfd() else { return false };
        let key = children().next_key();
        let is_watched = self.watch.add_once(&pidfd, key).is_ok();
        if is_watched {
            others.insert(key, (process, pidfd));
        }
        is_watched
    }

    /// Reaps the child with this key when it ends, unless another thread joins it first. Rings the bell only for the first new
    /// key: the thread takes the others with it.
    fn watch_soon(&self, key: u64) {
        let mut new = lock(&self.new);
        new.push(key);
        if new.len() == 1 {
            self.bell.ring();
        }
    }

    /// Calls `adopt_spare` after [`FIRST_CHECK`], then at longer intervals until it returns true, up to [`SPARE_CHECKS`] more
    /// times. It returns true if no spare is awaited. It runs on the supervisor thread and must not block. It stays
    /// registered, and is called again each time when new children are checked.
    pub(super) fn adopt_soon(&self, adopt_spare: fn() -> bool) {
        *lock(&self.adopt_spare) = Some(adopt_spare);
        self.watch_soon(BELL); // the key of no child
    }

    /// Executes `program` from the supervisor thread and returns the new process's id. Blocks until `posix_spawn(3)` has
    /// returned. The process is not registered yet: the caller opens its pidfd first.
    ///
    /// # Errors
    /// The error of `posix_spawn(3)`; another when the thread has ended its loop.
    pub(super) fn exec(&self, program: exec::Program) -> io::Result<u32> {
        let ended = || io::Error::other("the supervisor thread has ended");
        let (answer, answered) = channel();
        let command = Box::new(move || {
            // Fails if the receiver was dropped, which does not happen while `exec` waits.
            let _ = answer.send(exec::spawn(program));
        });
        lock(&self.commands).send(command).map_err(|_| ended())?;
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
                let _ = lock(&self.0).send(()); // the receiver is dropped when the test ends
            }
        }
        let (sender, recovered) = channel();
        let _object = registry::note(u64::MAX, Recovers(Mutex::new(sender)));
        let mut stranger = std::process::Command::new("sleep").arg("1000").spawn().expect("a process");
        let identity = ProcessStamp::of(stranger.id()).expect("it lives");
        assert!(watch_death(identity) && watch_death(identity));
        assert!(recovered.try_recv().is_err());
        stranger.kill().expect("it lives");
        recovered.recv().expect("the object lives");
        let _ = stranger.wait();
        assert!(!watch_death(identity), "it has died");
    }
}
