//! [`Child`], the parent's handle to a process, and the table of the children that are not reaped yet.
//!
//! Start methods create a [`Child`], register it with the supervisor ([`supervisor::adopt`](super::supervisor::adopt)), send it
//! its order, and [assign](Child::assign) its properties. The faces join it and read its [`Ending`]; a pool's thread polls its
//! pidfd and its channel.
//!
//! A child is reaped once, by the first thread that calls [`Child::try_wait`] after its end: a joiner, the supervisor, or
//! [`active_children`]. The mutex of the status serialises them. The same thread kills the rest of a process group before it
//! reaps the leader; after that, and before it publishes the status, it removes the child from the table and recovers all
//! shared objects. So when a join returns, all that the dead process held in objects of this process has been recovered.
//!
//! Order of locks: the status of a child, then the table of children or the locks of shared objects.

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

/// A process that this one started. Clones are handles to the same process, which continues to run when all are dropped. The
/// table of children keeps one until the process is reaped.
#[derive(Debug, Clone)]
pub struct Child {
    shared: Arc<ChildData>,
}

/// One process that this one started, shared by all handles. Holds the pidfd and this process's end of the channel until the
/// last handle is dropped, so the last messages can be read after the end.
#[derive(Debug)]
struct ChildData {
    /// Identifies the child in this process and in the supervisor's poller, and is never reused, unlike the process id.
    key: u64,
    /// The process id. Only for display, and for signals to the group of an unreaped leader: all other calls use the pidfd.
    pid: u32,
    /// How it was started. [`StartMethod::Spawn`] for the zygote itself, which is executed.
    method: StartMethod,
    /// Readable once the process has ended. For a child that other code reaped first, the read end of a closed pipe: see
    /// [`Child::ended`].
    pidfd: OwnedFd,
    /// This process's end of the channel: the order, or requests to a zygote, out; reports in.
    channel: Channel,
    /// Unset for the zygote, and for a spare that has no order yet.
    info: OnceLock<ProcessInfo>,
    /// `None` until the child is reaped. Locked while a thread reaps it, and while that thread recovers the shared objects.
    status: Mutex<Option<ExitStatus>>,
    /// True if it closed its channel before it received its order. Relaxed: written by the thread that starts it, before that
    /// thread passes the handle on.
    was_closed: AtomicBool,
}

/// The properties of a process that has its order.
#[derive(Debug)]
pub(super) struct ProcessInfo {
    /// The name that the user or the engine gave it, shown by `ps` in its first 15 bytes.
    pub(super) name: String,
    /// True if it gets `SIGTERM` when this process ends, instead of a join.
    pub(super) daemon: bool,
    /// True if it leads a process group, which ends with it: [`Child::try_wait`] kills the group before it reaps the leader.
    pub(super) leads_group: bool,
    /// The memory files of its standard output and standard error, if these are captured.
    pub(super) captured: [Option<File>; 2],
}

/// How a process ended, and its last messages. [`Child::ending`] reads one after the end; a pool fills one while the worker
/// runs.
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
    /// Returns an ending without messages.
    pub(crate) fn new(status: ExitStatus) -> Self {
        Self { status, outcome: None, stack_overflow: false }
    }

    /// Records one of the process's last messages. A later outcome replaces an earlier one.
    ///
    /// # Errors
    /// [`WireError`] for a tag that is not of [`tag`], or a malformed body.
    pub(crate) fn on_message(&mut self, message: Message) -> Result<(), WireError> {
        match message.tag {
            tag::STACK_OVERFLOW => self.stack_overflow = true,
            _ => self.outcome = Some(Outcome::decode(message.tag, message.payload)?),
        }
        Ok(())
    }
}

impl Child {
    /// Returns a handle to the process `pid`, which was started by `method` and has the other end of `channel`. Does not
    /// register it: until [`supervisor::adopt`](super::supervisor::adopt) only a join reaps it.
    pub(super) fn new(pid: u32, pidfd: OwnedFd, channel: Channel, method: StartMethod) -> Self {
        let key = children().next_key();
        let (info, status) = (OnceLock::new(), Mutex::default());
        let was_closed = AtomicBool::new(false);
        Self { shared: Arc::new(ChildData { key, pid, method, pidfd, channel, info, status, was_closed }) }
    }

    /// Returns a handle to the process `pid`, which other code of the program reaped before its descriptor was opened. Its
    /// status is [`ExitStatus::Unknown`], and it is not in the table of children. In place of the pidfd it has a descriptor
    /// that is readable, as that of any process that has ended.
    ///
    /// # Errors
    /// When no descriptors are available.
    pub(super) fn ended(pid: u32, channel: Channel, method: StartMethod) -> io::Result<Self> {
        let (readable_for_ever, _) = io::pipe()?;
        let child = Self::new(pid, readable_for_ever.into(), channel, method);
        *lock(&child.shared.status) = Some(ExitStatus::Unknown);
        Ok(child)
    }

    /// Sets the properties, once. From then on the process is visible to the user. Called when the order was sent, by the
    /// thread that starts the process.
    ///
    /// # Panics
    /// With debug assertions, if the properties were set before.
    pub(super) fn assign(&self, info: ProcessInfo) {
        let first = self.shared.info.set(info);
        debug_assert!(first.is_ok(), "a process has one task");
    }

    /// Records that the process closed its channel before it received its order, for [`Child::took_its_order`].
    pub(super) fn note_closed(&self) {
        self.shared.was_closed.store(true, Ordering::Relaxed);
    }

    /// Returns the number that identifies this child in this process. Children have keys in the order of their creation, from
    /// 1.
    pub(crate) fn key(&self) -> u64 {
        self.shared.key
    }

    /// Returns this process's end of the channel. Any number of threads may use it; each message is received by one of them.
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

    /// Returns the name; `forkserver` for a process without an order.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.info.get().map_or("forkserver", |info| &info.name)
    }

    /// Returns whether the process is daemonic. True for a process without an order.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.shared.info.get().is_none_or(|info| info.daemon)
    }

    /// Returns the start method: the requested one, or [`StartMethod::Spawn`] where the system refuses the fork server.
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.shared.method
    }

    /// Blocks until the process has ended and returns its status; `None` when the deadline passed first. Reaps it, if no other
    /// thread has.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when a signal handler ran; the call may be repeated. Otherwise as [`Child::try_wait`].
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

    /// Returns the exit status, or `None` while the process runs. Reaps a process that has ended, and recovers what it held in
    /// shared objects of this process. [`ExitStatus::Unknown`] if other code of the program has reaped it and the kernel keeps
    /// no record (before Linux 6.15).
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

    /// Sends a signal. Does nothing if the process has ended. In a process of the fork server that is not set up yet, signals
    /// other than `SIGKILL` stay pending until it is.
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

    /// Reads the last messages of a process that has ended, up to its outcome. Each message is returned to one caller only.
    /// Call it after the end: before that, the outcome may not have been sent yet. Does not block.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when the process sent a malformed message; the error of the system call when a message
    /// could not be received, as with no descriptor left for its descriptors.
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
    /// ordinary program because it does not call [`init`](super::init), and for a process that died before. Call this once, and
    /// before [`Child::ending`]: the kernel reports an unread order only once, to the first call on the socket. Always true for
    /// [`StartMethod::Fork`], which sends no order.
    #[must_use]
    pub fn took_its_order(&self) -> bool {
        let is_unread =
            self.shared.was_closed.load(Ordering::Relaxed) || fd::has_peer_left_unread(self.shared.channel.as_fd());
        self.shared.method == StartMethod::Fork || !is_unread
    }

    /// Returns all bytes written so far to standard output (1) or standard error (2); `None` if that stream is not captured.
    /// The bytes stay in the memory file, so a later call returns them again.
    ///
    /// # Errors
    /// When the memory file cannot be read, or is truncated meanwhile.
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

/// The children of this process that are not reaped yet, by their keys in the supervisor's poller. Includes the zygote and a
/// registered spare. An entry exists from [`supervisor::adopt`](super::supervisor::adopt) until the child is reaped.
#[derive(Debug)]
pub(super) struct Children {
    /// Held for one operation of the map only, never while a child is reaped.
    by_key: Mutex<HashMap<u64, Child>>,
    /// The next key; starts at 1, as 0 is the supervisor's bell.
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
    /// Returns a key, from 1, that is never used again. The supervisor also uses keys for watched processes that are not
    /// children.
    pub(super) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Adds a child. Only [`supervisor::adopt`](super::supervisor::adopt) calls this.
    pub(super) fn insert(&self, child: &Child) {
        lock(&self.by_key).insert(child.key(), child.clone());
    }

    /// Removes a child that was reaped.
    fn forget(&self, key: u64) {
        lock(&self.by_key).remove(&key);
    }

    /// Returns the child with this key, unless it was reaped.
    pub(super) fn get(&self, key: u64) -> Option<Child> {
        lock(&self.by_key).get(&key).cloned()
    }

    /// Returns the children in no particular order, with the zygote and the spare.
    pub(super) fn all(&self) -> Vec<Child> {
        lock(&self.by_key).values().cloned().collect()
    }
}

/// Returns the processes that this one started and that still run, in the order of their creation. Reaps the processes that
/// have ended. Leaves out the fork server and its spare. Python's `multiprocessing.active_children`.
#[must_use]
pub fn active_children() -> Vec<Child> {
    let Some(children) = existing_children() else { return Vec::new() };
    let mut children = children.all();
    children.retain(|child| child.is_visible() && matches!(child.try_wait(), Ok(None)));
    children.sort_by_key(Child::key);
    children
}
