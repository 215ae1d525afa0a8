//! Keeping code mapped in the children of the zygote.
//!
//! A forked process inherits the page tables of memory that was written to, but not those of files it only reads: each
//! window of code that it runs faults once more, some twenty times for a start and an end. The kernel copies the entries of
//! a private file mapping as soon as one page of it was copied for writing (`vma_needs_copy` in `mm/memory.c`). So the
//! zygote writes one byte of each such mapping with its own value, through `/proc/self/mem`, which may do that.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// Does the above for all code and constants loaded so far. Where the system does not allow it, nothing changes but speed.
pub(crate) fn keep_mapped_in_children() {
    let Ok(memory) = File::options().read(true).write(true).open("/proc/self/mem") else { return };
    super::image::for_each_constant_segment(|last_byte| {
        let mut byte = [0];
        // An error here means that a hardened kernel refuses.
        if memory.read_exact_at(&mut byte, last_byte).is_ok() {
            let _ = memory.write_all_at(&byte, last_byte);
        }
    });
}
