//! [`Timers`]: what the pool's thread does at a given time; [`Limits`]: the time limits of tasks and calls.
//!
//! Both are part of the pool's state, under its lock. Any thread sets a timer; only the pool's thread fires it (`thread`), so
//! it may be late by the time of a start of a worker. Timers are not removed when their reason disappears: what fires
//! re-checks.
//!
//! Limits are kept apart, since most tasks and calls end before their limit: their limits are removed when they end.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::{Duration, Instant};

use super::calls::Stop;
use super::key::CallKey;
use super::scheduler::{Pace, Place, TaskId};

/// Maximum delay between two attempts at an item.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// What the pool's thread does at a given time.
///
/// A serial tells a task from a later one with the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    /// Publish a delayed task.
    Due { task: TaskId, serial: u64 },
    /// Try to start a worker again.
    Start(Place),
    /// Check the earliest of [`Limits`].
    Limits,
    /// End the rest of the call.
    Stop { call: CallKey, stop: Stop },
    /// Retire workers that have been idle for long. Set as long as the pool exists, if workers retire.
    Idle,
    /// Kill workers that have not ended after SIGTERM.
    Kill,
    /// What is watched at intervals.
    Watch(Watch),
}

/// What the pool's thread watches at intervals while there is something to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Watch {
    /// Measure the memory of all workers, if it is limited, while tasks are out.
    Memory,
    /// Move items of long tasks to idle workers.
    Steal,
    /// Wake workers for tasks for which no worker was woken.
    Queued,
    /// Retry to publish tasks for which there was no memory.
    Room,
    /// Find tasks that are lost in the table: see `audit`.
    Audit,
}

impl Watch {
    /// Returns the time between two looks.
    fn period(self) -> Duration {
        Duration::from_millis(match self {
            Self::Memory => 20, // a worker can exceed its limit by what it allocates in this time
            Self::Steal => 1,   // items wait for so long behind a long item while other workers are idle
            Self::Queued => 1,
            Self::Room => 10,
            Self::Audit => 1000,
        })
    }

    /// Returns the bit that stands for it in [`Timers`].
    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Pending timers. Each [`Watch`] is set at most once.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// The earliest first.
    heap: BinaryHeap<Reverse<(Instant, Timer)>>,
    /// The bits of the watches that are set.
    watches: u8,
}

impl Timers {
    /// Sets a timer. Returns whether it is now the first one, for which the pool's thread must be woken.
    #[must_use]
    pub(super) fn set(&mut self, at: Instant, timer: Timer) -> bool {
        let is_first = self.heap.peek().is_none_or(|Reverse((first, _))| at < *first);
        self.heap.push(Reverse((at, timer)));
        is_first
    }

    /// Sets a watch for a period from now, unless it is set. Returns as [`Timers::set`].
    #[must_use]
    pub(super) fn watch(&mut self, watch: Watch) -> bool {
        let is_new = !self.is_watching(watch);
        self.watches |= watch.bit();
        is_new && self.set(Instant::now() + watch.period(), Timer::Watch(watch))
    }

    /// Returns whether a watch is set.
    pub(super) fn is_watching(&self, watch: Watch) -> bool {
        self.watches & watch.bit() != 0
    }

    /// Removes and returns the first timer, if it is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Timer> {
        self.heap.peek().filter(|Reverse((at, _))| *at <= now)?;
        let Reverse((_, timer)) = self.heap.pop()?;
        if let Timer::Watch(watch) = timer {
            self.watches &= !watch.bit();
        }
        Some(timer)
    }

    /// Returns when the first timer is due.
    pub(super) fn first(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

/// What a time limit applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limited {
    /// The running item of a task.
    Task(TaskId),
    Call(CallKey),
}

/// The deadlines of limited tasks and calls. A single timer, set for the earliest deadline, serves all of them. If the task of
/// that deadline has ended, the timer fires early and is set again.
#[derive(Debug, Default)]
pub(super) struct Limits {
    /// At most one entry for each task and each call, whose record has the time.
    times: BTreeSet<(Instant, Limited)>,
    /// The time for which the timer is set.
    timer: Option<Instant>,
}

impl Limits {
    /// Adds an entry. The caller sets the timer ([`Limits::timer_to_set`]).
    pub(super) fn add(&mut self, at: Instant, limited: Limited) {
        self.times.insert((at, limited));
    }

    /// Removes an entry, if it is still there. The timer stays set.
    pub(super) fn remove(&mut self, at: Instant, limited: Limited) {
        self.times.remove(&(at, limited));
    }

    /// Returns the time for which the timer must be set now: that of the earliest entry, unless it is set for that time or an
    /// earlier one.
    pub(super) fn timer_to_set(&mut self) -> Option<Instant> {
        let &(first, _) = self.times.first()?;
        if self.timer.is_some_and(|at| at <= first) {
            return None;
        }
        self.timer = Some(first);
        self.timer
    }

    /// Notes that the timer has fired. Removes and returns the entries whose deadline has passed.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<Limited> {
        self.timer = None;
        let mut due = Vec::new();
        while let Some((_, limited)) = self.times.first().copied().filter(|(at, _)| *at <= now) {
            self.times.pop_first();
            due.push(limited);
        }
        due
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_fire_in_order_and_a_watch_is_set_once() {
        let (mut timers, now) = (Timers::default(), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        assert!(timers.set(at(20), Timer::Kill), "the first one");
        assert!(!timers.set(at(30), Timer::Limits), "a later one");
        assert!(timers.set(at(10), Timer::Start(Place(0))), "an earlier one");
        assert_eq!(timers.pop_due(at(9)), None);
        assert_eq!(timers.pop_due(at(25)), Some(Timer::Start(Place(0))));
        assert_eq!(timers.pop_due(at(25)), Some(Timer::Kill));
        assert_eq!((timers.pop_due(at(25)), timers.first()), (None, Some(at(30))));
        assert_eq!(timers.pop_due(at(30)), Some(Timer::Limits));
        assert!(timers.watch(Watch::Audit) && !timers.watch(Watch::Audit));
        assert!(timers.is_watching(Watch::Audit) && !timers.is_watching(Watch::Room));
        assert_eq!(timers.pop_due(at(10_000)), Some(Timer::Watch(Watch::Audit)));
        assert!(!timers.is_watching(Watch::Audit));
    }

    #[test]
    fn one_timer_serves_all_limits_and_what_has_ended_leaves_none() {
        let (mut limits, now) = (Limits::default(), Instant::now());
        let at = |millis| now + Duration::from_millis(millis);
        let call = Limited::Call(CallKey { at: 1, serial: 1 });
        limits.add(at(20), call);
        assert_eq!((limits.timer_to_set(), limits.timer_to_set()), (Some(at(20)), None));
        limits.add(at(30), Limited::Task(TaskId(1)));
        assert_eq!(limits.timer_to_set(), None, "a later limit");
        limits.add(at(10), Limited::Task(TaskId(2)));
        assert_eq!(limits.timer_to_set(), Some(at(10)), "an earlier limit");
        limits.remove(at(10), Limited::Task(TaskId(2)));
        assert_eq!(limits.take_due(at(10)), []);
        assert_eq!(limits.timer_to_set(), Some(at(20)));
        assert_eq!(limits.take_due(at(30)), [call, Limited::Task(TaskId(1))]);
        assert_eq!(limits.timer_to_set(), None);
    }

    #[test]
    fn delays_double_up_to_their_limits() {
        let delay = |at: Instant| at.saturating_duration_since(Instant::now()).as_millis();
        assert!(delay(after_backoff(Duration::from_secs(1), 3)) <= 4000);
        assert!((3900..=4000).contains(&delay(after_backoff(Duration::from_secs(1), 3))));
        assert!(delay(after_backoff(Duration::from_secs(1), u32::MAX)) <= LONGEST_BACKOFF.as_millis());
        assert!(
            delay(after_failed_starts(100, Pace::Slow)) <= 640 && delay(after_failed_starts(100, Pace::Fast)) <= 512
        );
    }
}
