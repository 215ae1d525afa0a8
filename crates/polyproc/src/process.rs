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

/// Calls a function in another process, once, with the whole argument.
struct Once;

impl<A: Transfer, R: Transfer> Handler<fn(A) -> R> for Once {
    fn handle(function: fn(A) -> R, input: Input<'_>, out: &mut Payload) -> Verdict {
        codec::through(input, out, function)
    }
}

/// A type whose work is done in another process: Python's subclass of `Process` with a `run` method.
///
/// The value is created in the parent, moved to the child, and runs there.
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
    /// The type of the result.
    type Output: Transfer;

    /// Runs in the child, and returns the result for the parent.
    fn run(self) -> Self::Output;
}

/// A process that has not started: a function, its argument, and settings. Nothing happens before [`Process::start`].
///
/// The function is a plain `fn` pointer, or a closure that captures nothing. Its argument and its result are [`Transfer`]
/// values. Pass several arguments as a tuple.
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
/// A closure that captures variables does not compile. Pass the values as the argument, or use [`Process::fork`]:
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

/// Returns a job that calls `function` with `argument`, encoded.
fn call<A: Transfer, R: Transfer>(function: fn(A) -> R, argument: &A) -> Result<Job<'static>, StartError> {
    let function = Function::new::<_, Once>(function)?;
    let input = codec::encode("the argument", argument).map_err(|error| StartError::Argument(error.into()))?;
    Ok(Job::Call(function, input))
}

impl<R: Transfer> Process<'static, R> {
    /// Creates a process that runs `function(argument)`.
    pub fn new<A: Transfer>(function: fn(A) -> R, argument: A) -> Self {
        Self { settings: Settings::default(), job: call(function, &argument), result: PhantomData }
    }

    /// Creates a process that runs `state.run()`.
    pub fn run<T: Run<Output = R>>(state: T) -> Self {
        Self::new(T::run, state)
    }
}

impl<'a, R: Transfer> Process<'a, R> {
    /// Creates a process that runs `closure()` in a copy of this process, so the closure may capture any variable.
    ///
    /// [`Process::start`] fails with [`StartError::Threads`] while other threads run in this process, unless
    /// [`fork_with_threads`](Process::fork_with_threads) allows it.
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
    /// Sets the name, `Process-N` by default. It is informative and need not be unique.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = Some(name.into());
        self
    }

    /// Sets whether the process is daemonic.
    ///
    /// When the program ends, a daemonic process receives `SIGTERM`, and is killed after a grace period
    /// ([`set_daemon_grace`](crate::set_daemon_grace)). It is also killed if the program is killed. Before the program ends, it
    /// waits for processes that are not daemonic. Unlike in Python, a daemonic process may have children, which die with it.
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.settings.daemon = daemon;
        self
    }

    /// Sets the start method, [`StartMethod::Forkserver`] by default.
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.settings.method = method;
        self
    }

    /// Allows [`StartMethod::Fork`] while other threads run. `promise` states that this is sound: see [`ForkWithThreads::new`].
    pub fn fork_with_threads(mut self, promise: ForkWithThreads) -> Self {
        self.settings.fork_with_threads = Some(promise);
        self
    }

    fn change_env(mut self, change: EnvChange) -> Self {
        self.settings.env.push(change);
        self
    }

    /// Sets an environment variable. By default the process inherits the variables that this process has at the start.
    pub fn env(self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.change_env(EnvChange::Set(name.as_ref().to_owned(), value.as_ref().to_owned()))
    }

    /// Removes an environment variable.
    pub fn env_remove(self, name: impl AsRef<OsStr>) -> Self {
        self.change_env(EnvChange::Remove(name.as_ref().to_owned()))
    }

    /// Removes all environment variables, including variables that earlier calls set.
    pub fn env_clear(self) -> Self {
        self.change_env(EnvChange::Clear)
    }

    /// Sets the working directory, by default that of this process.
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.settings.current_dir = Some(path.as_ref().to_owned());
        self
    }

    /// Sets the standard input, [`Stdio::Inherit`] by default.
    pub fn stdin(mut self, stdin: Stdio) -> Self {
        self.settings.stdio[0] = stdin;
        self
    }

    /// Sets the standard output, [`Stdio::Inherit`] by default.
    pub fn stdout(mut self, stdout: Stdio) -> Self {
        self.settings.stdio[1] = stdout;
        self
    }

    /// Sets the standard error, [`Stdio::Inherit`] by default.
    pub fn stderr(mut self, stderr: Stdio) -> Self {
        self.settings.stdio[2] = stderr;
        self
    }

    /// Starts the process.
    ///
    /// # Errors
    /// [`StartError`], whose variants name the causes. No process was started then.
    pub fn start(self) -> Result<Child<R>, StartError> {
        let core = core::start(self.settings, self.job?)?;
        crate::forward::report_refused_forkserver();
        Ok(Child { core, result: PhantomData })
    }
}

/// Why a process has no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// The function panicked.
    #[error("the process {0}")]
    Panicked(Panic),
    /// The process ended before the function returned: a signal killed it, or it called [`std::process::exit`].
    #[error("the process ended without a result: {0}")]
    Died(Death),
    /// The function did not run; the text gives the reason.
    #[error("the process could not run the function: {0}")]
    Refused(String),
    /// The argument or the result could not be encoded or decoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A system call failed.
    #[error("waiting for the process failed")]
    Os(#[from] io::Error),
}

/// How a process ended without finishing its work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Death {
    /// The exit code or the signal.
    pub status: ExitStatus,
    /// True if the process reported a stack overflow. Only an overflow in its main thread is reported.
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

/// A process that was started.
///
/// Dropping it does not end the process. The program waits for it before it ends, unless the process is daemonic.
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
    /// Blocks until the process has ended, and returns the result of its function.
    ///
    /// # Errors
    /// - [`JoinError::Panicked`]: the function panicked.
    /// - [`JoinError::Died`]: the process ended before the function returned.
    /// - [`JoinError::Refused`]: the function did not run.
    /// - [`JoinError::Codec`]: the argument or the result could not be encoded or decoded.
    /// - [`JoinError::Os`]: a system call failed.
    pub fn join(self) -> Result<R, JoinError> {
        let status = retry_interrupted(|| self.core.wait(Deadline::NEVER))?;
        self.finish(status.unwrap_or(ExitStatus::Unknown))
    }

    /// Blocks until the process has ended, for at most `timeout`, and returns the result of its function.
    ///
    /// # Errors
    /// The outer error is the process, if it still runs after `timeout`. The inner error is that of [`Child::join`].
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
            Some(Outcome::Raised(payload)) => Err(codec::raised(&payload.bytes).into()),
            Some(Outcome::Panicked(panic)) => Err(JoinError::Panicked(panic)),
            Some(Outcome::Refused(why)) => Err(JoinError::Refused(why)),
            None => Err(JoinError::Died(death)),
        }
    }
}

impl<R> Child<R> {
    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.core.name()
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.core.pid()
    }

    /// Returns whether the process is daemonic.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.core.is_daemon()
    }

    /// Returns how the process was started: as requested, or by [`StartMethod::Spawn`] where the system refuses the fork
    /// server.
    #[must_use]
    pub fn start_method(&self) -> StartMethod {
        self.core.start_method()
    }

    /// Returns whether the process is running.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        matches!(self.core.try_wait(), Ok(None))
    }

    /// Returns how the process ended, or `None` while it runs. [`ExitStatus::exit_code`] is Python's `exitcode`.
    #[must_use]
    #[doc(alias = "exitcode")]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.core.try_wait().ok().flatten()
    }

    /// Blocks until the process has ended, for at most `timeout`, and leaves the result for [`Child::join`].
    ///
    /// Returns `None` if the process still runs after `timeout`.
    ///
    /// # Errors
    /// Fails when the system cannot wait for the process.
    pub fn wait_timeout(&self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let deadline = Deadline::after(timeout);
        retry_interrupted(|| self.core.wait(deadline))
    }

    /// Sends `SIGTERM`, which ends the process unless it handles the signal. Has no effect if the process has ended.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when the process has changed to another user.
    pub fn terminate(&self) -> io::Result<()> {
        self.core.signal(Signal::TERMINATE)
    }

    /// Sends `SIGKILL`, which ends the process at once.
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

    /// Returns what the process has written to its standard output so far, or `None` unless that is [`Stdio::Captured`].
    ///
    /// # Errors
    /// Fails when the captured output cannot be read.
    pub fn captured_stdout(&self) -> io::Result<Option<Vec<u8>>> {
        self.core.captured(1)
    }

    /// Returns what the process has written to its standard error so far, or `None` unless that is [`Stdio::Captured`].
    ///
    /// # Errors
    /// Fails when the captured output cannot be read.
    pub fn captured_stderr(&self) -> io::Result<Option<Vec<u8>>> {
        self.core.captured(2)
    }
}

/// The process descriptor, readable once the process has ended: Python's `sentinel`. For `poll`, `epoll` and [`wait`].
impl<R> AsFd for Child<R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

/// Blocks until at least one of `sentinels` is readable, and returns the indices of all that are.
///
/// A process is readable once it has ended; a queue or connection is readable while a value can be taken from it or it is
/// closed. Returns no indices on timeout; a `timeout` of `None` is unlimited. For sentinels of several types, pass their
/// [`as_fd`](AsFd::as_fd).
///
/// # Errors
/// Fails when the system cannot wait for this number of descriptors.
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

/// Registers `function(argument)` to run once in the fork server, before the fork server creates its first process.
///
/// A model or table that the function stores in a `static` is shared, copy-on-write, by all processes and pool workers that
/// start from then on. The function must leave no thread running: if it does, or panics, starting a process fails with
/// [`StartError::Preload`]. Processes inherit the descriptors that it leaves open.
///
/// Processes begin with a copy of the memory that `function` leaves: if it seeds a random number generator, all processes draw
/// the same numbers. Handlers of `pthread_atfork(3)`, by which C libraries reset such state, do not run.
///
/// # Errors
/// [`StartError::Function`] when the function has no name that another process can find, [`StartError::Argument`] when the
/// argument could not be encoded.
///
/// ```
/// use std::sync::OnceLock;
/// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
///
/// polyproc::set_forkserver_preload(|len| { TABLE.get_or_init(|| (0..len).collect()); }, 1_000_000)?;
/// let child = polyproc::Process::new(|at: usize| TABLE.get().map(|table| table[at]), 77).start()?;
/// assert_eq!(child.join()?, Some(77)); // computed once, in the fork server
/// assert_eq!(TABLE.get(), None); // not in this process
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
