//! Which process wrote something in shared memory, and whether it still lives.

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use crate::deadline::Deadline;
use crate::prim::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};

/// What this process knows of itself, in a page that the kernel fills with zeros in every copy of the process, however that was
/// made: `fork(3)`, `_Fork(3)`, or the bare system call (`MADV_WIPEONFORK`, Linux 4.14).
#[derive(Debug, Default)]
struct Cached {
    id: AtomicU32,
    identity: AtomicU64,
}

static KNOWN: AtomicPtr<Cached> = AtomicPtr::new(std::ptr::null_mut());

fn known() -> Option<&'static Cached> {
    // Acquire pairs with the Release in `learn`.
    super::leaked(KNOWN.load(Ordering::Acquire))
}

/// The id of this process, without a system call.
#[inline]
pub(crate) fn process_id() -> u32 {
    match known().map_or(0, |known| known.id.load(Ordering::Relaxed)) {
        0 => learn(),
        id => id,
    }
}

#[cold]
fn learn() -> u32 {
    static IS_REFUSED: AtomicBool = AtomicBool::new(false);
    let id = std::process::id();
    let page = || super::memory::wiped_on_fork::<Cached>().inspect_err(|_| IS_REFUSED.store(true, Ordering::Relaxed));
    if known().is_none()
        && !IS_REFUSED.load(Ordering::Relaxed)
        && let Ok(page) = page()
    {
        // Another thread's page is as good.
        let _ = KNOWN.compare_exchange(std::ptr::null_mut(), page, Ordering::AcqRel, Ordering::Relaxed);
    }
    // Where there is no memory for it, nothing is remembered.
    if let Some(known) = known() {
        known.id.store(id, Ordering::Relaxed);
    }
    id
}

/// A process: its id, and the low half of its start time (clock ticks since boot), since ids are used again.
///
/// All bits zero is nobody. Ids are those of the reader's own PID namespace: processes that share memory share that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Identity(u64);

impl Identity {
    pub(crate) const NOBODY: Self = Self(0);
    /// A process that has ended in order, and whose death is not to be noticed.
    pub(crate) const LEFT: Self = Self(u64::MAX);

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// This process.
    pub(crate) fn own() -> Self {
        let pid = process_id();
        let own = Self(known().map_or(0, |known| known.identity.load(Ordering::Relaxed)));
        if own.pid() == pid {
            return own;
        }
        let own = Self::new(pid, start_time(pid).unwrap_or(0)); // 0 where it cannot be learnt
        if let Some(known) = known() {
            known.identity.store(own.0, Ordering::Relaxed);
        }
        own
    }

    /// Another process, by its id.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn of(pid: u32) -> io::Result<Self> {
        Ok(Self::new(pid, start_time(pid)?))
    }

    fn new(pid: u32, start_time: u32) -> Self {
        Self(u64::from(start_time) << 32 | u64::from(pid))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the id is the low half")]
    fn pid(self) -> u32 {
        self.0 as u32
    }

    fn start(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// A descriptor that is readable when it has ended; `None` where there is none, or it has.
    pub(crate) fn pidfd(self) -> Option<OwnedFd> {
        let pid = Pid::from_raw(i32::try_from(self.pid()).ok()?)?;
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The number may be another's by now.
        if self.is_dead() { None } else { Some(pidfd) }
    }

    /// Whether it has ended. A zombie has. What cannot be known counts as living.
    pub(crate) fn is_dead(self) -> bool {
        if self == Self::own() || self == Self::LEFT {
            return false;
        }
        let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) else { return true };
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            // The last two: the number is that of a thread or of a group by now, and no process's.
            Err(error) => matches!(error, Errno::SRCH | Errno::INVAL | Errno::NOENT),
            Ok(pidfd) => {
                let ended = super::watch::is_readable(std::os::fd::AsFd::as_fd(&pidfd), Deadline::PASSED);
                let is_another = |start| self.start() != 0 && start != self.start(); // 0 where it could not be learnt
                ended.unwrap_or(false) || start_time(self.pid()).is_ok_and(is_another)
            }
        }
    }
}

/// Field 22 of `/proc/PID/stat`, its low half.
#[expect(clippy::cast_possible_truncation, reason = "the low half tells processes of the same id apart")]
fn start_time(pid: u32) -> io::Result<u32> {
    if !is_proc_of_this_namespace() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks = after_name.split_whitespace().nth(19).and_then(|field| field.parse::<u64>().ok());
    Ok(ticks.ok_or(io::ErrorKind::InvalidData)? as u32)
}

/// Whether `/proc` tells of the PID namespace that this process is in: where it was made anew without mounting that, its ids are
/// those of other processes.
fn is_proc_of_this_namespace() -> bool {
    std::fs::read_link("/proc/self").is_ok_and(|link| link.to_str() == Some(&*std::process::id().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_living_and_the_dead_are_told_apart() {
        assert!(!Identity::own().is_dead());
        let parent = std::os::unix::process::parent_id();
        let living = Identity::new(parent, start_time(parent).expect("/proc"));
        assert!(!living.is_dead());
        assert!(Identity::new(parent, start_time(parent).expect("/proc") ^ 1).is_dead(), "the id is used again");
        let mut child = std::process::Command::new("true").spawn().expect("true");
        let identity = Identity::new(child.id(), start_time(child.id()).expect("not reaped"));
        child.wait().expect("it ends");
        assert!(identity.is_dead());
        assert!(Identity::NOBODY.is_dead());
    }
    #[test]
    fn proc_of_another_namespace_says_nothing() {
        let test = std::env::current_exe().expect("this test");
        let name = "sys::identity::tests::in_a_namespace_whose_proc_is_another_ones";
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
        assert_eq!(Identity::own().start(), 0, "of another process 1");
        assert!(!Identity::own().is_dead());
        let another = Identity::new(1, 12_345);
        assert!(!another.is_dead(), "what cannot be known counts as living");
    }
}
