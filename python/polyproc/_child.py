"""The child's side: functions that the engine calls in a new process and in the fork server."""

import atexit
import io
import itertools
import os
import pickle
import sys
import threading
import traceback
import weakref

# Everything that a new process uses is imported here, so that copies of the fork server have it already.
from . import _polyproc, context, forkserver, process, resource_tracker, spawn, util
from ._pickling import dumps_values, receiving_fds

__all__ = ()

# True if this process is a copy of another one: of the fork server, or by `fork`.
_is_copy = False


def _note_copy():
    global _is_copy
    _is_copy = True


os.register_at_fork(after_in_child=_note_copy)


def preload(data, fds):
    """Calls `_preload.preload` in the fork server. `_preload` is imported only if there is something to preload."""
    _refresh_environ()
    from ._preload import preload

    return preload(data, fds)


def end_preloaded():
    """Runs the exit functions of preloaded modules, before the fork server exits."""
    preloading = sys.modules.get("polyproc._preload")
    if preloading is not None:
        preloading.end_preloaded()


def _forget_original():
    """Drops inherited exit functions, which the original process calls, and reseeds the global random number generators of
    NumPy and torch (the interpreter reseeds `random`). Called first in a new process; does nothing if it is not a copy."""
    if not _is_copy:
        return
    atexit._clear()
    atexit.register(util._exit_function)
    if weakref.finalize._registered_with_atexit:
        weakref.finalize._registry.clear()
        weakref.finalize._registered_with_atexit = False  # the first finalizer of this process registers it again
    for name in ("numpy.random", "torch"):
        module = sys.modules.get(name)
        if hasattr(module, "seed"):
            module.seed()


def run(data, fds):
    """Runs the process object pickled in `data`, in a new process. Returns the exit code."""
    forkserver._inherited_fds = list(fds)
    _refresh_environ()
    _forget_original()
    stream = io.BytesIO(data)
    process.current_process()._inheriting = True
    try:
        try:
            with receiving_fds(fds):
                preparation = pickle.load(stream)
                if preparation is not None:
                    spawn.prepare(preparation)
                process_obj = pickle.load(stream)
        finally:
            del process.current_process()._inheriting
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        util._flush_std_streams()
        return 1
    return bootstrap(process_obj, process_obj._parent_pid)


def bootstrap(process_obj, parent_pid):
    """Runs a process object in the process that was created for it. Returns the exit code."""
    try:
        return process_obj._bootstrap(parent_sentinel=_parent_sentinel(parent_pid))
    finally:
        atexit._run_exitfuncs()
        util._flush_std_streams()
        _polyproc.leave_locks()


def bootstrap_fork(process_obj, parent_pid):
    """Like `bootstrap`, in a forked copy of the process that created the process object."""
    _forget_original()
    return bootstrap(process_obj, parent_pid)


class _Life:
    """The target of a worker's process object: runs the initializer, then tasks."""

    def __init__(self, initializer):
        self.initializer = initializer
        # Why the worker cannot run tasks; `None` after the initializer has returned.
        self.error = RuntimeError("the `run` of the worker's process returned without calling `BaseProcess.run`")

    def run(self):
        # Line-buffered, so that a task's output survives if its worker is killed, and arrives in whole lines.
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(line_buffering=True, write_through=False)
        function, args = self.initializer
        try:
            if function is not None:
                function(*args)
        except BaseException as error:
            self.error = error
        else:
            self.error = None
            _polyproc.serve_tasks()


def run_worker(data, fds, name):
    """Runs a pool's worker from start to end, as a process of the pool's context. Returns the exit code.

    Raises the exception of the initializer, or `RuntimeError` if the initializer was never called.
    """
    _refresh_environ()
    _forget_original()
    inheriting = process.current_process()
    inheriting._inheriting = True
    try:
        with receiving_fds(fds):
            worker, method, initializer = _load_setup(data)
    finally:
        del inheriting._inheriting
    context._force_start_method(method)
    worker._identity = (*worker._identity[:-1], int(name.rpartition("-")[2]))
    worker._name = name
    life = _Life(initializer)
    worker._target, worker._args, worker._kwargs = life.run, (), {}
    code = bootstrap(worker, worker._parent_pid)
    if life.error is not None:
        raise life.error
    return code


def _load_setup(data):
    """Applies the preparation data that `Pool._start` sent. Returns the process object, its start method, and the initializer
    with its arguments."""
    stream = io.BytesIO(data)
    preparation = pickle.load(stream)
    if preparation is not None:
        spawn.prepare(preparation)
    setup = pickle.load(stream)
    if isinstance(setup, int):  # a key: this process is a fork, and has inherited the setup
        setup = sys.modules["polyproc.pool"]._setups[setup]
    return setup


def end_worker():
    """Ends a pool's worker whose signal handler raised, as `bootstrap` ends a process."""
    threading._shutdown()
    atexit._run_exitfuncs()
    util._flush_std_streams()
    _polyproc.leave_locks()


def end_worker_by(error):
    """Ends an idle worker of a pool whose signal handler raised `error`. Reports the error; returns the exit code."""
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code
        if not isinstance(code, int):
            sys.stderr.write(f"{code}\n")
            code = 1
    else:
        traceback.print_exception(type(error), error, error.__traceback__)
        code = 1
    end_worker()
    return code


def wrap_error(error):
    """Returns the traceback of a task's exception as text, and a pickle of the exception."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    from .pool import MaybeEncodingError, TaskExited

    if not isinstance(error, Exception):
        error = TaskExited(f"the task raised {error!r}, which is not passed to the caller")
    try:
        pickle, fds = dumps_values(error)
        if fds:
            raise ValueError("it holds handles")
    except Exception as reason:
        pickle, _ = dumps_values(MaybeEncodingError(reason, error))
    return text, pickle


def _parent_sentinel(parent_pid):
    """Returns a descriptor that is readable once the parent has exited."""
    try:
        sentinel = os.pidfd_open(parent_pid)
        if os.getppid() == parent_pid:
            return sentinel
        os.close(sentinel)
    except ProcessLookupError:
        pass
    read, write = os.pipe()
    os.close(write)
    return read


def _refresh_environ():
    """Updates `os.environ` if the engine has changed the environment."""
    environ = _polyproc.environ()
    if environ is not None:
        known = os.environ._data
        known.clear()
        known.update(environ)
