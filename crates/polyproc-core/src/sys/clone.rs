//! New processes by copy: `clone3(2)` or `clone(2)` for the zygote and `fork(2)` for the user's own process.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Once;

use super::cell::PidCell;
use crate::prim::{AtomicU64, Ordering};

/// Which side of a copy this is.
#[derive(Debug)]
pub(crate) enum Copied<T> {
    Child,
    Parent(T),
}

/// What raw `clone3` and `clone` need to know of this thread so that the child's C library stays whole.
///
/// libc's `fork` does three things that the bare system call does not: it writes the child's thread id where libc keeps
/// it, it registers the robust-mutex list anew, and it runs `pthread_atfork` handlers. The first is done by
/// `CLONE_CHILD_SETTID` at libc's own address, the second by [`SiblingMaker::repair_child`]; the third guards locks held by
/// *other* threads at the moment of the fork, and the zygote has none (checked once it serves).
#[derive(Debug)]
pub(crate) struct SiblingMaker {
    tid_address: usize,
    robust_head: usize,
    robust_len: usize,
    /// The default profiles of container runtimes refuse it, as they cannot look into its arguments.
    is_clone3_refused: bool,
}

impl SiblingMaker {
    /// # Errors
    /// `ENOSYS` or `EPERM` where the kernel or a sandbox does not tell libc's addresses; `ENOTSUP` on another libc than
    /// glibc, whose registered address is not its cached thread id (musl registers its thread-list lock).
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

    /// Makes a *sibling*, a child of this process's own parent (`CLONE_PARENT`). The kernel stores its id in `cell` before it
    /// runs. Returns its id, and its process descriptor where the system gives one with it.
    ///
    /// The caller has one thread only, and the child gets a copy of this thread as it stands.
    pub(crate) fn make(&mut self, cell: &PidCell) -> io::Result<Copied<(u32, Option<OwnedFd>)>> {
        COPIES.fetch_add(1, Ordering::SeqCst); // of one thread, the zygote
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

    /// `clone(2)`, whose word for the parent is either the new process's id or its descriptor: the id, which is exact whoever
    /// dies.
    fn clone(&self, cell: &PidCell) -> io::Result<Copied<(u32, Option<OwnedFd>)>> {
        let flags =
            libc::CLONE_PARENT | libc::CLONE_PARENT_SETTID | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID;
        let [no_stack, no_tls] = [0_usize; 2];
        let (parent_tid, child_tid) = (cell.address(), self.tid_address);
        let last = if cfg!(target_arch = "x86_64") { [child_tid, no_tls] } else { [no_tls, child_tid] };
        // SAFETY: without CLONE_VM the child runs on a copy of this stack; both pointers are to words that outlive the call.
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

    fn clone3(&self, cell: &PidCell) -> io::Result<Copied<(u32, Option<OwnedFd>)>> {
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
        // exit_signal stays 0: with CLONE_PARENT the kernel takes the caller's own, and refuses another.
        // SAFETY: without CLONE_VM the child runs on a copy of this stack; the pointers are live words of ours.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) };
        match pid {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                self.repair_child();
                Ok(Copied::Child)
            }
            pid => {
                let pid = u32::try_from(pid).map_err(io::Error::other)?;
                // SAFETY: the kernel opened this descriptor for us.
                Ok(Copied::Parent((pid, Some(unsafe { OwnedFd::from_raw_fd(pidfd) }))))
            }
        }
    }

    /// Without it a robust mutex that the child leaves behind locked is never marked as orphaned (measured).
    fn repair_child(&self) {
        // SAFETY: head and length are the values libc registered for this very thread, of which we run the copy.
        unsafe { libc::syscall(libc::SYS_set_robust_list, self.robust_head, self.robust_len) };
    }
}

/// libc's `fork`, with all its handlers. Returns the child's id.
///
/// The caller has made sure that the child can live with the copy: no other thread of the user's, or the user's promise.
pub(crate) fn fork() -> io::Result<Copied<u32>> {
    // SAFETY: fork has no memory-safety condition of its own; what a child of a threaded process may do is the promise
    // that `ForkWithThreads` asks of the user.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Copied::Child),
        pid => Ok(Copied::Parent(pid.cast_unsigned())),
    }
}

static COPIES: AtomicU64 = AtomicU64::new(0);

/// How often this process was copied, or was about to be: by `fork(3)`, whoever called it, since this was first asked; and by
/// [`SiblingMaker`].
pub(crate) fn copies() -> u64 {
    extern "C" fn count() {
        COPIES.fetch_add(1, Ordering::SeqCst);
    }
    static IS_COUNTED: Once = Once::new();
    // Before, for what is there then; and after, for what was made in between.
    // SAFETY: the handlers are functions of this program that change an atomic, and do nothing else.
    IS_COUNTED.call_once(|| _ = unsafe { libc::pthread_atfork(Some(count), Some(count), None) });
    COPIES.load(Ordering::SeqCst)
}

/// Ends this process without running `atexit` handlers: they belong to the process it was copied from.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

/// Threads of this process, the caller included.
fn thread_count() -> io::Result<usize> {
    Ok(std::fs::read_dir("/proc/self/task")?.count())
}

/// [`thread_count`], once it is down to `expected` or stays above it: the kernel lists a thread for a moment after it was
/// joined.
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

/// Names this thread for `ps` and `top`, which show 15 bytes of it; a name with a NUL byte is left out.
pub(crate) fn name_thread(name: &str) {
    if let Ok(name) = std::ffi::CString::new(name) {
        // Fails for no valid string, and a missing name is no reason to stop.
        let _ = rustix::thread::set_name(&name);
    }
}
