//! Descriptors: standard streams, closing what was inherited, memory files.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use super::memory;

/// Whether the other end of a socket was closed with something unread in it: an error of this end (`unix(7)`), reported once.
pub(crate) fn has_peer_left_unread(socket: BorrowedFd<'_>) -> bool {
    matches!(rustix::net::sockopt::socket_error(socket), Ok(Err(rustix::io::Errno::CONNRESET)))
}

/// `memfd_create(2)`: an unnamed, empty file in memory, close-on-exec, that can be sealed and never executed: hardened systems
/// allow no others (`vm.memfd_noexec`). The name shows up in `/proc/PID/fd` only.
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => Ok(rustix::fs::memfd_create(name, flags)?), // Linux before 6.3
        created => Ok(created?),
    }
}

/// A memory file that holds `bytes`.
pub(crate) fn memfd_with(bytes: &[u8]) -> io::Result<OwnedFd> {
    memory::look_for(bytes.len() as u64)?;
    memory::check_limit(bytes.len() as u64)?;
    let mut file = File::from(memfd(c"polyproc-frame")?);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// The first `len_bytes` bytes of a memory file, wherever its shared offset stands. A peer may have made it up: a read of another
/// file may wait for ever, and a file that is longer than its memory costs the reader more than the peer.
pub(crate) fn read_memfd(memfd: OwnedFd, len_bytes: usize) -> io::Result<Vec<u8>> {
    memory::inspect_sealed(memfd.as_fd(), SealFlags::empty())?;
    if memory::reserved_bytes(memfd.as_fd())? < len_bytes as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let file = File::from(memfd);
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len_bytes).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len_bytes, 0);
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// How many descriptors this process may have (`RLIMIT_NOFILE`).
pub(crate) fn table_len() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The standard stream `number` (0, 1 or 2), or `None` when this process closed it.
pub(crate) fn standard_stream(number: RawFd) -> Option<BorrowedFd<'static>> {
    assert!((0..=2).contains(&number), "there are three standard streams");
    // SAFETY: the standard streams belong to the whole process; whoever closes one gets errors, as with std's own handles.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_getfd(fd).is_ok().then_some(fd)
}

/// Makes `fd` the standard stream `number` (0, 1 or 2).
pub(crate) fn set_standard_stream(number: RawFd, fd: &OwnedFd) -> io::Result<()> {
    match number {
        0 => rustix::stdio::dup2_stdin(fd)?,
        1 => rustix::stdio::dup2_stdout(fd)?,
        _ => rustix::stdio::dup2_stderr(fd)?,
    }
    Ok(())
}

/// The same descriptor under a number that is no standard stream's: where those are closed, others take their numbers.
pub(crate) fn above_standard(fd: OwnedFd) -> io::Result<OwnedFd> {
    if fd.as_raw_fd() > 2 { Ok(fd) } else { Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?) }
}

/// `/dev/null`, open for reading and writing.
pub(crate) fn dev_null() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open("/dev/null")?.into())
}

/// Takes the descriptor `number` that the parent put there for us with `exec`, close-on-exec from now on.
pub(crate) fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is only looked at here.
    let probe = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(probe, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open (the call above succeeded), and the bootstrap, its only caller, takes each number once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from `first` on: what the parent had open without close-on-exec, where that could not be left behind.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: runs in a fresh program before `main`, where nobody owns a descriptor above those handed over.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if closed == 0 {
        return Ok(());
    }
    // Refused, as by older profiles of containers.
    let open: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd >= first)
        .collect();
    for fd in open {
        // SAFETY: as above. The folder's own descriptor is closed by now, and this one's error with it.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

/// Closes the copy of a descriptor that this copied process must not keep, though its owner lives on in memory.
pub(crate) fn close_copy(fd: impl AsFd) {
    // SAFETY: the owner is in the part of the copied memory that the child never returns to, so it is closed once.
    unsafe { libc::close(fd.as_fd().as_raw_fd()) };
}
