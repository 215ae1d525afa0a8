//! Waiting for any of several descriptors: of processes, connections, queues. Python's `multiprocessing.connection.wait`.
//!
//! A queue's descriptor may miss a notification if the process that was about to send it died. So the wait wakes at growing
//! intervals and refreshes the shared objects of this process ([`registry::refresh_all`]).

use std::io;
use std::os::fd::AsFd;

use crate::deadline::Deadline;
use crate::shm::registry;
use crate::sys::watch;

/// Blocks until one of `fds` is readable. Returns the positions of all readable ones; none when the deadline passed first.
///
/// # Errors
/// [`io::ErrorKind::Interrupted`] when a signal handler ran.
pub fn wait<Fd: AsFd>(fds: &[Fd], deadline: Deadline) -> io::Result<Vec<usize>> {
    let interval = registry::refresh_interval();
    loop {
        let ready = watch::readable(fds, deadline.or_sooner(interval.next()))?;
        if !ready.is_empty() || deadline.has_passed() {
            return Ok(ready);
        }
        interval.lengthen();
        registry::refresh_all();
    }
}
