//! [`Barrier`].

use std::io;
use std::time::Duration;

use polyproc_core::sync::{self as core, BarrierError, BarrierTurn};
use polyproc_core::{Deadline, retry_interrupted};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::codec;

/// A barrier, at which a fixed number of parties wait for each other.
///
/// A party that dies or times out during a wait breaks the barrier: current and later waits fail until the barrier is reset.
///
/// ```
/// use polyproc::{Barrier, Process};
///
/// let barrier = Barrier::new(3)?;
/// let parties = (0..2).map(|_| Process::new(|barrier: Barrier| barrier.wait().is_ok(), barrier.clone()).start());
/// let parties: Vec<_> = parties.collect::<Result<_, _>>()?;
/// barrier.wait()?;
/// for party in parties {
///     assert!(party.join()?);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Barrier {
    core: core::Barrier,
}

/// Breaks the barrier on drop, that is, if the action panics.
struct BreakOnPanic<'a>(&'a core::Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Barrier {
    /// Creates a barrier for `parties` parties.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `parties` is 0. Another error when the system provides no memory or no descriptor.
    pub fn new(parties: usize) -> io::Result<Self> {
        Ok(Self { core: core::Barrier::new(parties)? })
    }

    fn wait_until(&self, deadline: Deadline, action: impl FnOnce()) -> Result<usize, BarrierError> {
        let turn = retry_interrupted(|| self.core.arrive(deadline))?;
        if let BarrierTurn::Last { index, .. } = turn {
            let breaks = BreakOnPanic(&self.core);
            action();
            std::mem::forget(breaks);
            return self.core.release(&turn).map(|()| index);
        }
        retry_interrupted(|| self.core.wait(&turn, deadline))
    }

    /// Blocks until all parties have arrived. Returns the number of this party, from 0, which is unique in this round.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] when the barrier is broken, or is reset during the wait; [`BarrierError::TooManyWaiters`]
    /// when the table of waiters is full.
    pub fn wait(&self) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::NEVER, || {})
    }

    /// As [`Barrier::wait`]. The last party to arrive runs its `action` before any party continues. If the action panics, the
    /// barrier breaks.
    ///
    /// # Errors
    /// As [`Barrier::wait`].
    pub fn wait_with(&self, action: impl FnOnce()) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::NEVER, action)
    }

    /// As [`Barrier::wait`], for at most `timeout`. A timeout breaks the barrier.
    ///
    /// # Errors
    /// As [`Barrier::wait`]; [`BarrierError::Broken`] also on timeout.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<usize, BarrierError> {
        self.wait_until(Deadline::after(timeout), || {})
    }

    /// Resets the barrier to its initial state. Current waits fail with [`BarrierError::Broken`].
    pub fn reset(&self) {
        self.core.reset();
    }

    /// Breaks the barrier until it is reset.
    pub fn abort(&self) {
        self.core.abort();
    }

    /// Returns the number of parties.
    #[must_use]
    pub fn parties(&self) -> usize {
        self.core.parties()
    }

    /// Returns the number of waiting parties. Another process may change it at any time.
    #[must_use]
    pub fn n_waiting(&self) -> usize {
        self.core.n_waiting()
    }

    /// Returns whether the barrier is broken.
    #[must_use]
    #[doc(alias = "broken")]
    pub fn is_broken(&self) -> bool {
        self.core.is_broken()
    }
}

/// For sending to another process by polyproc. Any other format fails.
impl Serialize for Barrier {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        codec::carry_place(self.core.place(), serializer)
    }
}

impl<'de> Deserialize<'de> for Barrier {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self { core: codec::take_place(deserializer, core::Barrier::from_place)? })
    }
}
