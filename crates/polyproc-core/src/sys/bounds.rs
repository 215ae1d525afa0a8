//! Limits and settings that a process passes on to its children: umask, resource limits, processors, niceness.

use std::io::{self, Read as _};

use rustix::fs::Mode;

/// The number of processors in an affinity mask. No Linux kernel is built for more.
const MOST_CPUS: usize = 8192;
/// The number of resources with a limit (`RLIM_NLIMITS`).
const RESOURCES: u32 = 16;

/// Bounds of a process. Processors and niceness belong to a thread. A field that is empty or `None` is not applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// `umask(2)`, where `/proc` reports it.
    pub(crate) umask: Option<u32>,
    /// `getrlimit(2)`: number of the resource, soft limit, hard limit.
    pub(crate) limits: Vec<[u64; 3]>,
    /// `sched_getaffinity(2)`: a bit for each processor.
    pub(crate) cpus: Vec<u64>,
    /// `getpriority(2)`.
    pub(crate) nice: Option<i32>,
}

impl Bounds {
    /// Returns the bounds of the calling thread and its process.
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

    /// Returns the bounds that differ from `before`.
    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.umask = self.umask.filter(|_| self.umask != before.umask);
        self.limits.retain(|limit| !before.limits.contains(limit));
        if self.cpus == before.cpus {
            self.cpus.clear();
        }
        self.nice = self.nice.filter(|_| self.nice != before.nice);
        self
    }

    /// Applies the bounds to this process, which must have one thread.
    ///
    /// # Errors
    /// The name of the first bound that could not be applied, and the error of its system call.
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

fn own_umask() -> Option<u32> {
    // The umask is one of the first lines; reading the whole file takes longer.
    let mut start = [0; 128];
    let len = std::fs::File::open("/proc/self/status").ok()?.read(&mut start).ok()?;
    let text = String::from_utf8_lossy(start.get(..len)?);
    let umask = text.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(umask.trim(), 8).ok()
}

fn own_limits() -> Vec<[u64; 3]> {
    let limit = |resource: u32| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the call fills the structure.
        let got = unsafe { libc::getrlimit(resource as _, &raw mut limit) } == 0;
        got.then_some([u64::from(resource), limit.rlim_cur, limit.rlim_max])
    };
    (0..RESOURCES).filter_map(limit).collect()
}

fn set_limit(resource: u64, soft: u64, hard: u64) -> io::Result<()> {
    let resource = u32::try_from(resource).map_err(io::Error::other)?;
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: the call reads the structure.
    let set = unsafe { libc::setrlimit(resource as _, &raw const limit) } == 0;
    if set { Ok(()) } else { Err(io::Error::last_os_error()) }
}

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
