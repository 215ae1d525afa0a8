//! The pool's thread: it detects workers that become ready or die, replaces dead workers, and fires timers. It reads
//! results only while no other thread waits for them.
//!
//! A pool has one such thread, `polyproc-pool`. [`Pool::new`](crate::pool::Pool::new) starts it, and
//! [`Pool::join`](crate::pool::Pool::join) waits for its end. One round of its loop:
//!
//! 1. Fires the timers that are due.
//! 2. Starts the workers that the scheduler wants (`starts`). This needs no lock, since a start takes milliseconds.
//! 3. Ends if the scheduler is over and no start is pending.
//! 4. Sleeps in `epoll_wait(2)` until a timer is due, the bell rings, or the channel or the pidfd of a worker is
//!    readable.
//! 5. Reads results if the bell rang. Reads the messages of the reported workers (`messages`), and handles their deaths
//!    (`deaths`).
//! 6. Takes over the reading of results if no thread leads and a call needs it ([`hand_over`]).
//!
//! Locks: functions with a `pool` argument run under the lock of [`PoolState`], and several of them are also called by
//! threads that wait for results or cancel calls. Functions without it acquire the lock themselves, and must not be
//! called under it. Only one thread starts workers: the one in `Pool::new`, then this one.
//!
//! No function here waits for a worker. This thread runs the callbacks `on_event` and `on_log` and wakes futures, as any thread
//! does that releases the lock. Completion callbacks go to the thread of `callbacks`.
//!
//! | object | written by | used up by |
//! |---|---|---|
//! | timers | any thread, under the lock; an earlier first timer rings the bell | this thread |
//! | places in which workers must be started | actions of the scheduler, on any thread, under the lock | the thread that starts workers |
//! | the poller | the thread that starts workers | this thread, which also removes dead workers |
//! | the bell | workers, and any thread with work for this one | this thread |
//! | a worker's channel | the worker | any thread, under the lock |

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use super::calls::Stop;
use super::driver::{BELL, Driver};
use super::leader::hand_over;
use super::scheduler::{Place, SchedulerEvent};
use super::starts::kill_workers;
use super::state::PoolState;
use super::timers::{Limited, Timer, Watch};
use super::worker_handle::Cause;
use crate::deadline::Deadline;
use crate::process::own_threads;
use crate::shm;
use crate::sys::priority;

impl Driver {
    /// Starts the pool's thread, which sets the latch `end` when the pool is over.
    ///
    /// All signals are blocked in it, so that signal handlers of the program run on other threads.
    ///
    /// # Errors
    /// The error of `pthread_create(3)`. The workers that were started before still run.
    pub(super) fn spawn_thread(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let driver = Arc::clone(self);
        own_threads().spawn("polyproc-pool", move || {
            driver.run();
            driver.end.set();
        })
    }

    /// Runs the loop of the module's header until the pool is over.
    ///
    /// If `epoll_wait(2)` fails, the pool cannot detect deaths any more. Then the function terminates the pool and
    /// returns without waiting for the exits of the workers.
    fn run(&self) {
        let mut keys = Vec::new();
        if let Some(time) = self.settings.retire_idle {
            self.with(|pool| pool.set_timer(Instant::now() + time, Timer::Idle));
        }
        loop {
            let next = self.with(|pool| self.fire_timers(pool));
            self.start_workers();
            if self.with(|pool| pool.scheduler.is_over() && !pool.workers.is_any_wanted()) {
                return;
            }
            let deadline =
                next.map_or(Deadline::NEVER, |at| Deadline::after(at.saturating_duration_since(Instant::now())));
            if self.watch.wait(&mut keys, deadline).is_err() {
                // The program closed all descriptors: no worker can be started or watched any more.
                return self.with(|pool| self.handle(pool, SchedulerEvent::Terminated));
            }
            self.with(|pool| {
                for &key in &keys {
                    if key == BELL {
                        self.bell.answer();
                        self.collect(pool);
                    } else if let Some(at) = pool.workers.with_key(key) {
                        self.receive(pool, at);
                    }
                }
                hand_over(&mut self.locked(pool));
            });
        }
    }

    /// Fires the timers that are due. Returns when the next one is due.
    ///
    /// An action may set further timers; these fire in the same call only if they are due already.
    fn fire_timers(&self, pool: &mut PoolState) -> Option<Instant> {
        let now = Instant::now();
        while let Some(timer) = pool.timers.pop_due(now) {
            self.fire(pool, timer);
        }
        pool.timers.first()
    }

    /// Performs the action of a timer.
    ///
    /// Timers are not removed when their reason disappears, so each kind re-checks it here. Tasks are checked by their
    /// serial, since their keys are reused. [`Timer::Limits`] is set for the earliest limit: it ends all limits that
    /// are due, and is set for the next one.
    fn fire(&self, pool: &mut PoolState, timer: Timer) {
        match timer {
            Timer::Due { task, serial } => {
                if pool.tasks.get(task).is_some_and(|task| task.serial() == serial) {
                    self.handle(pool, SchedulerEvent::Due(task));
                }
            }
            Timer::Start(place) => self.handle(pool, SchedulerEvent::StartDue(place)),
            Timer::Limits => {
                for limited in pool.limits.take_due(Instant::now()) {
                    match limited {
                        Limited::Task(id) => self.limit(pool, id),
                        Limited::Call(key) => {
                            if let Some(state) = pool.calls.get_mut(key) {
                                state.limit_at = None;
                                self.stop(pool, key, Stop::TimedOut);
                            }
                        }
                    }
                }
                pool.set_timer_for_limits();
            }
            Timer::Stop { call, stop } => {
                if pool.calls.get(call).is_some_and(|state| !state.is_over()) {
                    self.stop(pool, call, stop);
                }
            }
            Timer::Idle => self.retire_idle(pool),
            Timer::Kill => kill_workers(pool),
            Timer::Watch(watch) => self.look(pool, watch),
        }
    }

    /// Retires workers that have been idle for the configured time. The scheduler retires a worker only if no task is left.
    fn retire_idle(&self, pool: &mut PoolState) {
        let Some(time) = self.settings.retire_idle else { return };
        for at in 0..pool.workers.places() {
            if pool.workers.get(at).is_some_and(|worker| worker.idle_for() >= time) {
                self.handle(pool, SchedulerEvent::Idle(Place(at)));
            }
        }
        pool.set_timer(Instant::now() + time, Timer::Idle);
    }

    /// Looks after what is watched, and sets the watch again while there is something to watch.
    fn look(&self, pool: &mut PoolState, watch: Watch) {
        match watch {
            Watch::Memory => self.limit_memory(pool),
            Watch::Steal => self.steal(pool),
            Watch::Audit => self.audit(pool),
            Watch::Room => self.handle(pool, SchedulerEvent::Room),
            Watch::Queued => {
                if self.board.table().waiting() > 0 {
                    self.board.waiters().wake_one();
                    pool.watch(watch);
                }
            }
        }
    }

    /// Revokes workers above the memory limit, even if they are idle. Measures each worker's own memory, and the data that it
    /// has put into queues and other shared objects.
    fn limit_memory(&self, pool: &mut PoolState) {
        let limit = self.settings.memory_limit.unwrap_or(u64::MAX);
        for worker in pool.workers.iter_mut() {
            let shared = worker.identity().map_or(0, |of| shm::bytes_of(of, worker.stream.segment().inode()));
            let own = priority::resident_bytes(worker.child.pid());
            if own.is_some_and(|own| own.saturating_add(shared) > limit) {
                worker.revoke(Cause::OutOfMemory, None);
            }
        }
        if pool.tasks.out_count() > 0 {
            pool.watch(Watch::Memory);
        }
    }
}
