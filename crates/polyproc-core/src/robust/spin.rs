//! Spinning before a sleep: [`AdaptiveSpin`] where two processes answer each other, [`spin_until`] in the pool.
//!
//! A sleep and its wake-up cost two system calls and a switch of context, often more than the time in which a running peer
//! answers. But a process that spins in vain takes the processor from others, so spinning is bounded, and adaptive where its
//! success is not known beforehand.
//!
//! Users of [`AdaptiveSpin`]: consumers of a queue (`queue::handle`), locks (`sync::lock`), connections (`conn::connection`).
//! Users of [`spin_until`]: idle workers (`pool::worker`), and the thread that reads results (`pool::results`).
//!
//! All state is private to a process, and only a hint: threads change it without synchronisation, and a lost change does no
//! harm. Nothing here is needed for correctness: after a failed spin the caller becomes a waiter, and re-checks.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::prim::{AtomicU32, Ordering};

/// How long to spin while spinning succeeds: longer than a running process takes to answer.
const AWAKE_NANOS: u32 = 10_000;
/// How long to spin in an attempt after failures: longer than a sleeping process takes to wake up and answer. From then on
/// both are awake.
const WAKING_NANOS: u32 = 50_000;
/// How many waits do not spin after spinning has failed: doubles with each failure, from 16 to 1024.
const FIRST_PAUSE: u32 = 16;
/// See [`FIRST_PAUSE`].
const LAST_PAUSE: u32 = 1024;

/// Whether another process can run while this one spins: this process may use at least two processors. Determined once;
/// callers do not spin without one.
pub(crate) static HAS_SPARE_PROCESSOR: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// Spins only where that has succeeded lately: two processes that answer each other at once stay awake, others sleep. One
/// value stands for one kind of wait, in all threads of a process.
#[derive(Debug)]
pub(crate) struct AdaptiveSpin {
    /// How many waits remain until one spins again; 0 while spinning succeeds.
    left: AtomicU32,
    /// How many waits do not spin after the next failure.
    pause: AtomicU32,
}

impl AdaptiveSpin {
    /// Creates a value that spins at the first wait.
    pub(crate) const fn new() -> Self {
        Self { left: AtomicU32::new(0), pause: AtomicU32::new(FIRST_PAUSE) }
    }

    /// Spins until `is_done` returns true, for at most 50 us. Returns whether it did. Returns false at once if spinning has
    /// failed lately, or no other process could run.
    ///
    /// The first failure after a success begins a pause of 16 waits; each failed attempt after a pause doubles the next one.
    pub(crate) fn until(&self, is_done: impl FnMut() -> bool) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        if left > 1 || !*HAS_SPARE_PROCESSOR {
            self.left.store(left.saturating_sub(1), Ordering::Relaxed);
            return false;
        }
        let nanos = if left == 0 { AWAKE_NANOS } else { WAKING_NANOS };
        if spin(Duration::from_nanos(nanos.into()), is_done) {
            self.left.store(0, Ordering::Relaxed);
            self.pause.store(FIRST_PAUSE, Ordering::Relaxed);
            return true;
        }
        let pause = self.pause.load(Ordering::Relaxed);
        self.left.store(pause, Ordering::Relaxed);
        if left == 1 {
            self.pause.store((pause * 2).min(LAST_PAUSE), Ordering::Relaxed);
        }
        false
    }
}

/// How long [`spin_until`] spins, and how long it does so without yielding.
const SPIN_NANOS: u64 = 30_000;
/// See [`SPIN_NANOS`].
const BUSY_NANOS: u64 = 5_000;

/// Spins until `is_done` returns true, for at most 30 us. Returns whether it did. Yields the processor after 5 us, or from the
/// start if `yields_at_once`, so that it delays no other thread for long.
pub(crate) fn spin_until(yields_at_once: bool, is_done: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if is_done() {
                return true;
            }
            std::hint::spin_loop();
        }
        let spun = start.elapsed();
        if spun >= Duration::from_nanos(SPIN_NANOS) {
            return false;
        }
        if yields_at_once || spun >= Duration::from_nanos(BUSY_NANOS) {
            std::thread::yield_now();
        }
    }
}

/// Spins until `is_done` returns true, or until the time is over. The number of processor pauses before a check doubles from 1
/// to 64.
fn spin(time: Duration, mut is_done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut pauses = 1;
    loop {
        for _ in 0..pauses {
            std::hint::spin_loop();
        }
        if is_done() {
            return true;
        }
        // Each check takes the cache line from its writer, so checks become rarer.
        pauses = (pauses * 2).min(64);
        if start.elapsed() >= time {
            return false;
        }
    }
}
