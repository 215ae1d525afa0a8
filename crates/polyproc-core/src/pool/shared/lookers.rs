//! [`Lookers`]: while enough workers poll the table, a new task needs no wake-up.
//!
//! The parent publishes a task, *then* counts the pollers. A worker that stops polling leaves, *then* checks the table a last
//! time before it sleeps. Both have a full barrier in between, so one of them sees the other. A worker that was stopped while
//! it polls finds nothing: the parent wakes another one before it sleeps, or after a millisecond.

use crate::prim::{AtomicU64, Ordering, fence};
use crate::sys::shared::shared;

/// Maximum number of workers that poll for tasks at a time; the others sleep.
const LOOKERS: usize = if cfg!(loom) { 1 } else { 4 };

shared! {
    /// Workers that poll for tasks before they sleep. They find a new task without a wake-up.
    ///
    /// | offset | bytes | field | writer |
    /// |---|---|---|---|
    /// | 0 | 8 each | 1 + the number of a polling worker, or 0 | that worker, at begin and end; the parent, after its death |
    pub(crate) struct Lookers { numbers: [AtomicU64; LOOKERS], }
}

impl Lookers {
    /// Calls `poll` with the worker's place, unless there are enough pollers. Returns what it returns: whether there is a task.
    /// If not, the worker must check the table once more, after it has set the flag of the waiting workers.
    pub(crate) fn look(&self, worker: u32, poll: impl FnOnce(usize) -> bool) -> bool {
        let Some(place) = self.enter(worker) else { return false };
        let found = poll(place);
        self.leave(worker);
        found
    }

    /// Enters a worker that begins to poll. Returns its place, or `None` if there are enough.
    fn enter(&self, worker: u32) -> Option<usize> {
        let me = u64::from(worker) + 1;
        // Pairs with the loads in `count`. A poller that the parent misses costs a wake-up in vain, so no order is
        // needed.
        self.numbers.iter().position(|place| place.compare_exchange(0, me, Ordering::SeqCst, Ordering::Relaxed).is_ok())
    }

    /// Removes a worker that ends polling, or has died. A living one must check the table once more after this.
    pub(crate) fn leave(&self, worker: u32) {
        let me = u64::from(worker) + 1;
        for place in &self.numbers {
            // Before the last check, in `EventCount::wait`, whose fence pairs with the one in `suffice`: the
            // parent finds that this worker does not poll, or the worker finds the task.
            let _ = place.compare_exchange(me, 0, Ordering::SeqCst, Ordering::Relaxed);
        }
    }

    /// Removes the entries for which `is_one`, called with 1 + the worker's number, returns false.
    pub(crate) fn retain(&self, is_one: impl Fn(u64) -> bool) {
        for place in &self.numbers {
            let number = place.load(Ordering::Relaxed);
            if number != 0 && !is_one(number) {
                // Pairs with `enter` and `leave` of workers. `count` is called under the same lock of the parent.
                let _ = place.compare_exchange(number, 0, Ordering::SeqCst, Ordering::Relaxed);
            }
        }
    }

    /// Returns whether the polling workers find all tasks on the table, so that no worker must be woken. The caller has put
    /// tasks on the table; `waiting` returns how many wait there.
    pub(crate) fn suffice(&self, waiting: impl FnOnce() -> u64) -> bool {
        // Pairs with the fence in `EventCount::wait`: a worker that stops polling leaves first, then checks the table a last
        // time.
        fence(Ordering::SeqCst);
        if self.count() == 0 {
            return false;
        }
        let waiting = waiting();
        // Pairs with the Release in `ClaimTable::advance`: a poller whose claim `waiting` does not count any more has left
        // before it, so it is not counted as a poller of the tasks behind.
        fence(Ordering::Acquire);
        let looking = self.count();
        looking != 0 && waiting <= looking
    }

    /// Returns how many workers poll.
    pub(crate) fn count(&self) -> u64 {
        self.numbers.iter().filter(|place| place.load(Ordering::Relaxed) != 0).count() as u64
    }
}
