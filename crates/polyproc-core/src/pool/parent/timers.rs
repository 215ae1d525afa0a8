//! Timers of the pool's thread, and the time limits of tasks and calls.
//!
//! Timers and limits are part of [`Inner`], under the pool's lock. Any thread sets them; only the pool's thread fires
//! them (`thread`), so a timer may be late by the time of a start of a worker. Timers are not removed when their reason
//! disappears: what fires re-checks.
//!
//! Limits are kept apart, since most tasks and calls end before their limit: their limits are removed when they end.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use super::call::Stop;
use super::driver::Inner;
use super::scheduler::{Pace, Place, TaskId};

/// Maximum delay between two attempts at an item.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What the pool's thread does at a given time.
///
/// A serial tells a task or a call from a later one with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Publish a delayed task.
    Due { task: TaskId, serial: u64 },
    /// Try to start a worker again.
    Start(Place),
    /// Check the earliest of [`Limits`].
    Limits,
    /// End the rest of the call.
    Stop { call: usize, serial: u64, stop: Stop },
    /// Measure the memory of all workers.
    Memory,
    /// Retire workers that have been idle for long.
    Idle,
    /// Move items of long tasks to idle workers.
    Steal,
    /// Wake workers for tasks for which no worker was woken.
    LookAfter,
    /// Retry to publish tasks for which there was no memory.
    Room,
    /// Find tasks that are lost in the table: see `audit`.
    Audit,
    /// Kill workers that have not ended after SIGTERM.
    Kill,
}

/// Pending timers, the earliest first.
pub(super) type Timers = BinaryHeap<Reverse<(Instant, Timer)>>;

/// What a time limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limited {
    /// The running item of a task.
    Task(TaskId),
    Call(usize),
}

/// The deadlines of limited tasks and calls. A single timer, set for the earliest deadline, serves all of them. If the task of
/// that deadline has ended, the timer fires early and is set again.
///
/// `times` has at most one entry for each task and each call; its time is in their `limit_at`.
#[derive(Debug, Default)]
pub(super) struct Limits {
    pub(super) times: BTreeSet<(Instant, Limited)>,
    /// The time for which the timer is set.
    pub(super) timer: Option<Instant>,
}

impl Limits {
    /// Removes an entry, if it is still there. The timer stays set.
    pub(super) fn remove(&mut self, at: Instant, limited: Limited) {
        self.times.remove(&(at, limited));
    }

    /// Removes and returns the entry with the earliest deadline, if that has passed.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Limited> {
        let (at, limited) = *self.times.first()?;
        if at > now {
            return None;
        }
        self.times.pop_first();
        Some(limited)
    }
}

/// Returns the time 1 ms from now.
pub(super) fn soon() -> Instant {
    Instant::now() + Duration::from_millis(1)
}

/// Returns when the next attempt is due after `attempts` attempts: after `backoff`, doubled for each further one, up to 60 s.
pub(super) fn after_backoff(backoff: Duration, attempts: u32) -> Instant {
    Instant::now() + backoff.saturating_mul(1 << attempts.saturating_sub(1).min(16)).min(LONGEST_BACKOFF)
}

/// Returns when to start a worker again after `failures` in a row: from 10 ms to 640 ms later, or from 1 ms to 512 ms if
/// `pace` is fast.
pub(super) fn after_failed_starts(failures: u32, pace: Pace) -> Instant {
    let millis = match pace {
        Pace::Slow => 10 << failures.min(6),
        Pace::Fast => 1 << (failures / 4).min(9),
    };
    Instant::now() + Duration::from_millis(millis)
}

impl Inner {
    /// Sets a timer of the pool's thread.
    ///
    /// Wakes the pool's thread if the timer is earlier than all others.
    pub(super) fn set_timer(&mut self, at: Instant, timer: Timer) {
        let is_first = self.timers.peek().is_none_or(|Reverse((first, _))| at < *first);
        self.timers.push(Reverse((at, timer)));
        self.notifications.driver |= is_first;
    }

    /// Starts the time limit of a task or a call.
    ///
    /// `time` counts from now. The caller has made sure that no limit of it runs. A time beyond the clock's range is no
    /// limit.
    pub(super) fn limit_after(&mut self, time: Duration, limited: Limited) {
        let Some(at) = Instant::now().checked_add(time) else { return }; // beyond the clock's range: no limit
        let place = match limited {
            Limited::Task(id) => self.tasks.get_mut(id.0).map(|task| &mut task.limit_at),
            Limited::Call(key) => self.calls.get_mut(key).map(|call| &mut call.limit_at),
        };
        let Some(place) = place else { return };
        *place = Some(at);
        self.limits.times.insert((at, limited));
        self.set_timer_for_limits();
    }

    /// Sets the timer for the earliest limit, unless it is set for that time or an earlier one.
    pub(super) fn set_timer_for_limits(&mut self) {
        let Some(&(first, _)) = self.limits.times.first() else { return };
        if self.limits.timer.is_none_or(|at| first < at) {
            self.limits.timer = Some(first);
            self.set_timer(first, Timer::Limits);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::super::call::{CallSettings, FunctionId};
    use super::super::driver::Driver;
    use super::super::handle::PoolSettings;
    use super::*;
    use crate::pool::shared::task::Items;

    #[test]
    fn one_timer_serves_all_limits_and_what_has_ended_leaves_none() {
        let driver = Driver::new(1, PoolSettings::default()).expect("memory");
        let hour = Some(Duration::from_secs(3600));
        let calls = (0..500).map(|_| {
            let settings = CallSettings { limit: hour, call_limit: hour, ..CallSettings::default() };
            let (call, _) = driver.open(FunctionId(1), false, settings);
            for first in 0..2 {
                let mut items = Items::new();
                items.push(|_| Ok::<Vec<OwnedFd>, ()>(Vec::new())).expect("nothing fails");
                driver.submit(call, first, &mut items, Vec::new(), false);
            }
            driver.with(|inner| inner.seal(call));
            call
        });
        let calls: Vec<_> = calls.collect();
        let limits = |inner: &Inner| inner.timers.iter().filter(|Reverse((_, timer))| *timer == Timer::Limits).count();
        driver.with(|inner| {
            assert_eq!(inner.limits.times.len(), 1500, "a call and its two tasks, all out");
            assert_eq!(limits(inner), 1);
        });
        calls.into_iter().for_each(|call| driver.cancel(call));
        driver.with(|inner| assert!(inner.limits.times.is_empty() && inner.tasks.is_empty() && limits(inner) == 1));
    }
}
