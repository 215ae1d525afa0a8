//! The command line that `ps` shows: the memory of this process's arguments (`arg_start` of `proc_pid_stat(5)`).
//!
//! The zygote shows another one, so that tools which search for processes do not take it for a process of the user. A child
//! restores the original when it has its order (`process/enter.rs`).

use std::sync::OnceLock;

use super::proc_stat;

/// The address of the arguments, and their bytes before [`set`]. Empty if neither this process nor its original has changed its
/// title.
static ORIGINAL: OnceLock<(usize, Vec<u8>)> = OnceLock::new();

/// Shows `title` instead of this process's arguments, until [`restore`]. Does nothing without `/proc`, or if `title` does not
/// fit in their place. Only for a process with one thread, as the standard library reads the arguments without a lock.
pub(crate) fn set(title: &str) {
    let Some((start, end)) = place() else { return };
    let length = end - start;
    if length <= title.len() {
        return;
    }
    // SAFETY: the kernel stored the arguments there, on the stack, which stays mapped; there is only one thread.
    let arguments = unsafe { std::slice::from_raw_parts_mut(start as *mut u8, length) };
    let _ = ORIGINAL.set((start, arguments.to_vec()));
    let (shown, rest) = arguments.split_at_mut(title.len());
    shown.copy_from_slice(title.as_bytes());
    rest.fill(0);
}

/// Shows the arguments again, in this process or in a copy of it. Only for a process with one thread.
pub(crate) fn restore() {
    if let Some((start, original)) = ORIGINAL.get() {
        // SAFETY: as in `set`.
        unsafe { std::ptr::copy_nonoverlapping(original.as_ptr(), *start as *mut u8, original.len()) };
    }
}

/// Returns the address of the first byte of the arguments, and the address after the last; `None` without `/proc`, or if the
/// kernel hides the addresses, which it then reports as 0.
fn place() -> Option<(usize, usize)> {
    let [start, end] = proc_stat::fields("self", 48).ok()?;
    let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
    (0 < start && start < end).then_some((start, end))
}
