//! Copies of a process: by `clone3(2)` or `clone(2)` for the zygote ([`SiblingMaker`]), by `fork(2)` for the user's own process
//! ([`fork`]).
//!
//! Also the facts that a caller needs around a copy: how many threads there are ([`settled_thread_count`]), and whether the
//! process was copied since some moment ([`copies`]). `docs/design/start.md` has the steps of a start, the state after a death
//! at each, and why a bare clone is sound; SAFETY.md, 2.
//!
//! These functions only copy. The caller decides whether the copy is allowed (`process/zygote.rs`, `process/start.rs`), and
//! sets up the child. After a bare clone, the child makes only system calls before it returns to the caller.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Once;

use super::pid_slot::PidSlot;
use crate::prim::{AtomicU64, Ordering};

/// Whether this process is the copy or the original. A copy returns twice: once in each process.
#[derive(Debug)]
pub(crate) enum Copied<T> {
    /// This is the copy. Memory is that of the original at the copy; only the calling thread exists.
    Child,
    /// This is the original. The value identifies the copy.
    Parent(T),
}

/// The addresses of this thread by which a child of a bare `clone3` or `clone` keeps its C library consistent. The zygote makes
/// one after its preload function, and keeps it until it ends.
///
/// libc's `fork` does three things that the bare system call does not: it writes the child's thread id where libc caches it, it
/// registers the robust-mutex list again, and it runs `pthread_atfork` handlers. `CLONE_CHILD_SETTID` at libc's own address
/// does the first, [`SiblingMaker::repair_child`] the second. The handlers guard locks that *other* threads hold at the moment
/// of the fork; the zygote has no other threads (checked before it serves requests).
#[derive(Debug)]
pub(crate) struct SiblingMaker {
    /// The address at which libc caches the id of this thread. The kernel writes the child's id there, in the child.
    tid_address: usize,
    /// The address of the thread's robust list head, which libc registered.
    robust_head: usize,
    /// The length of that head in bytes, as `set_robust_list(2)` requires it.
    robust_len: usize,
    /// True once `clone3` was refused, as the default profiles of container runtimes do: seccomp cannot inspect its arguments.
    is_clone3_refused: bool,
}

impl SiblingMaker {
    /// Reads the addresses of the calling thread.
    ///
    /// # Errors
    /// `ENOSYS` or `EPERM` where the kernel or a sandbox does not report libc's addresses; `ENOTSUP` on a libc other than
    /// glibc, where the registered address is not that of the cached thread id (musl registers its thread-list lock).
    pub(crate) fn new() -> io::Result<Self> {
        if !cfg!(target_env = "gnu") {
            return Err(rustix::io::Errno::NOTSUP.into());
        }
        let tid_address = rustix::thread::get_clear_child_tid_address()?.ok_or(rustix::io::Errno::NOSYS)?;
        let (mut robust_head, mut robust_len) = (0usize, 0usize);
        // SAFETY: the call fills two words of the caller.
        let got = unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut robust_head, &raw mut robust_len) };
        if got != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { tid_address: tid_address.as_ptr() as usize, robust_head, robust_len, is_clone3_refused: false })
    }

    /// Creates a *sibling*, a child of this process's own parent (`CLONE_PARENT`). The kernel stores its id in `cell` before it
    /// runs. Returns its id, and its pidfd if `clone3` created it.
    ///
    /// The caller must be the only thread of the process; the child continues as a copy of it. This process cannot reap the
    /// child: its parent does. A `SIGKILL` during the system call takes effect after it, so the id in `cell` is right whichever
    /// process dies.
    ///
    /// # Errors
    /// An error of `clone(2)`: `EAGAIN` or `ENOMEM` if the system has no room for a process, `EPERM` or `ENOSYS` if a sandbox
    /// refuses both calls. Then no process was created.
    pub(crate) fn make(&mut self, cell: &PidSlot) -> io::Result<Copied<(u32, Option<OwnedFd>)>> {
        // Pairs with the load in `copies`.
        COPIES.fetch_add(1, Ordering::SeqCst); // once is enough: the zygote has one thread
        if !self.is_clone3_refused {
            match self.clone3(cell) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
                    self.is_clone3_refused = true;
                }
                made => return made,
            }
        }
        self.clone(cell)
    }

    /// Creates a sibling by `clone(2)`, which writes either the child's id or its pidfd to the parent's word. This asks for the
    /// id, which is exact whichever process dies.
    fn clone(&self, cell: &PidSlot) -> io::Result<Copied<(u32, Option<OwnedFd>)>> {
        let flags =
            libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        let [no_stack, no_tls] = [0_usize; 2];
        let (parent_tid, child_tid) = (cell.address(), self.tid_address);
        let last = if cfg!(target_arch = "x86_64") { [child_tid, no_tls] } else { [no_tls, child_tid] };
        // SAFETY: without CLONE_VM the child runs on a copy of this stack; both pointers lead to words that outlive the call.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, no_stack, parent_tid, last[0], last[1]) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                self.repair_child();
                Ok(Copied::Child)
            }
            pid => Ok(Copied::Parent((u32::try_from(pid).map_err(io::Error::other)?, None))),
        }
    }

    /// Creates a sibling by `clone3(2)`, with a pidfd: the descriptor is one of this process, which sends it to the parent.
    /// `exit_signal` stays 0, as `CLONE_PARENT` requires.
    fn clone3(&self, cell: &PidSlot) -> io::Result<Copied<(u32, Option<OwnedFd>)>> {
        let mut pidfd: i32 = -1;
        // SAFETY: all-zero is a valid `clone_args`.
        let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
        let flags = libc::CLONE_PARENT
            | libc::CLONE_PIDFD
            | libc::CLONE_PARENT_SETTID
            | libc::CLONE_CHILD_SETTID
            | libc::CLONE_CHILD_CLEARTID;
        args.flags = u64::from(flags.cast_unsigned());
        args.pidfd = &raw mut pidfd as u64;
        args.parent_tid = cell.address() as u64;
        args.child_tid = self.tid_address as u64;
        // exit_signal stays 0: with CLONE_PARENT the kernel uses the caller's own and refuses any other.
        // SAFETY: without CLONE_VM the child runs on a copy of this stack; the pointers lead to words that outlive the call.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                self.repair_child();
                Ok(Copied::Child)
            }
            pid => {
                let pid = u32::try_from(pid).map_err(io::Error::other)?;
                // SAFETY: the kernel has just opened this descriptor, which has no other owner.
                Ok(Copied::Parent((pid, Some(unsafe { OwnedFd::from_raw_fd(pidfd) }))))
            }
        }
    }

    /// Registers the robust list in the child. Otherwise the kernel never marks a robust mutex that the child holds when it
    /// dies (measured). Called first in the child.
    fn repair_child(&self) {
        // SAFETY: libc registered this head and length for the thread that the calling thread is a copy of.
        unsafe { libc::syscall(libc::SYS_set_robust_list, self.robust_head, self.robust_len) };
    }
}

/// Forks this process by libc's `fork`, which runs the `pthread_atfork` handlers. Returns the child's id. The child is a child
/// of this process and must be reaped.
///
/// The caller has checked that the copy is sound: the program has no other thread, or the user promises that it is.
///
/// # Errors
/// `EAGAIN` or `ENOMEM`, as `fork(2)`.
pub(crate) fn fork() -> io::Result<Copied<u32>> {
    // SAFETY: `fork` itself has no memory-safety condition. By `ForkWithThreads` the user promises that the child of a threaded
    // process does only what is allowed there.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Copied::Child),
        pid => Ok(Copied::Parent(pid.cast_unsigned())),
    }
}

/// The number of copies of this process that [`copies`] knows of, at least: one copy may count twice.
static COPIES: AtomicU64 = AtomicU64::new(0);

/// Returns a count that increases with each copy of this process: by any caller of `fork(3)` since this function was first
/// called, and by [`SiblingMaker`]. Only equality is meaningful: if two calls return the same count, no copy was made in
/// between.
///
/// `sync/places.rs` reuses the place of an object only if no copy of the process can have the object. A copy by a bare system
/// call of other code is not counted.
pub(crate) fn copies() -> u64 {
    extern "C" fn count() {
        // Pairs with the load in `copies`.
        COPIES.fetch_add(1, Ordering::SeqCst);
    }
    static IS_COUNTED: Once = Once::new();
    // Counts before the copy, for objects that exist then, and after it, for objects created in between.
    // SAFETY: the handlers are functions of this program that only change an atomic.
    IS_COUNTED.call_once(|| _ = unsafe { libc::pthread_atfork(Some(count), Some(count), None) });
    // Pairs with the additions in `count` and `make`. Stays before an allocation that follows it: a copy after the
    // allocation changes the count.
    COPIES.load(Ordering::SeqCst)
}

/// Returns the number of threads of this process, including the caller.
///
/// # Errors
/// If `/proc` is not mounted.
fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// Returns [`thread_count`], after waiting up to 20 ms for it to fall to `expected`: the kernel lists a thread for a moment
/// after it was joined.
pub(crate) fn settled_thread_count(expected: usize) -> io::Result<usize> {
    let mut count = thread_count()?;
    for _ in 0..20 {
        if count <= expected {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
        count = thread_count()?;
    }
    Ok(count)
}

/// Sets this thread's name for `ps` and `top`, which show its first 15 bytes. Ignores a name with a NUL byte.
pub(crate) fn name_thread(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        // Does not fail for a valid string, and a missing name is harmless.
        let _ = rustix::thread::set_name(&name);
    }
}
