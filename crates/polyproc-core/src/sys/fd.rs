//! Descriptors: standard streams, closing of inherited ones, memory files.
//!
//! Every descriptor that the engine opens is close-on-exec, so programs that the user starts do not get it. What a child gets
//! is named explicitly: by [`exec`](super::exec) at 3, 4, ..., or in a message. A forked or cloned child has copies of all
//! descriptors of its original; it closes by number the few that would keep an end of file from another process
//! ([`close_copy`]), and never drops their owners. SAFETY.md, 4.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::fs::MemfdFlags;
use rustix::io::Errno;

/// Returns whether the peer closed its end of a socket before it had read all data: an error of this end (`unix(7)`), which the
/// kernel reports once. So call it once, and receive nothing before: a receive reports the error as well.
pub(crate) fn has_peer_left_unread(socket: BorrowedFd<'_>) -> bool {
    matches!(rustix::net::sockopt::socket_error(socket), Ok(Err(rustix::io::Errno::CONNRESET)))
}

/// Creates an unnamed, empty file in memory, close-on-exec (`memfd_create(2)`). It can be sealed, and never executed: hardened
/// systems allow no other memory files (`vm.memfd_noexec`). `name` appears only in `/proc/PID/fd`. See
/// [`memory`](super::memory).
///
/// # Errors
/// `EMFILE` or `ENFILE` if there is no descriptor left; `ENOMEM`.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create(name, flags)?), // Linux before 6.3
        created => Ok(created?),
    }
}

/// Returns the limit on the number of descriptors of this process (`RLIMIT_NOFILE`); `u64::MAX` for no limit. A pool derives
/// from it how many descriptors its workers may have in its parent.
pub(crate) fn table_len() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns the standard stream `number` (0, 1 or 2), or `None` if it is closed.
///
/// # Panics
/// If `number` is another one.
pub(crate) fn standard_stream(number: RawFd) -> Option<BorrowedFd<'static>> {
    assert!((0..=2).contains(&number), "there are three standard streams");
    // SAFETY: the standard streams belong to the whole process; code that closes one gets errors, as with std's own handles.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(fd).is_ok().then_some(fd)
}

/// Replaces the standard stream `number` (0, 1 or 2) by a copy of `fd`, which is not close-on-exec. Only in a process that is
/// being set up.
///
/// # Errors
/// An error of `dup2(2)`.
pub(crate) fn set_standard_stream(number: RawFd, fd: &OwnedFd) -> io::Result<()> {
    match number {
        0 => rustix::stdio::dup2_stdin(fd)?,
        1 => rustix::stdio::dup2_stdout(fd)?,
        _ => rustix::stdio::dup2_stderr(fd)?,
    }
    Ok(())
}

/// Returns `fd`, or a copy with a number above 2. Where the standard streams are closed, other descriptors get their numbers,
/// and [`set_standard_stream`] would overwrite them.
///
/// # Errors
/// `EMFILE` if there is no descriptor left; `fd` is closed then.
pub(crate) fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?) }
}

/// Opens `/dev/null` for reading and writing.
pub(crate) fn dev_null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Takes ownership of the descriptor `number`, which the parent passed with `exec`, and makes it close-on-exec. Called by
/// `process/boot.rs`, once for each number, before other code runs.
///
/// # Errors
/// `EBADF` if it is not open.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is not closed while it is borrowed here.
    let probe = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(probe, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: the descriptor is open, as the call above succeeded; the bootstrap, the only caller, takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes all descriptors from `first` on: the ones that the parent opened without close-on-exec, where `posix_spawn(3)` cannot
/// close them.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: runs in a new program before `main`, where no code owns a descriptor above the ones that the parent passed.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    // The system call is refused, as by older container profiles.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd >= first)
        .collect();
    for fd in open {
        // SAFETY: as above. The list includes the directory's own descriptor, which is closed already: that call only fails.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Closes a descriptor in a copied process, although the object that owns it is still in memory. The child must never use or
/// drop that object.
pub(crate) fn close_copy(fd: impl AsFd) {
    // SAFETY: the child never returns to the code that drops the owner, so the descriptor is closed once.
    unsafe { libc::close(fd.as_fd().as_raw_fd()) };
}
