//! Makes the children of the zygote inherit the page-table entries of code.
//!
//! A forked process inherits the page-table entries of memory that was written to, but not of files that it only reads: each
//! window of code that it runs faults again, about thirty times from start to end. The kernel copies the entries of a private
//! file mapping if one page of it was copied for writing (`vma_needs_copy` in `mm/memory.c`). So the zygote overwrites one byte
//! of the program's code and one of libc's with the same value, through `/proc/self/mem`, which permits it. Copying entries
//! takes time, too: so the zygote first drops the entries of its own start, then rehearses a child's path to map what a child
//! needs. (Measured: a child runs 40 us less for 10 us more of `clone3`. More segments than these two cost more in `clone3`
//! than they save.)

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rustix::mm::Advice;

use super::pagemap::is_unchanged;

/// Prepares the code segments as above; the caller rehearses afterwards. If the system refuses, only speed is lost.
pub(crate) fn keep_mapped_in_children() {
    let Ok(memory) = File::options().read(true).write(true).open("/proc/self/mem") else { return };
    let page = rustix::param::page_size();
    for segment in super::image::common_code() {
        let pages = segment.start / page * page..segment.end.next_multiple_of(page);
        let (start, mut byte) = (segment.start as u64, [0]);
        // A changed page (a breakpoint, a hook, a text relocation) must not revert to the file's contents.
        if is_unchanged(pages.start, 0..pages.len()) && memory.read_exact_at(&mut byte, start).is_ok() {
            // Fails if a hardened kernel refuses.
            if memory.write_all_at(&byte, start).is_ok() {
                drop_entries(&pages);
            }
        }
    }
}

/// Drops the page-table entries of `pages`, so that children inherit the ones that the rehearsal makes. The pages stay in the
/// page cache.
fn drop_entries(pages: &Range<usize>) {
    let start = std::ptr::with_exposed_provenance_mut(pages.start);
    // SAFETY: the pages belong to one loaded segment to which no code writes, and equal the file's (the caller has checked; the
    // byte that it wrote has the old value): read again from the file, they have the same contents.
    let dropped = unsafe { rustix::mm::madvise(start, pages.len(), Advice::LinuxDontNeed) };
    debug_assert!(dropped.is_ok(), "madvise of a loaded segment");
}
