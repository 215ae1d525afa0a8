//! Users and groups, which decide the permissions of a process (`credentials(7)`).

use std::io;

/// The credentials of this process. A clone of the zygote has the zygote's, even if this process has changed its own since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// Real, effective and saved user ids; `groups` likewise.
    users: [u32; 3],
    groups: [u32; 3],
    further_groups: Vec<u32>,
}

impl Credentials {
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
