//! Processes: the engine behind `Popen` in `python/polyproc/popen_*.py`.

use std::cell::Cell;
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;
use std::time::Duration;

use polyproc_core::process::{self, ExitStatus, Function, Handler, Job, Settings, Signal, StartError, StartMethod};
use polyproc_core::{Input, Payload, Verdict, error_chain};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::exception::{exception, runtime_error};
use crate::{sys, time};

pyo3::create_exception!(
    _polyproc,
    PreloadError,
    PyRuntimeError,
    "Preloading made the fork server fail, or left something in it that processes must not share."
);

thread_local! {
    /// The exception that a signal handler raised while this thread waited for the fork server.
    static RAISED: Cell<Option<PyErr>> = const { Cell::new(None) };
}

/// Runs signal handlers. Returns whether one raised.
fn on_interrupt() -> bool {
    let raised = Python::attach(|py| py.check_signals().err());
    let has_raised = raised.is_some();
    if has_raised {
        RAISED.set(raised);
    }
    has_raised
}

/// Returns the exception for a process that was not started: a `polyproc.StartError`, a [`PreloadError`], or the exception of a
/// signal handler.
pub(crate) fn error(error: StartError) -> PyErr {
    let (errno, text) = match error {
        StartError::Interrupted => match RAISED.take() {
            Some(raised) => return raised,
            None => (None, error.to_string()),
        },
        StartError::Preload { why } => return PreloadError::new_err(why),
        StartError::Os { ref source, .. } => (source.raw_os_error(), error_chain(&error)),
        error => (None, error_chain(&error)),
    };
    Python::attach(|py| match errno {
        Some(errno) => exception(py, "polyproc.context", "StartError", (errno, text)),
        None => exception(py, "polyproc.context", "StartError", (text,)),
    })
}

pub(crate) fn method(name: &str) -> PyResult<StartMethod> {
    match name {
        "forkserver" => Ok(StartMethod::Forkserver),
        "spawn" => Ok(StartMethod::Spawn),
        "fork" => Ok(StartMethod::Fork),
        _ => Err(PyValueError::new_err(format!("cannot find context for {name:?}"))),
    }
}

/// Returns the exit code in Python's convention, or 255 if it is not known.
fn exit_code(status: ExitStatus) -> i32 {
    status.exit_code().unwrap_or(255)
}

/// A child process.
#[derive(Debug)]
#[pyclass(frozen, module = "polyproc._polyproc")]
pub(crate) struct Child(process::Child, OnceLock<bool>);

impl From<process::Child> for Child {
    fn from(child: process::Child) -> Self {
        Self(child, OnceLock::new())
    }
}

impl Child {
    /// Returns the exit code. It is 255 for a program that exited with 0 without having run as the requested process.
    fn exit_code(&self, status: ExitStatus) -> i32 {
        match exit_code(status) {
            0 if !self.1.get_or_init(|| self.0.took_its_order()) => 255,
            code => code,
        }
    }
}

#[pymethods]
impl Child {
    #[getter]
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    /// Returns a descriptor that is readable once the process has ended. This object owns it.
    fn fileno(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// Returns the exit code, or `None` while the process runs.
    fn poll(&self) -> PyResult<Option<i32>> {
        Ok(self.0.try_wait()?.map(|status| self.exit_code(status)))
    }

    /// Blocks until the process ends, and returns its exit code; `None` after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let deadline = time::deadline(timeout);
        Ok(time::wait(py, || self.0.wait(deadline))??.map(|status| self.exit_code(status)))
    }

    fn send_signal(&self, number: i32) -> PyResult<()> {
        Ok(self.0.signal(Signal::new(number))?)
    }
}

/// Calls `polyproc._child.NAME(data, fds)`.
fn call<T: for<'py> FromPyObjectOwned<'py>>(name: &str, input: Input<'_>) -> PyResult<T> {
    Python::attach(|py| {
        let data = PyBytes::new(py, input.bytes);
        let given = py.import("polyproc._child")?.call_method1(name, (data, sys::hand_over(input.fds)));
        let given = given.inspect_err(|error| error.print(py))?;
        given.extract().map_err(Into::into)
    })
}

/// The function that a new process runs.
enum Run {}

impl Handler<fn()> for Run {
    fn handle(_: fn(), input: Input<'_>, _: &mut Payload) -> Verdict {
        process::leave(call::<i32>("run", input).unwrap_or(1))
    }
}

/// The function that the fork server runs to preload modules.
enum Preload {}

impl Handler<fn()> for Preload {
    fn handle(_: fn(), input: Input<'_>, out: &mut Payload) -> Verdict {
        match call::<Option<String>>("preload", input) {
            Ok(None) => Verdict::Returned,
            Ok(Some(why)) => {
                out.bytes.extend(why.into_bytes());
                Verdict::Raised
            }
            Err(_) => Verdict::Raised,
        }
    }
}

/// Returns the engine's name of a handler, by which new processes find and run it.
pub(crate) fn function<H: Handler<fn()>>() -> PyResult<Function> {
    Function::new::<fn(), H>(|| ()).map_err(runtime_error)
}

pub(crate) fn payload(data: &[u8], fds: &[RawFd]) -> PyResult<Payload> {
    Ok(Payload { bytes: data.to_vec(), fds: fds.iter().map(|fd| sys::duplicate(*fd)).collect::<Result<_, _>>()? })
}

/// Starts a process that runs `polyproc._child.run(data, fds)`.
#[pyfunction]
fn start(py: Python<'_>, method: &str, name: String, daemon: bool, data: &[u8], fds: Vec<RawFd>) -> PyResult<Child> {
    let settings = Settings { name: Some(name), daemon, method: self::method(method)?, ..Settings::default() };
    let (run, payload) = (function::<Run>()?, payload(data, &fds)?);
    py.detach(|| process::start(settings, Job::Call(run, payload))).map(Child::from).map_err(error)
}

/// Starts a copy of this process that runs `run()`, which returns the exit code.
#[pyfunction]
fn fork(py: Python<'_>, name: String, daemon: bool, run: Py<PyAny>) -> PyResult<Child> {
    let fork_with_threads = Some(sys::fork_with_threads());
    let settings =
        Settings { name: Some(name), daemon, method: StartMethod::Fork, fork_with_threads, ..Settings::default() };
    let run = || {
        let code = Python::attach(|py| run.call0(py).inspect_err(|error| error.print(py))?.extract::<i32>(py));
        process::leave(code.unwrap_or(1))
    };
    py.detach(|| process::start(settings, Job::Closure(Box::new(run)))).map(Child::from).map_err(error)
}

/// Makes the fork server run `polyproc._child.preload(data, fds)` once, before it creates processes; nothing for `None`. If the
/// function returns a text, preloading fails for that reason.
#[pyfunction]
fn set_preload(py: Python<'_>, data: Option<&[u8]>, fds: Vec<RawFd>) -> PyResult<()> {
    let preload = data.map(|data| Ok::<_, PyErr>((function::<Preload>()?, payload(data, &fds)?))).transpose()?;
    py.detach(|| process::set_preload(preload));
    Ok(())
}

/// Starts the fork server if none runs. Returns before it is ready.
#[pyfunction]
fn start_forkserver(py: Python<'_>) -> PyResult<()> {
    py.detach(process::start_forkserver).map_err(error)
}

/// Ends the fork server in order; kills it if that takes longer than `grace` seconds.
#[pyfunction]
fn end_forkserver(py: Python<'_>, grace: f64) {
    py.detach(|| process::end_forkserver(Duration::from_secs_f64(grace)));
}

/// Runs the exit functions of preloaded modules, in the fork server.
fn end_preloaded() {
    Python::attach(|py| {
        if let Err(error) = py.import("polyproc._child").and_then(|module| module.call_method0("end_preloaded")) {
            error.print(py);
        }
    });
}

/// Returns whether the system did not let the fork server create processes.
#[pyfunction]
fn is_forkserver_refused() -> bool {
    process::is_forkserver_refused()
}

/// Returns the process id of the fork server, if one runs.
#[pyfunction]
fn forkserver_pid(py: Python<'_>) -> Option<u32> {
    py.detach(process::forkserver_pid)
}

/// Sets the command line that `spawn` and the fork server execute: `argv[0]` is the program, which must call [`init`].
#[pyfunction]
fn set_program(argv: Vec<OsString>) -> PyResult<()> {
    if argv.is_empty() {
        return Err(PyValueError::new_err("`argv` must not be empty"));
    }
    process::set_program(argv);
    Ok(())
}

/// Runs this process as the child that it was started as, and does not return; returns at once in any other process.
#[pyfunction]
fn init() {
    process::init();
}

/// Returns the environment, if the engine may have changed it since the last call.
#[pyfunction]
fn environ(py: Python<'_>) -> Option<Vec<(Bound<'_, PyBytes>, Bound<'_, PyBytes>)>> {
    let bytes = |text: &OsString| PyBytes::new(py, text.as_bytes());
    process::has_environment_changed()
        .then(|| std::env::vars_os().map(|(name, value)| (bytes(&name), bytes(&value))).collect())
}

/// Waits in a pool's worker, detached from the interpreter so that other threads run; then runs signal handlers. An exception
/// of a handler ends the worker, as in the standard library.
fn around_idle(wait: &mut dyn FnMut()) {
    Python::attach(|py| {
        sys::detached(py, wait);
        if let Err(error) = py.check_signals() {
            process::leave(end_worker_by(py, error));
        }
    });
}

/// Ends a worker in order, after a signal handler has raised `error`. Returns the exit code.
fn end_worker_by(py: Python<'_>, error: PyErr) -> i32 {
    let code = py
        .import("polyproc._child")
        .and_then(|module| module.call_method1("end_worker_by", (error.clone_ref(py).into_value(py),))?.extract());
    code.unwrap_or_else(|_| {
        error.print(py);
        1
    })
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    process::set_around_idle(around_idle);
    process::set_on_interrupt(on_interrupt);
    process::set_at_forkserver_end(end_preloaded);
    module.add_class::<Child>()?;
    module.add("PreloadError", module.py().get_type::<PreloadError>())?;
    module.add_function(wrap_pyfunction!(start, module)?)?;
    module.add_function(wrap_pyfunction!(fork, module)?)?;
    module.add_function(wrap_pyfunction!(set_preload, module)?)?;
    module.add_function(wrap_pyfunction!(forkserver_pid, module)?)?;
    module.add_function(wrap_pyfunction!(is_forkserver_refused, module)?)?;
    module.add_function(wrap_pyfunction!(start_forkserver, module)?)?;
    module.add_function(wrap_pyfunction!(end_forkserver, module)?)?;
    module.add_function(wrap_pyfunction!(set_program, module)?)?;
    module.add_function(wrap_pyfunction!(init, module)?)?;
    module.add_function(wrap_pyfunction!(environ, module)?)
}
