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

const PAGE_LEN_BYTES: u64 = 4096;
/// Of an entry of `/proc/self/pagemap`: a page of a file, not changed since it was read.
const IS_FILE_PAGE: u64 = 1 << 61;
const IS_SWAPPED: u64 = 1 << 62;
const IS_PRESENT: u64 = 1 << 63;

/// Does the above; to be followed by the rehearsal. Where the system does not
/// allow it, nothing changes but speed.
pub(crate) fn keep_mapped_in_children() {
    let open = |path, write| File::options().read(true).write(write).open(path);
    let (Ok(memory), Ok(pagemap)) = (open("/proc/self/mem", true), open("/proc/self/pagemap", false)) else { return };
    for segment in super::image::common_code() {
        let (start, end) = (segment.start as u64, segment.end as u64);
        let pages = start / PAGE_LEN_BYTES..end.div_ceil(PAGE_LEN_BYTES);
        let mut byte = [0];
        // A changed page (a breakpoint, a hook, a text relocation) must not fall back to what the file holds.
        if is_unchanged(&pagemap, &pages) && memory.read_exact_at(&mut byte, start).is_ok() {
            // An error means that a hardened kernel refuses.
            if memory.write_all_at(&byte, start).is_ok() {
                drop_entries(&pages);
            }
        }
    }
}

fn is_unchanged(pagemap: &File, pages: &Range<u64>) -> bool {
    let Ok(len) = usize::try_from(pages.end - pages.start) else { return false };
    let mut entries = vec![0; len * 8];
    let unchanged = |entry: u64| entry & IS_SWAPPED == 0 && (entry & IS_PRESENT == 0 || entry & IS_FILE_PAGE != 0);
    pagemap.read_exact_at(&mut entries, pages.start * 8).is_ok()
        && entries.chunks_exact(8).all(|entry| entry.try_into().is_ok_and(|entry| unchanged(u64::from_ne_bytes(entry))))
}

fn drop_entries(pages: &Range<u64>) {
    let address = |page| usize::try_from(page * PAGE_LEN_BYTES).unwrap_or_default();
    let start = std::ptr::with_exposed_provenance_mut(address(pages.start));
    // SAFETY: the pages belong to one loaded segment that nobody writes to, and hold what the file holds (the caller has
    // looked; its own byte is the same as before): read again from the file, they read the same.
    let dropped =
        unsafe { rustix::mm::madvise(start, address(pages.end) - address(pages.start), Advice::LinuxDontNeed) };
    debug_assert!(dropped.is_ok(), "madvise of a loaded segment");
}
