//! [`Spin`]: looking again for a moment before going to sleep, for as long as that pays.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::prim::{AtomicU32, Ordering};

/// Longer than a message takes between two running processes; longer spins take the processor from who is to answer.
const LONGEST_NANOS: u32 = 5_000;
const SHORTEST_NANOS: u32 = 500;

/// Another process can run while this one spins.
pub(crate) static HAS_SPARE_PROCESSOR: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// How long to spin, learnt from how it went.
#[derive(Debug)]
pub(crate) struct Spin {
    nanos: AtomicU32,
}

impl Spin {
    pub(crate) fn new() -> Self {
        Self { nanos: AtomicU32::new(LONGEST_NANOS) }
    }

    /// Looks again until `found` or its time is over.
    pub(crate) fn until(&self, found: impl Fn() -> bool) -> bool {
        if !*HAS_SPARE_PROCESSOR {
            return false;
        }
        let nanos = self.nanos.load(Ordering::Relaxed);
        let start = Instant::now();
        let mut pauses = 1;
        loop {
            for _ in 0..pauses {
                std::hint::spin_loop();
            }
            if found() {
                self.nanos.store((nanos * 2).min(LONGEST_NANOS), Ordering::Relaxed);
                return true;
            }
            // Looking takes the line from who writes it: ever more seldom.
            pauses = (pauses * 2).min(16);
            if start.elapsed() >= Duration::from_nanos(nanos.into()) {
                self.nanos.store((nanos / 2).max(SHORTEST_NANOS), Ordering::Relaxed);
                return false;
            }
        }
    }
}
