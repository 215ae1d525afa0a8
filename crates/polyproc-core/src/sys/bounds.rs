//! Limits and settings that a process passes on to its children: umask, resource limits, processors, niceness.
//!
//! A forked process inherits them from the forking thread. A child of the zygote would inherit the zygote's, and an executed
//! program has the thread-bound ones of the supervisor thread. So a start reads the values of the thread that starts the
//! process ([`Bounds::own`]), keeps the ones that the child does not have already ([`Bounds::since`] the zygote's, or
//! [`Bounds::of_thread`]), and sends that in the order (`process/order.rs`, which defines the encoding). The child applies it
//! last ([`Bounds::apply`]), since a low limit of descriptors could make other steps of the set-up fail.
//!
//! With the fork server only differences travel: usually there are none, and a child makes no system call for them.

use std::io::{self, Read as _};

use rustix::fs::Mode;

/// The number of processors in an affinity mask. No Linux kernel is built for more, so one call gets the whole mask.
const MOST_CPUS: usize = 8192;
/// The number of resources with a limit (`RLIM_NLIMITS`). Their numbers are 0 to 15 on x86-64 and aarch64.
const RESOURCES: u32 = 16;

/// Bounds of a process. Processors and niceness belong to a thread. A field that is empty or `None` is not applied.
///
/// Read by the parent or the zygote, and applied by a child. Values of the parent's order are trusted, and checked by the
/// kernel only.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// `umask(2)`, where `/proc` reports it: the system call can only read it by changing it, for all threads.
    pub(crate) umask: Option<u32>,
    /// `getrlimit(2)`: number of the resource, soft limit, hard limit. `RLIM_INFINITY` is the largest number.
    pub(crate) limits: Vec<[u64; 3]>,
    /// `sched_getaffinity(2)`: a bit for each processor, the first processor in the lowest bit of the first word.
    pub(crate) cpus: Vec<u64>,
    /// `getpriority(2)`: -20, the most favourable, to 19.
    pub(crate) nice: Option<i32>,
}

impl Bounds {
    /// Returns the bounds of the calling thread and its process. A value that the system does not report is left out.
    pub(crate) fn own() -> Self {
        Self {
            umask: own_umask(),
            limits: own_limits(),
            cpus: own_cpus(),
            nice: rustix::process::getpriority_process(None).ok(),
        }
    }

    /// Returns the bounds that belong to a thread. A child inherits the others from this process, whichever thread starts it.
    pub(crate) fn of_thread(self) -> Self {
        Self { umask: None, limits: Vec::new(), ..self }
    }

    /// Returns the bounds that differ from `before`, the bounds that a child has already. A value that is unknown here is left
    /// out.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.umask = self.umask.filter(|_| self.umask != before.umask);
        self.limits.retain(|limit| !before.limits.contains(limit));
        if self.cpus == before.cpus {
            self.cpus.clear();
        }
        self.nice = self.nice.filter(|_| self.nice != before.nice);
        self
    }

    /// Applies the bounds to this process, which must have one thread: affinity and niceness are set for the calling thread.
    /// Limits come before niceness, whose own limit may be among them.
    ///
    /// # Errors
    /// The name of the first bound that could not be applied, and the error of its system call: `EPERM` or `EACCES` where this
    /// process is not permitted to raise it, as after a change of the user. The bounds before it are applied.
    pub(crate) fn apply(&self) -> Result<(), (&'static str, io::Error)> {
        if let Some(umask) = self.umask {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        for [resource, soft, hard] in &self.limits {
            set_limit(*resource, *soft, *hard).map_err(|error| ("a resource limit", error))?;
        }
        if !self.cpus.is_empty() {
            set_cpus(&self.cpus).map_err(|error| ("the CPU affinity", error))?;
        }
        if let Some(nice) = self.nice {
            super::priority::set_nice(nice).map_err(|error| ("the niceness", error))?;
        }
        Ok(())
    }
}

/// Returns the umask; `None` without `/proc`, or with a kernel that does not report it (before Linux 4.7).
fn own_umask() -> Option<u32> {
    // The umask is one of the first lines; reading the whole file takes longer.
    let mut start = [0; 128];
    let len = std::fs::File::open("/proc/self/status").ok()?.read(&mut start).ok()?;
    let text = String::from_utf8_lossy(start.get(..len)?);
    let umask = text.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(umask.trim(), 8).ok()
}

/// Returns the limits of all resources. A resource that the kernel does not know is left out.
fn own_limits() -> Vec<[u64; 3]> {
    let limit = |resource: u32| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call fills the structure.
        let got = unsafe { libc::getrlimit(resource as _, &raw mut limit) } == 0;
        got.then_some([u64::from(resource), limit.rlim_cur, limit.rlim_max])
    };
    (0..RESOURCES).filter_map(limit).collect()
}

/// Sets soft and hard limit of one resource.
///
/// # Errors
/// `EPERM` if the hard limit would rise and this process may not raise it; `EINVAL` for an unknown resource.
fn set_limit(resource: u64, soft: u64, hard: u64) -> io::Result<()> {
    let resource = u32::try_from(resource).map_err(io::Error::other)?;
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the call reads the structure.
    let set = unsafe { libc::setrlimit(resource as _, &raw const limit) } == 0;
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the affinity mask of this thread, in the length that the kernel uses; empty if the call fails. The system call,
/// unlike libc's function, returns that length.
fn own_cpus() -> Vec<u64> {
    let mut cpus = vec![0_u64; MOST_CPUS / 64];
    // SAFETY: the call writes at most `size_of_val(&*cpus)` bytes, which is the length of the buffer.
    let len = unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&*cpus), cpus.as_mut_ptr()) };
    cpus.truncate(usize::try_from(len).unwrap_or(0).div_ceil(8));
    cpus
}

fn set_cpus(cpus: &[u64]) -> io::Result<()> {
    // SAFETY: the call reads `size_of_val(cpus)` bytes, which is the length of the slice.
    let set = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(cpus), cpus.as_ptr()) } == 0;
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}
