//! [`Process`] before it starts and [`Child`] afterwards.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use polyproc_core::process::{
    self as core, EnvChange, ExitStatus, ForkWithThreads, Function, Handler, Job, Outcome, Panic, Settings, Signal,
    StartError, StartMethod, Stdio,
};
use polyproc_core::{Deadline, Input, Payload, Verdict, retry_interrupted};

use crate::codec::{self, CodecError, Transfer};

/// How a function is called in another process: once, with the whole argument.
struct Once;

impl<A: Transfer, R: Transfer> Handler<fn(A) -> R> for Once {
    fn handle(function: fn(A) -> R, input: Input<'_>, out: &mut Payload) -> Verdict {
        codec::through(input, out, function)
    }
}

/// A type whose work is done in another process: Python's subclass of `Process` with a `run` method.
///
/// The value is made in the parent, moved to the child, and runs there.
///
/// ```
/// use polyproc::{Process, Run};
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct Greeter {
///     name: String,
/// }
///
/// impl Run for Greeter {
///     type Output = String;
///     fn run(self) -> String {
///         format!("hello {} from {}", self.name, polyproc::current_process().name())
///     }
/// }
///
/// let child = Process::run(Greeter { name: "Ada".into() }).name("Greeter-1").start()?;
/// assert_eq!(child.join()?, "hello Ada from Greeter-1");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub trait Run: Transfer {
    /// What comes back.
    type Output: Transfer;

    /// Runs in the child.
    fn run(self) -> Self::Output;
}

/// A function, its argument and the process that is to run it. Nothing happens before [`Process::start`].
///
/// The function is a plain `fn` pointer, or a closure that captures nothing; its argument and result travel as
/// [`Transfer`] values. Several arguments go as a tuple.
///
/// ```
/// use polyproc::Process;
///
/// fn add((a, b): (u32, u32)) -> u32 {
///     a + b
/// }
///
/// let child = Process::new(add, (1, 2)).name("adder").start()?;
/// assert_eq!(child.join()?, 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A closure that captures does not compile; hand over the value as the argument, or use [`Process::fork`]:
/// ```compile_fail,E0308
/// let offset = 1;
/// polyproc::Process::new(|x: u32| x + offset, 2);
/// ```
#[must_use = "a process does nothing before it is started"]
pub struct Process<'a, R> {
    settings: Settings,
    job: Result<Job<'a>, StartError>,
    result: PhantomData<fn() -> R>,
}

impl<R> fmt::Debug for Process<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process").field("settings", &self.settings).field("job", &self.job).finish()
    }
}

/// Encodes `argument` for `function`.
fn call<A: Transfer, R: Transfer>(function: fn(A) -> R, argument: &A) -> Result<Job<'static>, StartError> {
    let function = Function::new::<_, Once>(function)?;
    let input = codec::encode("the argument", argument).map_err(|error| StartError::Argument(error.into()))?;
    Ok(Job::Call(function, input))
}

impl<R: Transfer> Process<'static, R> {
    /// `function(argument)` in a process of its own.
    pub fn new<A: Transfer>(function: fn(A) -> R, argument: A) -> Self {
        Self { settings: Settings::default(), job: call(function, &argument), result: PhantomData }
    }

    /// `state.run()` in a process of its own.
    pub fn run<T: Run<Output = R>>(state: T) -> Self {
        Self::new(T::run, state)
    }
}

impl<'a, R: Transfer> Process<'a, R> {
    /// `closure()` in a copy of this process, so that it may capture anything.
    ///
    /// Refused at [`Process::start`] while other threads run in this process.
    pub fn fork(closure: impl FnOnce() -> R + 'a) -> Self {
        let closure = Box::new(|| {
            let mut out = Payload::default();
            match codec::answer(&mut out, &closure()) {
                Verdict::Returned => Ok(out),
                Verdict::Raised => Err(out),
            }
        });
        let settings = Settings { method: StartMethod::Fork, ..Settings::default() };
        Self { settings, job: Ok(Job::Closure(closure)), result: PhantomData }
    }
}

impl<R> Process<'_, R> {
    /// The name, `Process-N` by default: for people to read, it need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Whether the process is daemonic: it gets `SIGTERM` when the program ends, is killed after a grace period
    /// ([`set_daemon_grace`](crate::set_daemon_grace)), and dies with the program if that is killed. Others are waited for
    /// at the program's end. Unlike in Python, it may have children; they die with it.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.settings.daemon = daemon;
        self
    }

    /// How the process is started, [`StartMethod::Forkserver`] by default.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.settings.method = method;
        self
    }

    /// Starts by `fork` even though other threads run, on your word that it is sound: see [`ForkWithThreads::new`].
    pub fn fork_with_threads(mut self, promise: ForkWithThreads) -> Self {
        self.settings.fork_with_threads = Some(promise);
        self
    }

    fn change_env(mut self, change: EnvChange) -> Self {
        self.settings.env.push(change);
        self
    }

    /// Sets an environment variable in the process. By default it has those of this process at the time of its start.
    pub fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.change_env(EnvChange::Set(name.as_ref().to_owned(), value.as_ref().to_owned()))
    }

    /// Removes an environment variable.
    pub fn env_remove(self, name: impl AsRef<OsStr>) -> Self {
        self.change_env(EnvChange::Remove(name.as_ref().to_owned()))
    }

    /// Removes all environment variables, and those set before this call.
    pub fn env_clear(self) -> Self {
        self.change_env(EnvChange::Clear)
    }

    /// The working directory, this process's own by default.
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.settings.current_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Where the process reads its standard input from.
    pub fn stdin(mut self, stdin: Stdio) -> Self {
        self.settings.stdio[0] = stdin;
        self
    }

    /// Where its standard output goes.
    pub fn stdout(mut self, stdout: Stdio) -> Self {
        self.settings.stdio[1] = stdout;
        self
    }

    /// Where its standard error goes.
    pub fn stderr(mut self, stderr: Stdio) -> Self {
        self.settings.stdio[2] = stderr;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing was started then.
    pub fn start(self) -> Result<Child<R>, StartError> {
        let core = core::start(self.settings, self.job?)?;
        crate::forward::tell_of_refused_forkserver();
        Ok(Child { core, result: PhantomData })
    }
}

/// Why a process gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The function panicked.
    #[error("the process {0}")]
    Panicked(Panic),
    /// The process ended before the function did: a signal killed it, or it called [`std::process::exit`].
    #[error("the process ended without a result: {0}")]
    Died(Death),
    /// The function never ran; the text says why.
    #[error("the process could not run the function: {0}")]
    Refused(String),
    /// The argument or the result could not be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The system failed us.
    #[error("waiting for the process failed: {0}")]
    Os(#[from] io::Error),
}

/// How a process ended that did not finish its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// The exit code or the signal.
    pub status: ExitStatus,
    /// Whether the process reported that its stack overflowed (its main thread's: other threads cannot tell).
    pub stack_overflow: bool,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stack_overflow {
            true => write!(f, "stack overflow ({})", self.status),
            false => self.status.fmt(f),
        }
    }
}

/// A process that was started. Dropping it lets the process run on: it is waited for at the program's end, unless it is a
/// daemon.
pub struct Child<R> {
    core: core::Child,
    result: PhantomData<fn() -> R>,
}

impl<R> fmt::Debug for Child<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Child").field("name", &self.name()).field("pid", &self.pid()).finish_non_exhaustive()
    }
}

impl<R: Transfer> Child<R> {
    /// Waits until the process has ended and gives what its function returned.
    ///
    /// # Errors
    /// [`JoinError::Panicked`], [`JoinError::Died`], [`JoinError::Refused`] or [`JoinError::Codec`] when there is no result.
    pub fn join(self) -> Result<R, JoinError> {
        let status = retry_interrupted(|| self.core.wait(Deadline::NEVER))?;
        self.finish(status.unwrap_or(ExitStatus::Unknown))
    }

    /// As [`Child::join`], for at most `timeout`; gives the process back when it still runs then.
    ///
    /// # Errors
    /// The outer one is the process, still running; the inner one is [`Child::join`]'s.
    ///
    /// ```
    /// use std::time::Duration;
    /// let slow = polyproc::Process::new(|()| std::thread::sleep(Duration::from_secs(3600)), ()).daemon(true).start()?;
    /// let slow = slow.join_timeout(Duration::from_millis(10)).expect_err("it sleeps");
    /// slow.kill()?;
    /// assert!(slow.join().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn join_timeout(self, timeout: Duration) -> Result<Result<R, JoinError>, Self> {
        let deadline = Deadline::after(timeout);
        match retry_interrupted(|| self.core.wait(deadline)) {
            Ok(None) => Err(self),
            Ok(Some(status)) => Ok(self.finish(status)),
            Err(error) => Ok(Err(error.into())),
        }
    }

    fn finish(self, status: ExitStatus) -> Result<R, JoinError> {
        let ending = self.core.ending(status)?;
        let death = Death { status: ending.status, stack_overflow: ending.stack_overflow };
        match ending.outcome {
            Some(Outcome::Returned(payload)) => Ok(codec::decode("the result", payload)?),
            Some(Outcome::Raised(payload)) => Err(codec::raised(&payload.head).into()),
            Some(Outcome::Panicked(panic)) => Err(JoinError::Panicked(panic)),
            Some(Outcome::Refused(why)) => Err(JoinError::Refused(why)),
            None => Err(JoinError::Died(death)),
        }
    }
}

impl<R> Child<R> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.core.name()
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.core.pid()
    }

    /// Whether it is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.core.is_daemon()
    }

    /// How it was started: as asked, or by [`StartMethod::Spawn`] where the system refuses the fork server.
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.core.start_method()
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.core.try_wait(), Ok(None))
    }

    /// How it ended, `None` while it runs; [`ExitStatus::exit_code`] is Python's `exitcode`.
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.core.try_wait().ok().flatten()
    }

    /// Waits until it has ended, without taking its result; `None` when that takes longer than `timeout`.
    ///
    /// # Errors
    /// When the system cannot wait for it.
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.core.wait(deadline))
    }

    /// Sends `SIGTERM`, which ends the process unless it catches it. No error when it has ended already.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when it runs as another user by now.
    pub fn terminate(&self) -> io::Result<()> {
        self.core.signal(Signal::TERMINATE)
    }

    /// Sends `SIGKILL`, which ends it at once.
    ///
    /// # Errors
    /// As [`Child::terminate`].
    pub fn kill(&self) -> io::Result<()> {
        self.core.signal(Signal::KILL)
    }

    /// Sends `SIGINT`, as Ctrl-C does.
    ///
    /// # Errors
    /// As [`Child::terminate`].
    pub fn interrupt(&self) -> io::Result<()> {
        self.core.signal(Signal::INTERRUPT)
    }

    /// What it wrote so far to its standard output; `None` unless that is [`Stdio::Captured`].
    ///
    /// # Errors
    /// When memory runs out.
    pub fn captured_stdout(&self) -> io::Result<Option<Vec<u8>>> {
        self.core.captured(1)
    }

    /// What it wrote so far to its standard error; `None` unless that is [`Stdio::Captured`].
    ///
    /// # Errors
    /// When memory runs out.
    pub fn captured_stderr(&self) -> io::Result<Option<Vec<u8>>> {
        self.core.captured(2)
    }
}

/// The process descriptor, readable once the process has ended: Python's `sentinel`, for `poll`, `epoll` and [`wait`].
impl<R> AsFd for Child<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

/// Waits until one of `sentinels` is readable and returns the positions of all that are: of processes, those that have
/// ended; of queues and connections, those that something can be taken from. None when that takes longer than `timeout`.
/// For things of several types, wait for their [`as_fd`](AsFd::as_fd).
///
/// # Errors
/// When the system cannot wait for so many descriptors.
///
/// ```
/// use polyproc::{Process, wait};
/// let children = [
///     Process::new(|()| std::thread::sleep(std::time::Duration::from_secs(3600)), ()).daemon(true).start()?,
///     Process::new(|()| (), ()).start()?,
/// ];
/// assert_eq!(wait(&children, None)?, [1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[doc(alias = "multiprocessing.connection.wait")]
pub fn wait<S: AsFd>(sentinels: &[S], timeout: Option<Duration>) -> io::Result<Vec<usize>> {
    let deadline = Deadline::from(timeout);
    retry_interrupted(|| core::wait(sentinels, deadline))
}

/// Has `function(argument)` run once in the fork server, before it makes its first process: a model or table that it puts
/// in a `static` is shared, copy-on-write, by all processes and pool workers started from then on.
///
/// It must leave no thread running; if it panics or does, starting fails with [`StartError::Preload`]. Descriptors that it
/// leaves open are inherited.
///
/// Processes begin as copies of what `function` leaves behind: a generator of random numbers that it has seeded gives all of them the
/// same numbers. Handlers of `pthread_atfork(3)`, by which libraries of C make such state anew, do not run.
///
/// # Errors
/// [`StartError::Function`] or [`StartError::Argument`].
///
/// ```
/// use std::sync::OnceLock;
/// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
///
/// polyproc::set_forkserver_preload(|len| { TABLE.get_or_init(|| (0..len).collect()); }, 1_000_000)?;
/// let child = polyproc::Process::new(|at: usize| TABLE.get().map(|table| table[at]), 77).start()?;
/// assert_eq!(child.join()?, Some(77)); // made once, in the fork server
/// assert_eq!(TABLE.get(), None); // and not here
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn set_forkserver_preload<A: Transfer>(function: fn(A), argument: A) -> Result<(), StartError> {
    match call(function, &argument)? {
        Job::Call(function, input) => core::set_preload(Some((function, input))),
        Job::Closure(_) => unreachable!("`call` names a function"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_test_may_start_processes() {
        let child = Process::new(|text: String| text.len(), "four".to_owned()).start().expect("it can be started");
        assert_eq!(child.join().expect("it returns"), 4);
    }
}
