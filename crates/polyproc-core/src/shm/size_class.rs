//! The sizes of blocks, for both allocators: four classes per doubling, as in "A Scalable Concurrent malloc(3) Implementation
//! for FreeBSD" (J. Evans, 2006) and its successors. At most a fifth of a block is unused, besides the rounding to at least 256
//! bytes and, above 4 KiB, to whole pages.

/// The number of size classes.
pub(super) const CLASSES: usize = 160;
/// The capacity of the smallest block in bytes.
const SMALLEST: u64 = 256;
/// Blocks of at least this many bytes are whole pages, so that their memory can go back to the system.
pub(super) const PAGED: u64 = 4096;
/// Bytes of free memory that an allocator keeps for reuse.
pub(super) const WARM_LIMIT: u64 = 64 << 20;

/// Returns the class and the size in bytes of the smallest block that holds `len` bytes, or `None` if there is none.
pub(super) fn class_of(len: u64) -> Option<(usize, u64)> {
    if len <= SMALLEST {
        return Some((0, SMALLEST));
    }
    let len = if len > PAGED { len.checked_next_multiple_of(PAGED)? } else { len };
    let doubling = (len - 1).ilog2();
    let step = 1u64 << (doubling - 2);
    let steps = (len - 1) / step + 1; // 5 to 8
    let class = usize::try_from(u64::from(doubling - SMALLEST.ilog2()) * 4 + steps - 4).ok()?;
    (class < CLASSES).then_some((class, steps.checked_mul(step)?))
}
