//! Users and groups, which decide the permissions of a process (`credentials(7)`).
//!
//! `process/forkserver.rs` compares the credentials at a start with the ones at the start of the zygote, and replaces the
//! zygote if they differ: a program that gave up its privileges must not start processes that have them.

use std::io;

/// The credentials of this process. A clone of the zygote has the zygote's, even if this process has changed its own since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Real, effective and saved user ids.
    users: [u32; 3],
    /// Real, effective and saved group ids.
    groups: [u32; 3],
    /// The supplementary groups, in the order of the kernel.
    further_groups: Vec<u32>,
}

impl Credentials {
    /// Returns the credentials of the calling thread, which libc keeps equal in all threads.
    ///
    /// # Errors
    /// An error of `getgroups(2)`, if the number of groups changes in between.
    pub(crate) fn own() -> io::Result<Self> {
        let (mut users, mut groups) = ([0; 3], [0; 3]);
        let [real, effective, saved] = &mut users;
        // SAFETY: the call writes three words that this function owns; `EFAULT` is its only error.
        unsafe { libc::getresuid(real, effective, saved) };
        let [real, effective, saved] = &mut groups;
        // SAFETY: as above.
        unsafe { libc::getresgid(real, effective, saved) };
        let further_groups = rustix::process::getgroups()?.into_iter().map(rustix::process::Gid::as_raw).collect();
        Ok(Self { users, groups, further_groups })
    }
}
