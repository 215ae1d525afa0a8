//! [`Child`], the parent's handle to a process.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::state::lock;
use super::{ExitStatus, Outcome, Signal, StartMethod, tag};
use crate::conn::{Channel, Message};
use crate::deadline::Deadline;
use crate::prim::{AtomicBool, AtomicU64, Ordering};
use crate::retry::retry_interrupted;
use crate::sys::per_process::PerProcess;
use crate::sys::{fd, pidfd};
use crate::wire::WireError;

/// A process that this one started. Clones are handles to the same process, which continues to run when all are dropped.
#[derive(Debug, Clone)]
pub struct Child {
    shared: Arc<ChildData>,
}

#[derive(Debug)]
struct ChildData {
    key: u64,
    pid: u32,
    method: StartMethod,
    pidfd: OwnedFd,
    channel: Channel,
    /// Unset for the zygote, and for a spare that has no order yet.
    info: OnceLock<ProcessInfo>,
    status: Mutex<Option<ExitStatus>>,
    /// True if it closed its channel before it received its order.
    was_closed: AtomicBool,
}

/// The properties of a process that has its order.
#[derive(Debug)]
pub(super) struct ProcessInfo {
    pub(super) name: String,
    pub(super) daemon: bool,
    /// True if it leads a process group, which ends with it.
    pub(super) leads_group: bool,
    /// The memory files of its standard output and standard error, if these are captured.
    pub(super) captured: [Option<File>; 2],
}

/// How a process ended, and its last messages.
#[derive(Debug)]
pub struct Ending {
    /// The exit status.
    pub status: ExitStatus,
    /// The outcome that it reported; `None` if it ended without a report.
    pub outcome: Option<Outcome>,
    /// True if it reported that its stack overflowed.
    pub stack_overflow: bool,
}

impl Ending {
    pub(crate) fn new(status: ExitStatus) -> Self {
        Self { status, outcome: None, stack_overflow: false }
    }

    /// Records one of the process's last messages.
    pub(crate) fn on_message(&mut self, message: Message) -> Result<(), WireError> {
        match message.tag {
            tag::STACK_OVERFLOW => self.stack_overflow = true,
            _ => self.outcome = Some(Outcome::decode(message.tag, message.payload)?),
        }
        Ok(())
    }
}

impl Child {
    /// Returns a handle to the process `pid`, which was started by `method` and has the other end of `channel`.
    pub(super) fn new(pid: u32, pidfd: OwnedFd, channel: Channel, method: StartMethod) -> Self {
        let key = children().next_key();
        let (info, status) = (OnceLock::new(), Mutex::default());
        let was_closed = AtomicBool::new(false);
        Self { shared: Arc::new(ChildData { key, pid, method, pidfd, channel, info, status, was_closed }) }
    }

    /// Returns a handle to the process `pid`, which other code of the program reaped before its descriptor was opened.
    pub(super) fn ended(pid: u32, channel: Channel, method: StartMethod) -> io::Result<Self> {
        let (readable_for_ever, _) = io::pipe()?;
        let child = Self::new(pid, readable_for_ever.into(), channel, method);
        *lock(&child.shared.status) = Some(ExitStatus::Unknown);
        Ok(child)
    }

    /// Sets the properties, once. From then on the process is visible to the user.
    pub(super) fn assign(&self, info: ProcessInfo) {
        let first = self.shared.info.set(info);
        debug_assert!(first.is_ok(), "a process has one task");
    }

    /// Records that the process closed its channel before it received its order.
    pub(super) fn note_closed(&self) {
        self.shared.was_closed.store(true, Ordering::Relaxed);
    }

    pub(crate) fn key(&self) -> u64 {
        self.shared.key
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.shared.channel
    }

    /// Returns whether the user started this process: false for the zygote and for a spare.
    pub(super) fn is_visible(&self) -> bool {
        self.shared.info.get().is_some()
    }

    /// Returns the process id, which the kernel may assign to another process once this one has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.info.get().map_or("forkserver", |info| &info.name)
    }

    /// Returns whether the process is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.shared.info.get().is_none_or(|info| info.daemon)
    }

    /// Returns the start method: the requested one, or [`StartMethod::Spawn`] where the system refuses the fork server.
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.shared.method
    }

    /// Blocks until the process has ended and returns its status; `None` when the deadline passed first.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when a signal handler ran; the call may be repeated.
    pub fn wait(&self, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
        loop {
            if lock(&self.shared.status).is_none() && !pidfd::wait(self, deadline)? {
                return Ok(None);
            }
            let status = self.try_wait()?;
            if status.is_some() || deadline.has_passed() {
                return Ok(status);
            }
            // The process has ended, but its tracer (strace, gdb) must reap it first, which no descriptor reports.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As [`Child::wait`], but continues to wait after a signal handler ran.
    pub(crate) fn wait_through_signals(&self, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
        retry_interrupted(|| self.wait(deadline))
    }

    /// Returns the exit status, or `None` while the process runs.
    ///
    /// # Errors
    /// When a system call on the process descriptor failed.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut known = lock(&self.shared.status);
        if known.is_some() {
            return Ok(*known);
        }
        let leads_group = self.shared.info.get().is_some_and(|info| info.leads_group);
        if leads_group && !pidfd::end_group(self.as_fd(), self.shared.pid)? {
            return Ok(None); // if it ends just now, the next call kills its group before it reaps it
        }
        let status = pidfd::reap(self.as_fd())?;
        if status.is_some() {
            children().forget(self.shared.key);
            // Before the status is published: when a join returns, all that the process held has been recovered.
            crate::shm::registry::recover_all();
        }
        *known = status;
        Ok(status)
    }

    /// Sends a signal. Does nothing if the process has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when the process now runs as another user; [`io::ErrorKind::InvalidInput`] when
    /// there is no such signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if lock(&self.shared.status).is_some() {
            return Ok(());
        }
        pidfd::send_signal(self.as_fd(), signal)
    }

    /// Reads the last messages of a process that has ended. Each message is returned to one caller only.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when the process sent a malformed message.
    pub fn ending(&self, status: ExitStatus) -> io::Result<Ending> {
        let mut ending = Ending::new(status);
        while ending.outcome.is_none() {
            match self.shared.channel.try_receive() {
                Ok(Some(message)) => ending.on_message(message)?,
                Ok(None) => return Ok(ending),
                // No more messages, although a process that it started still holds its end of the channel.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(ending),
                Err(error) => return Err(error),
            }
        }
        Ok(ending)
    }

    /// Returns whether the process read its order, as far as can be known after its end. False for a program that ran as an
    /// ordinary program because it does not call [`init`](super::init). Call this once: the kernel reports an unread order
    /// only once.
    #[must_use]
    pub fn took_its_order(&self) -> bool {
        let is_untold =
            self.shared.was_closed.load(Ordering::Relaxed) || fd::has_peer_left_unread(self.shared.channel.as_fd());
        self.shared.method == StartMethod::Fork || !is_untold
    }

    /// Returns all bytes written so far to standard output (1) or standard error (2); `None` if that stream is not captured.
    ///
    /// # Errors
    /// When the memory file cannot be read.
    pub fn captured(&self, number: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = number.checked_sub(1).and_then(|at| self.shared.info.get()?.captured.get(at)?.as_ref()) else {
            return Ok(None);
        };
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(bytes))
    }
}

/// The process descriptor (`pidfd_open(2)`), readable once the process has ended. Python's `sentinel`.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.pidfd.as_fd()
    }
}

/// The children of this process that are not reaped yet, by their keys in the supervisor's poller.
#[derive(Debug)]
pub(super) struct Children {
    by_key: Mutex<HashMap<u64, Child>>,
    next_key: AtomicU64,
}

/// Created again in a copy of the process: the children in the copied memory are those of its parent.
static CHILDREN: PerProcess<Children> =
    PerProcess::new(|_| Children { by_key: Mutex::default(), next_key: AtomicU64::new(1) });

/// Returns the children of this process.
pub(super) fn children() -> &'static Children {
    CHILDREN.get()
}

/// Returns the children of this process, if it ever had any.
pub(super) fn existing_children() -> Option<&'static Children> {
    CHILDREN.existing()
}

impl Children {
    /// Returns a key, from 1, that is never used again.
    pub(super) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn insert(&self, child: &Child) {
        lock(&self.by_key).insert(child.key(), child.clone());
    }

    fn forget(&self, key: u64) {
        lock(&self.by_key).remove(&key);
    }

    pub(super) fn get(&self, key: u64) -> Option<Child> {
        lock(&self.by_key).get(&key).cloned()
    }

    pub(super) fn all(&self) -> Vec<Child> {
        lock(&self.by_key).values().cloned().collect()
    }
}

/// Returns the processes that this one started and that still run. Reaps the processes that have ended.
#[must_use]
pub fn active_children() -> Vec<Child> {
    let Some(children) = existing_children() else { return Vec::new() };
    let mut children = children.all();
    children.retain(|child| child.is_visible() && matches!(child.try_wait(), Ok(None)));
    children.sort_by_key(Child::key);
    children
}
