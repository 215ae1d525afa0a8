//! The state of this process's pages (`proc_pid_pagemap(5)`): whether a private mapping of a file still shows the file's bytes.
//!
//! [`prefault`](super::prefault) asks it before it drops pages of code, `shm/loan.rs` before it lends a borrowed file on.

use std::io;
use std::ops::Range;

use rustix::fs::{Mode, OFlags};

/// Returns whether this process has not written to the pages of `bytes` in a private mapping at address `base`: a page that was
/// written to is no longer a page of the file. Returns false if the kernel does not report it.
///
/// `bytes` are offsets from `base`, and must not be empty. Whole pages are compared, so a write beside `bytes` in the same page
/// gives false. A page without an entry, never accessed or dropped, counts as unchanged. The caller rules out writes during the
/// call.
pub(crate) fn is_unchanged(base: usize, bytes: Range<usize>) -> bool {
    /// Bits of an entry: the page is in memory (bit 63) or in swap (bit 62); it is a page of a file (bit 61).
    const THERE: u64 = 3 << 62;
    const OF_FILE: u64 = 1 << 61;
    const ENTRY: usize = size_of::<u64>();
    let page = rustix::param::page_size();
    let (first, last) = ((base + bytes.start) / page, (base + bytes.end - 1) / page);
    let mut entries = vec![0; (last - first + 1) * ENTRY];
    let mut read = || -> io::Result<usize> {
        let pages = rustix::fs::open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::io::retry_on_intr(|| rustix::io::pread(&pages, &mut entries, (first * ENTRY) as u64))?)
    };
    let is_whole = read().is_ok_and(|read| read == entries.len());
    let (entries, _) = entries.as_chunks::<ENTRY>();
    let mut entries = entries.iter().map(|entry| u64::from_ne_bytes(*entry));
    is_whole && entries.all(|entry| entry & THERE == 0 || entry & OF_FILE != 0)
}
