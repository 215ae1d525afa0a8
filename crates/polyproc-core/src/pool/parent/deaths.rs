//! Deaths of workers. `docs/design/pool.md` describes what a death at each step of a worker costs.

use super::calls::{CallState, Stop};
use super::driver::Driver;
use super::messages::CHANNEL_MESSAGES;
use super::scheduler::{Blame, Held, Place, SchedulerEvent, TaskId};
use super::state::PoolState;
use super::worker_handle::{Cause, Revocation, WorkerHandle};
use crate::pool::TaskEnd;
use crate::pool::shared::task::{NoWorkersReason, PoolEvent};
use crate::process::{ExitStatus, Outcome, Signal};

/// Number of workers in a row that end in their initializers by the program's fault, after which the pool gives up.
///
/// The scheduler counts all deaths of workers that are not ready yet, with a larger limit.
const UNFIT_LIMIT: usize = 3;
/// Number of workers in a row that die between claiming a task and beginning it, after which the task loses an item: otherwise
/// workers might die of it for ever.
const UNBEGUN_DEATHS: u32 = 3;
/// Maximum number of messages that are read from a worker at a time, so that other threads can acquire the lock in between.
///
/// The poller reports the rest again.
const MESSAGES_AT_ONCE: usize = 64;

impl Driver {
    /// Reads the messages of a worker, and checks whether it is alive.
    ///
    /// Called by the pool's thread when the worker's channel or pidfd is readable, and for a worker that cannot be
    /// watched.
    ///
    /// The order makes the death of a worker final: the exit status is read first, so the process writes nothing after
    /// that. Then its channel and its ring are read to the end, and [`Driver::reap`] decides about its task from what
    /// arrived. From a living worker at most [`MESSAGES_AT_ONCE`] messages are read; the poller reports the rest again.
    /// A living worker that has closed its channel cannot ask for functions or descriptors, and is killed; its death is
    /// reported by its pidfd later.
    pub(super) fn receive(&self, pool: &mut PoolState, at: usize) {
        let Some(worker) = pool.workers.get(at) else { return };
        let child = worker.child.clone();
        // Checked first, so that all output of a dead worker is read below. If the check fails, the worker counts as alive.
        let status = child.try_wait().unwrap_or(None);
        let most = if status.is_some() { CHANNEL_MESSAGES } else { MESSAGES_AT_ONCE };
        let is_open = self.hear_channel(pool, at, most);
        if pool.workers.get(at).is_some_and(WorkerHandle::has_many_fds) {
            self.read_worker(pool, at); // the results of these descriptors, before further messages
        }
        let Some(status) = status else {
            if !is_open {
                // It has closed its channel, and is of no use any more.
                self.watch.remove(child.channel());
                let _ = child.signal(Signal::KILL);
            }
            return;
        };
        self.watch.remove(child.channel());
        self.watch.remove(&child);
        self.read_worker(pool, at);
        if let Some(worker) = pool.workers.remove(at) {
            self.reap(pool, Place(at), worker, status);
        }
    }

    /// Handles the death of a worker, after its output was read.
    ///
    /// The worker is no longer in `workers`, and its process is reaped.
    ///
    /// 1. Removes it from the polling workers, and wakes all idle workers: it may have consumed a wake-up for a task.
    /// 2. Finds its task, and takes that off the table ([`Driver::held`], [`Driver::unfinished`]).
    /// 3. Determines who is to blame. A signal that is no fault comes from outside, unless the pool revoked the worker.
    /// 4. Passes the death to the scheduler, which requeues, delays or fails the item, and starts a replacement.
    /// 5. After [`UNFIT_LIMIT`] deaths in a row during initializers, ends the pool.
    ///
    /// The first death is kept as the reason for tasks that fail for lack of workers, unless a failed start is known.
    /// Exits other than with code 0 count as lost workers ([`Pool::workers_lost`](crate::pool::Pool::workers_lost)).
    fn reap(&self, pool: &mut PoolState, place: Place, mut worker: WorkerHandle, status: ExitStatus) {
        worker.exit_report.status = status;
        let ended = worker.ended();
        pool.notifications.events.push(PoolEvent::WorkerEnded { pid: ended.pid, ended });
        self.board.lookers().leave(worker.number);
        // It may have died between being woken for a task and claiming it.
        self.board.waiters().wake_generation();
        let held = self.held(pool, &worker).and_then(|(id, position)| self.unfinished(pool, id, position, &worker));
        let is_outside = matches!(status, ExitStatus::Signaled { signal, .. } if !signal.is_fault());
        let blame = if is_outside && worker.revocation.is_none() { Blame::Outside } else { Blame::Program };
        if blame == Blame::Program && worker.is_initialising() && self.settings.initializer.is_some() {
            pool.unfit += 1;
        }
        pool.no_workers = pool.no_workers.take().or(Some(NoWorkersReason::Died(ended)));
        pool.lost += u64::from(status.exit_code() != Some(0));
        self.handle(pool, SchedulerEvent::Died(place, blame, held));
        if pool.unfit >= UNFIT_LIMIT {
            pool.no_workers = Some(NoWorkersReason::Died(ended));
            self.handle(pool, SchedulerEvent::Broken);
        }
    }

    /// Returns the task that a dead worker had claimed and not finished, with its position.
    ///
    /// A worker holds at most one task: it claims the next one after it has written all results of the last. While the
    /// parent reads the results of a task (`reading`), the claim in the table is ignored.
    fn held(&self, pool: &PoolState, worker: &WorkerHandle) -> Option<(TaskId, u64)> {
        // The worker's own stream takes precedence over the table, which other workers may overwrite.
        if let Some(id) = worker.reading {
            return Some((id, pool.tasks.get(id)?.out()?.position));
        }
        let is_held = |(position, slot, id): &(u64, u32, TaskId)| {
            self.board.table().holder(*slot, *position) == Some(worker.number)
                && pool.tasks.get(*id).is_some_and(|task| task.reader.is_none())
        };
        pool.tasks.out().find(is_held).map(|(position, _, id)| (id, position))
    }

    /// Takes the task of a dead worker off the table. Returns how far it was, or `None` if the task has ended with
    /// that.
    ///
    /// The worker's ring is read to the end. `position` is the position at which it held the task.
    ///
    /// The task has not begun if its *begin* record is not in the ring and the worker was not revoked in it. Then it
    /// waits again, whole; [`UNBEGUN_DEATHS`] such deaths in a row count as a death in its first item. Otherwise the
    /// next item was running. How it ends is stored in [`Task::lost`](super::tasks::Task::lost), for `Driver::lose`, and depends on the
    /// revocation first and on the worker's last message second. Time limits and cancellations are final; all other
    /// ends may be retried.
    ///
    /// If the call was stopped, and the worker was killed for that or had not begun the task, the whole task ends here.
    fn unfinished(
        &self,
        pool: &mut PoolState,
        id: TaskId,
        position: u64,
        worker: &WorkerHandle,
    ) -> Option<(TaskId, Held)> {
        self.take_back(pool, id);
        let task = pool.tasks.get_mut(id)?;
        let revocation = worker
            .revocation
            .filter(|revocation| revocation.position == Some(position))
            .map(|Revocation { cause, .. }| cause);
        let is_begun = worker.reading == Some(id) || revocation.is_some();
        let is_stopped_here = revocation.is_some_and(|cause| matches!(cause, Cause::TimedOut | Cause::Cancelled));
        let stop = pool.calls.get(task.call()).and_then(CallState::stop);
        if let Some(stop) = stop.filter(|stop| is_stopped_here || !is_begun && *stop != Stop::GivenUp) {
            self.remove(pool, id, &stop.end());
            self.handle(pool, SchedulerEvent::Ended(id));
            return None;
        }
        task.unbegun_since = None;
        task.unbegun_deaths = if is_begun { 0 } else { task.unbegun_deaths + 1 };
        if !is_begun && task.unbegun_deaths < UNBEGUN_DEATHS {
            return Some((id, Held::NotBegun));
        }
        let is_same = task.lost.as_ref().is_some_and(|lost| lost.0 == task.done());
        let end = match (revocation, &worker.exit_report.outcome) {
            (Some(Cause::TimedOut), _) => TaskEnd::TimedOut,
            (Some(Cause::OutOfMemory), _) => TaskEnd::OutOfMemory,
            (Some(Cause::Cancelled), _) => TaskEnd::Cancelled,
            (Some(Cause::Frozen), _) => TaskEnd::WorkerLost(worker.ended()),
            (None, Some(Outcome::Panicked(panic))) => TaskEnd::Panicked(panic.clone()),
            (None, _) => TaskEnd::WorkerLost(worker.ended()),
        };
        task.lost = Some(Box::new((task.done(), end)));
        let may_retry = !matches!(revocation, Some(Cause::TimedOut | Cause::Cancelled));
        Some((id, Held::Running { is_same, may_retry }))
    }
}
