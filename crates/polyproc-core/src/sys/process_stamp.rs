//! [`ProcessStamp`]: identifies a process in shared memory, and reports whether it is still alive. Also the id of this process
//! without a system call ([`process_id`]).
//!
//! A process id alone is not enough, as the kernel reuses it: a lock of a dead owner would look held by a new process of that
//! id. So a stamp has half of the start time as well, in clock ticks since boot (10 ms with the usual `CLK_TCK`). Two processes
//! with one id have equal stamps only if they started in the same tick, or a multiple of 2^32 ticks apart.
//!
//! Users: owners of locks (`sync`), blocks (`shm::arena`), rows of the budget (`shm::budget`), and messages in work (`queue`);
//! the supervisor, which watches other processes; everything that must notice a copy of this process ([`process_id`]).
//!
//! Reading a stamp is one atomic load. [`ProcessStamp::is_dead`] takes several system calls, so it is called only where a
//! thread would otherwise wait, and to recover objects after a death.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::proc_stat;
use crate::prim::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// The id and identity of this process, in a page that the kernel fills with zeros in every copy of the process, whether by
/// `fork(3)`, `_Fork(3)` or a bare system call (`MADV_WIPEONFORK`, Linux 4.14). Any thread may write it; all write the same
/// values.
#[derive(Debug, Default)]
struct Cached {
    /// The id of this process; 0 if it is not known yet.
    id: AtomicU32,
    /// The bits of [`ProcessStamp::own`]; 0 if they are not known yet.
    identity: AtomicU64,
}

/// The page, which is never freed; null until the first [`learn`], and where the kernel has no such pages.
static KNOWN: AtomicPtr<Cached> = AtomicPtr::new(std::ptr::null_mut());

/// Returns the page, if there is one.
fn known() -> Option<&'static Cached> {
    // Acquire pairs with the Release in `learn`.
    super::leaked(KNOWN.load(Ordering::Acquire))
}

/// Returns the id of this process, without a system call once it is cached. A copy of the process gets its own id, as the
/// copied cache reads as zeros.
#[inline]
pub(crate) fn process_id() -> u32 {
    match known().map_or(0, |known| known.id.load(Ordering::Relaxed)) {
        0 => learn(),
        id => id,
    }
}

/// Asks the kernel for the id and caches it. Maps the page at the first call. If that fails, it is not tried again, and each
/// call of [`process_id`] is a system call.
#[cold]
fn learn() -> u32 {
    static IS_REFUSED: AtomicBool = AtomicBool::new(false);
    let id = std::process::id();
    let page = || super::memory::wiped_on_fork::<Cached>().inspect_err(|_| IS_REFUSED.store(true, Ordering::Relaxed));
    if known().is_none()
        && !IS_REFUSED.load(Ordering::Relaxed)
        && let Ok(page) = page()
    {
        // Release pairs with the Acquire in `known`: the page is initialised before it can be found. If another thread
        // stored its page first, that one is used.
        let _ = KNOWN.compare_exchange(std::ptr::null_mut(), page, Ordering::AcqRel, Ordering::Relaxed);
    }
    // Without such a page nothing is cached.
    if let Some(known) = known() {
        known.id.store(id, Ordering::Relaxed);
    }
    id
}

/// A process: its id (low 32 bits), and the low half of its start time (high 32 bits), since the kernel reuses ids.
///
/// Zero names no process. A start time of 0 is unknown: `/proc` is not mounted, or shows another PID namespace; then only the
/// id is compared. The id is valid in the reader's PID namespace: processes that share memory share the namespace. A stamp that
/// was read from shared memory may have any bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ProcessStamp(u64);

impl ProcessStamp {
    /// No process. Counts as dead.
    pub(crate) const NOBODY: Self = Self(0);
    /// Sentinel: the owner has exited normally. Never treated as dead.
    pub(crate) const EXITED_CLEANLY: Self = Self(u64::MAX);

    /// Returns the stamp in a word of shared memory. Any bits are valid.
    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Returns the word that represents this process in shared memory.
    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// Returns the identity of this process. Reads `/proc` at the first call in each process, and in each call where nothing
    /// can be cached.
    pub(crate) fn own() -> Self {
        let pid = process_id();
        let own = Self(known().map_or(0, |known| known.identity.load(Ordering::Relaxed)));
        if own.pid() == pid {
            return own;
        }
        let own = Self::new(pid, start_time(pid).unwrap_or(0)); // 0 if it is unknown
        if let Some(known) = known() {
            known.identity.store(own.0, Ordering::Relaxed);
        }
        own
    }

    /// Returns the identity of the process `pid`.
    ///
    /// # Errors
    /// If there is no such process, or `/proc` does not show it.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self::new(pid, start_time(pid)?))
    }

    /// Combines a process id and the low half of a start time.
    fn new(pid: u32, start_time: u32) -> Self {
        Self(u64::from(start_time) << 32 | u64::from(pid))
    }

    /// Returns the process id, which may be any number if the stamp came from a peer.
    #[expect(clippy::cast_possible_truncation, reason = "the id is the low half")]
    fn pid(self) -> u32 {
        self.0 as u32
    }

    /// Returns the low half of the start time; 0 if it is unknown.
    fn start(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Returns a pidfd of the process, which is readable when it has ended; `None` if it has ended or no pidfd can be opened.
    /// The stamp is compared after the pidfd was opened: from then on the id cannot pass to another process unnoticed.
    pub(crate) fn pidfd(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).ok()?)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Another process may have the id by now.
        if self.is_dead() { None } else { Some(pidfd) }
    }

    /// Returns whether the process has ended. A zombie has ended. A process whose state is unknown counts as alive, so that
    /// nothing is taken from a living owner: a waiter then waits longer.
    pub(crate) fn is_dead(self) -> bool {
        if self == Self::own() || self == Self::EXITED_CLEANLY {
            return false;
        }
        let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) else { return true };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // INVAL, NOENT: the id is not a process's any more, but a thread's or a group's.
            Err(error) => matches!(error, Errno::SRCH | Errno::INVAL | Errno::NOENT),
            Ok(pidfd) => {
                let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
                let ended = rustix::event::poll(&mut polled, Some(&Timespec::default())).map(|ready| ready > 0);
                let is_another = |start| self.start() != 0 && start != self.start(); // 0 if it was unknown
                ended.unwrap_or(false) || start_time(self.pid()).is_ok_and(is_another)
            }
        }
    }
}

/// Returns the low half of the start time of a process, field 22 of `/proc/PID/stat`.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] if `/proc` is not mounted or shows another namespace, [`io::ErrorKind::NotFound`] if there is
/// no such process.
#[expect(clippy::cast_possible_truncation, reason = "the low half tells processes of the same id apart")]
fn start_time(pid: u32) -> io::Result<u32> {
    if !is_proc_of_this_namespace() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [ticks] = proc_stat::fields(pid, 22)?;
    Ok(ticks as u32)
}

/// Returns whether `/proc` shows this process's PID namespace. If the namespace was created without mounting its own `/proc`,
/// the ids there belong to other processes.
fn is_proc_of_this_namespace() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|link| link.to_str() == Some(&*std::process::id().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_the_dead_are_told_apart() {
        assert!(!ProcessStamp::own().is_dead());
        let parent = std::os::unix::process::parent_id();
        let living = ProcessStamp::new(parent, start_time(parent).expect("/proc"));
        assert!(!living.is_dead());
        assert!(ProcessStamp::new(parent, start_time(parent).expect("/proc") ^ 1).is_dead(), "the id is used again");
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let identity = ProcessStamp::new(child.id(), start_time(child.id()).expect("not reaped"));
        child.wait().expect("it ends");
        assert!(identity.is_dead());
        assert!(ProcessStamp::NOBODY.is_dead());
    }
    #[test]
    fn proc_of_another_namespace_says_nothing() {
        let test = std::env::current_exe().expect("this test");
        let name = "sys::process_stamp::tests::in_a_namespace_whose_proc_is_another_ones";
        let mut unshare = std::process::Command::new("unshare");
        let output = unshare.args(["--fork", "--pid"]).arg(test).args(["--exact", name, "--ignored"]).output();
        let Ok(output) = output else { return eprintln!("not tried: there is no unshare(1)") };
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if err.starts_with("unshare:") {
            return eprintln!("not tried: only root may");
        }
        assert!(out.contains("1 passed"), "{out}{err}");
    }

    #[test]
    #[ignore = "run by another test, in a namespace of its own"]
    fn in_a_namespace_whose_proc_is_another_ones() {
        assert_eq!(std::process::id(), 1);
        assert_eq!(ProcessStamp::own().start(), 0, "of another process 1");
        assert!(!ProcessStamp::own().is_dead());
        let another = ProcessStamp::new(1, 12_345);
        assert!(!another.is_dead(), "what cannot be known counts as living");
    }
}
