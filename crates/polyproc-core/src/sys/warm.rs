//! Keeping code mapped in the children of the zygote.
//!
//! A forked process inherits the page tables of memory that was written to, but not those of files it only reads: each
//! window of code that it runs faults once more, some thirty times for a start and an end. The kernel copies the entries of
//! a private file mapping as soon as one page of it was copied for writing (`vma_needs_copy` in `mm/memory.c`). So the
//! zygote writes one byte of the code of the program and of libc with its own value, through `/proc/self/mem`, which may do
//! that; and since copying entries costs time too, it drops first what it mapped while it came up, and then rehearses what
//! a child does. (Measured: a child runs 40 us less for 10 us more of `clone3`. More segments than these two cost more in
//! `clone3` than they save.)

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::mm::Advice;

use super::pagemap::is_unchanged;

/// Does the above; the caller rehearses afterwards. Where the system does not allow it, only speed is lost.
pub(crate) fn keep_mapped_in_children() {
    let Ok(memory) = File::options().read(true).write(true).open("/proc/self/mem") else { return };
    let page = rustix::param::page_size();
    for segment in super::image::common_code() {
        let pages = segment.start / page * page..segment.end.next_multiple_of(page);
        let (start, mut byte) = (segment.start as u64, [0]);
        // A changed page (a breakpoint, a hook, a text relocation) must not fall back to what the file holds.
        if is_unchanged(pages.start, 0..pages.len()) && memory.read_exact_at(&mut byte, start).is_ok() {
            // An error means that a hardened kernel refuses.
            if memory.write_all_at(&byte, start).is_ok() {
                drop_entries(&pages);
            }
        }
    }
}

fn drop_entries(pages: &Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: the pages belong to one loaded segment that nobody writes to, and hold what the file holds (the caller has
    // looked; its own byte is the same as before): read again from the file, they read the same.
    let dropped = unsafe { rustix::mm::madvise(start, pages.len(), Advice::LinuxDontNeed) };
    debug_assert!(dropped.is_ok(), "madvise of a loaded segment");
}
