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
    pub(crate) fn until(&self, found: impl FnMut() -> bool) -> bool {
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

/// How long [`look`] looks, and for how long of that at nothing else.
const LOOK_NANOS: u64 = 30_000;
const STARE_NANOS: u64 = 5_000;

/// Looks again until `found`. At first it does nothing else, unless `is_patient`; then it lets others run in between, who may
/// have something to do on this processor: so it costs little but on idle processors.
pub(crate) fn look(is_patient: bool, found: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..32 {
            if found() {
                return true;
            }
            std::hint::spin_loop();
        }
        let looked = start.elapsed();
        if looked >= Duration::from_nanos(LOOK_NANOS) {
            return false;
        }
        if is_patient || looked >= Duration::from_nanos(STARE_NANOS) {
            std::thread::yield_now();
        }
    }
}

fn spin(time: Duration, mut found: impl FnMut() -> bool) -> bool {
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
