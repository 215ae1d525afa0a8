//! [`Child`], the parent's handle to a process.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use super::outcome::tag;
use super::state::{ProcessState, lock};
use super::{ExitStatus, Outcome, Signal, StartMethod};
use crate::conn::{Channel, Message};
use crate::deadline::Deadline;
use crate::frame::wire::WireError;
use crate::prim::{AtomicBool, Ordering};
use crate::retry::retry_interrupted;
use crate::sys::{fd, pidfd};

/// A process that this one started. Clones are handles to the same process; dropping them all lets it run on.
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
    /// What it is for; not known yet of a process made ahead of its need.
    facts: OnceLock<Facts>,
    status: Mutex<Option<ExitStatus>>,
    /// It closed its channel before it could be told what to do.
    was_gone: AtomicBool,
}

/// What a process is for.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) name: String,
    pub(super) daemon: bool,
    /// It leads a process group, which ends with it.
    pub(super) leads_group: bool,
    /// What it writes to standard output and standard error, where that is captured.
    pub(super) captured: [Option<File>; 2],
}

/// How a process ended and what it left.
#[derive(Debug)]
pub struct Ending {
    /// How it ended.
    pub status: ExitStatus,
    /// What it said last; `None` when it ended without a word.
    pub outcome: Option<Outcome>,
    /// It reported that its stack overflowed.
    pub stack_overflow: bool,
}

impl Ending {
    pub(crate) fn new(status: ExitStatus) -> Self {
        Self { status, outcome: None, stack_overflow: false }
    }

    /// Takes in one of the process's last messages.
    pub(crate) fn hear(&mut self, message: Message) -> Result<(), WireError> {
        match message.tag {
            tag::STACK_OVERFLOW => self.stack_overflow = true,
            _ => self.outcome = Some(Outcome::decode(message.tag, message.payload)?),
        }
        Ok(())
    }
}

impl Child {
    /// The process `pid` at the other end of `channel`, started by `method`.
    pub(super) fn new(pid: u32, pidfd: OwnedFd, channel: Channel, method: StartMethod) -> Self {
        let key = ProcessState::current().next_key();
        let (facts, status) = (OnceLock::new(), Mutex::default());
        let was_gone = AtomicBool::new(false);
        Self { shared: Arc::new(ChildData { key, pid, method, pidfd, channel, facts, status, was_gone }) }
    }

    /// The process `pid`, which ended, and was reaped by other code of the program, before there was a descriptor for it.
    pub(super) fn ended(pid: u32, channel: Channel, method: StartMethod) -> io::Result<Self> {
        let (readable_for_ever, _) = io::pipe()?;
        let child = Self::new(pid, readable_for_ever.into(), channel, method);
        *lock(&child.shared.status) = Some(ExitStatus::Unknown);
        Ok(child)
    }

    /// Gives it its task, once: from now on it is one of the user's.
    pub(super) fn introduce(&self, facts: Facts) {
        let first = self.shared.facts.set(facts);
        debug_assert!(first.is_ok(), "a process has one task");
    }

    /// It could not be told what to do any more.
    pub(super) fn note_gone(&self) {
        self.shared.was_gone.store(true, Ordering::Relaxed);
    }

    pub(crate) fn key(&self) -> u64 {
        self.shared.key
    }

    pub(crate) fn channel(&self) -> &Channel {
        &self.shared.channel
    }

    /// Whether it is one of the user's: not the zygote, nor a process made ahead of its need.
    pub(super) fn is_visible(&self) -> bool {
        self.shared.facts.get().is_some()
    }

    /// Its process id, which the kernel may give to another process once this one has ended.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.shared.pid
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.shared.facts.get().map_or("forkserver", |facts| &facts.name)
    }

    /// Whether it is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.shared.facts.get().is_none_or(|facts| facts.daemon)
    }

    /// How it was started: what was asked for, or [`StartMethod::Spawn`] where the system refuses the fork server.
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.shared.method
    }

    /// Waits until it has ended; `None` when the deadline passed first.
    ///
    /// # Errors
    /// [`io::ErrorKind::Interrupted`] when a signal handler ran: wait again, or do what the signal asks.
    pub fn wait(&self, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
        loop {
            if lock(&self.shared.status).is_none() && !pidfd::wait(self, deadline)? {
                return Ok(None);
            }
            let status = self.try_wait()?;
            if status.is_some() || deadline.has_passed() {
                return Ok(status);
            }
            // It has ended, but a tracer (strace, gdb) is to see that first; the kernel tells nobody when it has.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As [`Child::wait`], waiting on when a signal handler ran.
    pub(crate) fn wait_through_signals(&self, deadline: Deadline) -> io::Result<Option<ExitStatus>> {
        retry_interrupted(|| self.wait(deadline))
    }

    /// How it ended, `None` while it runs.
    ///
    /// # Errors
    /// When the kernel does not answer for the process descriptor.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        let mut known = lock(&self.shared.status);
        if known.is_some() {
            return Ok(*known);
        }
        let leads_group = self.shared.facts.get().is_some_and(|facts| facts.leads_group);
        if leads_group && !pidfd::end_group(self.as_fd(), self.shared.pid)? {
            return Ok(None); // not reaped if it ends just now: its group would be nobody's
        }
        let status = pidfd::reap(self.as_fd())?;
        if status.is_some() {
            ProcessState::current().forget(self.shared.key);
            // Before anybody is told: whoever has joined it finds what it held taken back.
            crate::shm::registry::recover_all();
        }
        *known = status;
        Ok(status)
    }

    /// Sends a signal; no error when it has ended already.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when it runs as another user by now; [`io::ErrorKind::InvalidInput`] when there is no such signal.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        if lock(&self.shared.status).is_some() {
            return Ok(());
        }
        pidfd::send_signal(self.as_fd(), signal)
    }

    /// What it left, once: for a process that has ended. Each message is read by one caller only.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] when it wrote nonsense over its channel.
    pub fn ending(&self, status: ExitStatus) -> io::Result<Ending> {
        let mut ending = Ending::new(status);
        while ending.outcome.is_none() {
            match self.shared.channel.try_receive() {
                Ok(Some(message)) => ending.hear(message)?,
                Ok(None) => return Ok(ending),
                // Nothing more, though a process that it made still holds its end.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(ending),
                Err(error) => return Err(error),
            }
        }
        Ok(ending)
    }

    /// Whether it took its order, as far as that can be known once it has ended: false for a program that does not know that it is
    /// to be a process, and went its own way. To be asked once.
    #[must_use]
    pub fn took_its_order(&self) -> bool {
        let is_untold =
            self.shared.was_gone.load(Ordering::Relaxed) || fd::has_peer_left_unread(self.shared.channel.as_fd());
        self.shared.method == StartMethod::Fork || !is_untold
    }

    /// What it wrote so far to a captured stream: 1 is standard output, 2 standard error. `None` when not captured.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn captured(&self, number: usize) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = number.checked_sub(1).and_then(|at| self.shared.facts.get()?.captured.get(at)?.as_ref())
        else {
            return Ok(None);
        };
        let mut bytes = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(Some(bytes))
    }
}

/// The process descriptor (`pidfd_open(2)`): readable once the process has ended. Python's `sentinel`.
impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.pidfd.as_fd()
    }
}
