//! The monotonic clock, as a number that several processes can compare. For time that one process measures, use
//! `std::time::Instant`.

/// Returns the time of `CLOCK_MONOTONIC` in nanoseconds since an unspecified moment, the same for all processes of the machine
/// in one time namespace. A worker stores it in shared memory when an item begins, and the parent computes how long the item
/// has run.
pub(crate) fn monotonic_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let (seconds, nanos) = (now.tv_sec.cast_unsigned(), now.tv_nsec.cast_unsigned());
    seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)
}
