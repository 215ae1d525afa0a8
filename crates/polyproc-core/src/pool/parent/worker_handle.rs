//! The parent's record of a worker: its process, its result ring, and what the parent knows of its progress.
//!
//! [`WorkerHandle::start`] runs without the pool's lock; all other functions run under it. A handle exists from the
//! start of the process until it is reaped (`deaths`).
//!
//! To kill a worker *for an item*, the parent first changes the worker's word `current` ([`WorkerHandle::revoke_at`]);
//! the kill then costs exactly that item. [`WorkerHandle::kill`] alone costs the item that happens to run.
//!
//! What the worker reports of itself ([`WorkerHandle::idle_for`], [`WorkerHandle::stats`]) is unchecked: a faulty
//! worker may report anything, and only statistics and its own retirement depend on it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use super::scheduler::{Place, TaskId};
use super::settings::PoolSettings;
use crate::pool::shared::result_ring::{IDLE, REVOKED, ResultRing, Results, WorkerPhase, running_position};
use crate::pool::shared::task::{Ended, Setup};
use crate::pool::worker::worker_function;
use crate::prim::{AtomicU64, Ordering};
use crate::process::{Child, Ending, ExitStatus, GiveUp, Settings, Signal, StartError, start_group};
use crate::shm;
use crate::sys::process_stamp::ProcessStamp;
use crate::sys::{self, clock, priority};
use crate::wire::Payload;

/// Why a worker is killed.
///
/// Decides how the item ends, and whether it may be retried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    /// Its item or its call exceeded the time limit.
    TimedOut,
    /// Its memory exceeded the pool's limit.
    OutOfMemory,
    /// Its call was cancelled.
    Cancelled,
    /// It claimed a task, and was stopped before it began the task.
    ///
    /// Also noted for a worker that cannot be watched. The death counts as the program's fault.
    Frozen,
}

/// Why the pool kills a worker, and for which task.
///
/// Set once; read when the death is handled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revocation {
    /// The position of the task; `None` if it ran none.
    pub(super) position: Option<u64>,
    /// Decides how the item of that task ends.
    pub(super) cause: Cause,
}

/// A worker that was started and not reaped. In `workers` of the pool's state, at its place.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    /// The process, with its pidfd and its channel.
    pub(super) child: Child,
    /// The poller's key of its descriptors. A replacement has another key.
    pub(super) key: u64,
    /// The number by which it claims tasks.
    ///
    /// Unused by other living workers of the pool, but not by dead ones.
    pub(super) number: u32,
    /// The parent's end of its result ring.
    pub(super) stream: Results,
    /// The task whose results are being read from its stream.
    ///
    /// From the task's *begin* record to the result of its last item.
    pub(super) reading: Option<TaskId>,
    /// Descriptors of results whose records were not read yet, or why they were lost.
    ///
    /// In the order of their results. Bounded: see [`WorkerHandle::has_many_fds`].
    pub(super) fds: VecDeque<Result<Vec<OwnedFd>, String>>,
    /// Offsets of blocks that could not be returned yet.
    ///
    /// The ring of returned offsets was full.
    pub(super) to_return: Vec<u64>,
    /// Its last messages: a stack overflow, or a panic where panics abort.
    pub(super) exit_report: Ending,
    /// Why the pool kills it; `None` if it does not, or not for an item.
    pub(super) revocation: Option<Revocation>,
    /// The word `current` of the item for which the soft signal was sent.
    pub(super) warned: Option<u64>,
    /// Monotonic nanoseconds when its start was requested.
    started_nanos: u64,
    /// See [`WorkerHandle::identity`]; set at its first use.
    identity: OnceLock<ProcessStamp>,
}

/// Returns how many result descriptors of each worker this process may hold: for all workers a quarter of its descriptors.
///
/// At least 1, at most [`MOST_FDS`]. `workers` is the configured number; `None` for one per processor.
fn most_fds(workers: Option<usize>) -> u64 {
    let workers = workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)) as u64;
    (sys::fd::table_len() / 4 / workers.max(1)).clamp(1, MOST_FDS)
}

/// See [`WorkerHandle::has_many_fds`]. More descriptors than one result can have.
const MOST_FDS_WAITING: usize = 512;
const _: () = assert!(MOST_FDS_WAITING > sys::socket::MAX_FDS);
/// Maximum number of result descriptors per worker: more do not make a pool faster.
const MOST_FDS: u64 = 64;

/// Statistics of one worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerStats {
    /// Its process id.
    pub pid: u32,
    /// Number of items that it has run.
    pub tasks: u64,
    /// How long it had tasks.
    pub busy: Duration,
    /// How long it had no task.
    pub idle: Duration,
    /// Time from the request to start it until it was ready for tasks; `None` while it is not ready.
    pub start: Option<Duration>,
    /// Bytes of encoded arguments.
    pub bytes_in: u64,
    /// Bytes of encoded results.
    pub bytes_out: u64,
    /// Its peak memory in bytes, with shared files; `None` if it has exited.
    pub peak_memory: Option<u64>,
}

impl WorkerHandle {
    /// Starts a worker for a place. `shared` are the descriptors of the board, the orders and the bell.
    ///
    /// Called without the pool's lock: a start takes milliseconds, and with the fork server may block until `give_up`
    /// returns true. The worker leads a process group, which ends with it. Descriptors are sent in the order that
    /// [`Setup`] states.
    ///
    /// # Errors
    /// The [`StartError`] of the start; [`StartError::Os`] if memory or descriptors for the worker cannot be created.
    pub(super) fn start(
        settings: &PoolSettings,
        place: Place,
        number: u32,
        key: u64,
        shared: [BorrowedFd<'_>; 3],
        give_up: GiveUp<'_>,
    ) -> Result<Self, StartError> {
        let os = |source| StartError::Os { doing: "preparing a pool's worker", source };
        let started_nanos = clock::monotonic_nanos();
        let stream = ResultRing::new().map_err(os)?;
        let (function, argument, fds) = match &settings.initializer {
            Some((function, payload)) => (Some(function), payload.bytes.clone(), payload.fds.as_slice()),
            None => (None, Vec::new(), &[][..]),
        };
        let setup = Setup {
            number,
            most_fds: most_fds(settings.workers),
            max_tasks: settings.max_tasks_per_child.map_or(0, std::num::NonZeroU64::get),
            nice: settings.nice,
            cpus: settings.cpus.get(place.0 % settings.cpus.len().max(1)).cloned().unwrap_or_default(),
            initializer: function.map(|function| (function.clone(), argument)),
            finalizer: settings.finalizer.clone(),
        };
        let fds = shared.into_iter().chain([stream.as_fd()]).chain(fds.iter().map(AsFd::as_fd));
        let fds = fds.map(|fd| fd.try_clone_to_owned()).collect::<io::Result<_>>().map_err(os)?;
        let process = Settings {
            name: settings.name.as_ref().map(|name| format!("{name}-{}", place.0 + 1)),
            daemon: true,
            method: settings.method,
            env: settings.env.clone(),
            fork_with_threads: settings.fork_with_threads,
            ..Settings::default()
        };
        let child =
            start_group("PoolWorker", process, worker_function()?, Payload { bytes: setup.encode(), fds }, give_up)?;
        Ok(Self {
            child,
            key,
            number,
            stream: stream.into(),
            reading: None,
            fds: VecDeque::new(),
            to_return: Vec::new(),
            exit_report: Ending::new(ExitStatus::Unknown),
            revocation: None,
            warned: None,
            started_nanos,
            identity: OnceLock::new(),
        })
    }

    /// Kills the worker, so that exactly the item that it runs now ends for this cause. With `only`, kills it only if it runs
    /// the task of that position. Returns false if it was not killed.
    ///
    /// Repeated while the worker goes on to other items in between. With `only`, an idle worker is not killed.
    pub(super) fn revoke(&mut self, cause: Cause, only: Option<u64>) -> bool {
        loop {
            // Pairs with the Release in `declare`.
            let now = self.stream.state().current.load(Ordering::Acquire);
            let position = running_position(now);
            if now == REVOKED || only.is_some() && position != only {
                return false;
            }
            if self.revoke_at(cause, now) {
                return true;
            }
        }
    }

    /// As [`WorkerHandle::revoke`], but only if the worker's word is still `current`: that item, or none for [`IDLE`].
    ///
    /// If it returns true, results of earlier items are in the ring, and the kill is sent. The worker may still write
    /// the result of the running item before the signal arrives; then that counts. If it returns false, nothing has
    /// changed.
    pub(super) fn revoke_at(&mut self, cause: Cause, current: u64) -> bool {
        let cell = self.stream.state();
        // AcqRel pairs with the worker's compare-and-swap in `declare`: earlier results are visible, and it begins and ends no
        // further item.
        if cell.current.compare_exchange(current, REVOKED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        self.revocation = Some(Revocation { position: running_position(current), cause });
        self.kill();
        true
    }

    /// Returns whether the worker's messages stay unread, because too many descriptors wait for their results.
    ///
    /// So a faulty worker cannot fill the parent's descriptor table.
    pub(super) fn has_many_fds(&self) -> bool {
        self.fds.iter().flatten().map(Vec::len).sum::<usize>() >= MOST_FDS_WAITING
    }

    /// Kills the worker, if it has not exited.
    ///
    /// The death is detected as any other, by the pidfd.
    pub(super) fn kill(&self) {
        let _ = self.child.signal(Signal::KILL);
    }

    /// Returns for how long the worker has been idle; zero if it is not.
    ///
    /// Zero, too, while it polls for a task.
    pub(super) fn idle_for(&self) -> Duration {
        let cell = self.stream.state();
        // Pairs with the Release in `begin_idle`: `since` is written before.
        let is_idle = cell.phase.load(Ordering::Acquire) == WorkerPhase::Idle as u32;
        if !is_idle || cell.current.load(Ordering::Relaxed) != IDLE {
            return Duration::ZERO;
        }
        Duration::from_nanos(clock::monotonic_nanos().saturating_sub(cell.since.load(Ordering::Relaxed)))
    }

    /// Returns whether the worker has reached its initializer, and does not serve tasks yet.
    pub(super) fn is_initialising(&self) -> bool {
        self.stream.state().phase.load(Ordering::Relaxed) == WorkerPhase::Initialising as u32
    }

    /// Returns how the worker ended, once its last messages were read.
    pub(super) fn ended(&self) -> Ended {
        let Ending { status, stack_overflow, .. } = self.exit_report;
        Ended { pid: self.child.pid(), status, stack_overflow }
    }

    /// Returns a block whose bytes were copied, after those that could not be returned before. Wakes processes that
    /// wait for memory, since the worker may have one more free block.
    pub(super) fn give_back(&mut self, offset: u64) {
        self.to_return.push(offset);
        let stream = &mut self.stream;
        let kept = self.to_return.iter().position(|offset| !stream.give_back(*offset));
        self.to_return.drain(..kept.unwrap_or(self.to_return.len()));
        shm::wake_waiting();
    }

    /// Returns the identity by which shared memory refers to the worker; `None` if it has exited.
    pub(super) fn identity(&self) -> Option<ProcessStamp> {
        if self.identity.get().is_none() {
            let _ = self.identity.set(ProcessStamp::of(self.child.pid()).ok()?);
        }
        self.identity.get().copied()
    }

    /// Returns the statistics of the worker. Counters are read one by one while the worker runs, so they may not fit
    /// together exactly.
    pub(super) fn stats(&self) -> WorkerStats {
        let cell = self.stream.state();
        let load = |field: &AtomicU64| field.load(Ordering::Relaxed);
        let now = clock::monotonic_nanos();
        // Pairs with the Release in `begin_busy`: `since` is written before.
        let is_busy = cell.phase.load(Ordering::Acquire) == WorkerPhase::Busy as u32;
        let ready = Some(load(&cell.ready)).filter(|ready| *ready > 0);
        let busy = load(&cell.busy) + if is_busy { now.saturating_sub(load(&cell.since)) } else { 0 };
        let idle = ready.map_or(0, |ready| now.saturating_sub(ready)).saturating_sub(busy);
        WorkerStats {
            pid: self.child.pid(),
            tasks: load(&cell.items),
            busy: Duration::from_nanos(busy),
            idle: Duration::from_nanos(idle),
            start: ready.map(|ready| Duration::from_nanos(ready.saturating_sub(self.started_nanos))),
            bytes_in: load(&cell.bytes_in),
            bytes_out: load(&cell.bytes_out),
            peak_memory: priority::peak_bytes(self.child.pid()),
        }
    }
}
