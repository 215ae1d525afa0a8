//! [`Spin`]: looking again for a moment before going to sleep, for as long as that pays.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::prim::{AtomicU32, Ordering};

/// Longer than an answer takes from a process that is awake.
const AWAKE_NANOS: u32 = 10_000;
/// Longer than an answer takes from a process that has to wake up first: both are awake then.
const WAKING_NANOS: u32 = 50_000;
/// After so many waits without spinning, to spin is tried again; twice as many after each failure.
const FIRST_PAUSE: u32 = 16;
const LAST_PAUSE: u32 = 1024;

/// Another process can run while this one spins.
pub(crate) static HAS_SPARE_PROCESSOR: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// Whether to spin, learnt from how it went. Two processes that answer each other at once stay awake; others sleep.
#[derive(Debug)]
pub(crate) struct Spin {
    /// How many waits to go until spinning is tried; 0 while it pays.
    left: AtomicU32,
    pause: AtomicU32,
}

impl Spin {
    pub(crate) const fn new() -> Self {
        Self { left: AtomicU32::new(0), pause: AtomicU32::new(FIRST_PAUSE) }
    }

    /// Looks again until `found` or its time is over.
    pub(crate) fn until(&self, found: impl Fn() -> bool) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        if left > 1 || !*HAS_SPARE_PROCESSOR {
            self.left.store(left.saturating_sub(1), Ordering::Relaxed);
            return false;
        }
        let nanos = if left == 0 { AWAKE_NANOS } else { WAKING_NANOS };
        if spin(Duration::from_nanos(nanos.into()), found) {
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

fn spin(time: Duration, found: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    let mut pauses = 1;
    loop {
        for _ in 0..pauses {
            std::hint::spin_loop();
        }
        if found() {
            return true;
        }
        // Looking takes the line from who writes it: ever more seldom.
        pauses = (pauses * 2).min(64);
        if start.elapsed() >= time {
            return false;
        }
    }
}
