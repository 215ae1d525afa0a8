//! [`CallKey`].

/// Refers to a call of a pool. Never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct CallKey {
    /// Its place among the calls of the pool, which a later call may have.
    pub(crate) at: usize,
    /// Tells it from the other calls that have this place. From 1.
    pub(crate) serial: u64,
}
