//! Starting workers, and ending all of them.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::scheduler::{Place, RetryHope, SchedulerEvent};
use super::state::PoolState;
use super::timers::Timer;
use super::worker_handle::{Cause, Revocation, WorkerHandle};
use crate::deadline::Deadline;
use crate::pool::shared::task::{NoWorkersReason, PoolEvent};
use crate::prim::Ordering;
use crate::process::{GiveUp, Signal, StartError};
use crate::sys::watch::Poller;

/// How long workers have between `SIGTERM` and `SIGKILL` when a pool is terminated.
const GRACE: Duration = Duration::from_secs(1);

impl Driver {
    /// Starts the workers that the scheduler wants, without the lock, since a start takes long.
    ///
    /// Called by the pool's thread only. A start that fails is reported as [`PoolEvent::WorkerNotStarted`] and passed
    /// to the scheduler, which decides on further attempts; then the next place is tried. The error is also the reason
    /// with which tasks fail if the pool gives up.
    pub(super) fn start_workers(&self) {
        // A stopped fork server must not delay the end of the pool.
        // Acquire pairs with the Release in `terminate` and `kill_all`. Only the flag is used.
        while let Err(error) = self.start_next(&|| self.is_terminated.load(Ordering::Acquire)) {
            let (place, error) = error;
            self.with(|pool| {
                let hope = if is_passing(&error) { RetryHope::Some } else { RetryHope::None };
                pool.workers.take_on_arrival(place);
                let error = Arc::new(error);
                pool.notifications.events.push(PoolEvent::WorkerNotStarted { error: Arc::clone(&error) });
                pool.no_workers = Some(NoWorkersReason::Start(error));
                self.handle(pool, SchedulerEvent::NotStarted(place, hope));
            });
        }
    }

    /// Starts the workers that the scheduler wants, up to the first failure.
    ///
    /// # Errors
    /// The error of the start, with its place; [`StartError::Interrupted`] if `give_up` returns true during a wait for the fork
    /// server.
    ///
    /// The caller does not hold the lock. No other thread starts workers of this pool at the same time: a number is
    /// unused only as long as no worker with it is added to `workers`, which happens after the start.
    pub(super) fn start_next(&self, give_up: GiveUp<'_>) -> Result<(), (Place, StartError)> {
        while let Some((place, number, key)) = self.with(|pool| pool.workers.next_to_start()) {
            let orders = self.orders.for_a_worker();
            let worker = orders.map_err(|source| StartError::Os { doing: "opening a pool's task descriptors", source });
            let worker = worker.and_then(|orders| {
                let shared = [self.board.as_fd(), orders.as_fd(), self.bell.as_fd()];
                WorkerHandle::start(&self.settings, place, number, key, shared, give_up)
            });
            self.install(place, worker.map_err(|error| (place, error))?);
        }
        Ok(())
    }

    /// Watches the channel and the pidfd of a started worker, and adds it to its place.
    ///
    /// While it was being started, the scheduler may have decided to retire or kill the worker of this place. That
    /// action waits in `on_arrival` and is carried out here. A worker that cannot be watched is killed and reaped at
    /// once, since its death would not be detected; the death counts as the program's fault.
    ///
    /// The worker may send messages before it is added. They stay in its channel, and the poller reports them in the
    /// next round.
    fn install(&self, place: Place, worker: WorkerHandle) {
        let (watch, child): (&Poller, _) = (&self.watch, worker.child.clone());
        let watched = watch.add(child.channel(), worker.key).and_then(|()| watch.add(&child, worker.key));
        self.with(|pool| {
            pool.notifications.events.push(PoolEvent::WorkerStarted { pid: child.pid() });
            if let Some(action) = pool.workers.take_on_arrival(place) {
                self.end_worker(&worker, action);
                if pool.is_past_grace {
                    worker.kill();
                }
            }
            pool.workers.add(place, worker);
        });
        if let Err(source) = watched {
            // Its death would not be detected, and it may have claimed a task.
            let _ = child.signal(Signal::KILL);
            let _ = child.wait_through_signals(Deadline::NEVER);
            self.with(|pool| {
                let error = Arc::new(StartError::Os { doing: "watching a worker", source });
                pool.notifications.events.push(PoolEvent::WorkerNotStarted { error: Arc::clone(&error) });
                pool.no_workers = Some(NoWorkersReason::Start(error));
                if let Some(worker) = pool.workers.get_mut(place.0) {
                    // Blames the program, so that the pool does not retry for ever.
                    worker.revocation = Some(Revocation { position: None, cause: Cause::Frozen });
                }
                self.receive(pool, place.0);
            });
        }
    }

    /// Terminates all workers. Kills those that have not exited after [`GRACE`].
    ///
    /// Does not block: the workers get `SIGTERM` now, and [`Timer::Kill`] is set for the pool's thread. Tasks that have
    /// not ended fail now. Repeated calls only set further timers.
    ///
    /// A worker that starts at this moment gets the signals from [`Driver::install`].
    pub(super) fn terminate(&self) {
        self.with(|pool| {
            self.handle(pool, SchedulerEvent::Terminated);
            // Pairs with the Acquire in `start_workers`.
            self.is_terminated.store(true, Ordering::Release);
            pool.set_timer(Instant::now() + GRACE, Timer::Kill);
            pool.notifications.pool_thread = true;
        });
    }

    /// Kills all workers.
    ///
    /// For a pool whose creation failed and that has no thread, so nothing waits for the end of the workers.
    pub(super) fn kill_all(&self) {
        // Pairs with the Acquire in `start_workers`.
        self.is_terminated.store(true, Ordering::Release);
        self.with(kill_workers);
    }

    /// See [`Pool::resize`](crate::pool::Pool::resize).
    ///
    /// Grows `workers` to the new number. It never shrinks, so that a [`Place`] stays valid; the places above the
    /// wanted number stay empty once their workers have retired. Does not wait for starts or exits.
    pub(super) fn resize(&self, workers: usize) {
        self.with(|pool| {
            pool.workers.grow(workers);
            self.handle(pool, SchedulerEvent::Resized(workers));
            pool.notifications.pool_thread = true;
        });
    }
}

/// Kills all workers, and those that are being started once they arrive.
pub(super) fn kill_workers(pool: &mut PoolState) {
    pool.is_past_grace = true;
    pool.workers.iter().for_each(WorkerHandle::kill);
}

/// Returns whether a later start may succeed: the system lacked a resource, or the fork server failed.
///
/// Other errors, for instance a missing program file, do not pass by themselves, so they are not worth a delay.
fn is_passing(error: &StartError) -> bool {
    let StartError::Os { source, .. } = error else { return matches!(error, StartError::Forkserver { .. }) };
    matches!(source.raw_os_error(), Some(libc::EAGAIN | libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}
