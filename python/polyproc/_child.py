"""The child's side: what the engine calls in a new process, and in the fork server."""

import atexit
import io
import itertools
import os
import pickle
import sys
import threading
import traceback
import weakref

# All that a new process uses is imported here, so that it is there in copies of the fork server.
from . import _polyproc, context, forkserver, process, resource_tracker, spawn, util
from ._pickling import dumps_values, receiving_fds

__all__ = ()

# This process is a copy of another one, of the fork server or by `fork`.
_is_copy = False


def _note_copy():
    global _is_copy
    _is_copy = True


os.register_at_fork(after_in_child=_note_copy)


def preload(data, fds):
    """In the fork server: see `_preload`, which is imported where there is something to preload."""
    _refresh_environ()
    from ._preload import preload

    return preload(data, fds)


def end_preloaded():
    """In the fork server, before it ends."""
    preloading = sys.modules.get("polyproc._preload")
    if preloading is not None:
        preloading.end_preloaded()


def _forget_original():
    """Drops what a copy of a process has from its original: functions registered for exit, which the original calls, and the
    state of the global generators of random numbers (the interpreter seeds that of `random`). Called first in a process."""
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
    """In a new process: gives its exit code."""
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
    """Runs a process object in the process that was made for it; gives the exit code."""
    try:
        return process_obj._bootstrap(parent_sentinel=_parent_sentinel(parent_pid))
    finally:
        atexit._run_exitfuncs()
        util._flush_std_streams()
        _polyproc.leave_locks()


def bootstrap_fork(process_obj, parent_pid):
    """As `bootstrap`, in a copy of the process that made the process object."""
    _forget_original()
    return bootstrap(process_obj, parent_pid)


class _Life:
    """What the process of a pool's worker runs."""

    def __init__(self, initializer):
        self.initializer = initializer
        # Why it is not fit for tasks.
        self.error = RuntimeError("the `run` of the worker's process returned without calling that of `BaseProcess`")

    def run(self):
        # What a task prints is seen even if its worker is killed, in whole lines.
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
    """In a pool's worker: its whole life, as a process of the pool's context; gives the exit code. Raises what the initializer
    raised."""
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
    """What `Pool._start` sent: how to prepare; then the process, its start method, the initializer and its arguments."""
    stream = io.BytesIO(data)
    preparation = pickle.load(stream)
    if preparation is not None:
        spawn.prepare(preparation)
    setup = pickle.load(stream)
    if isinstance(setup, int):  # this is a copy of the process that has it
        setup = sys.modules["polyproc.pool"]._setups[setup]
    return setup


def end_worker():
    """In a pool's worker that a signal handler ends, as `bootstrap` does it."""
    threading._shutdown()
    atexit._run_exitfuncs()
    util._flush_std_streams()
    _polyproc.leave_locks()


def end_worker_by(error):
    """In a pool's worker without a task, when a signal handler raised: ends it in order, and gives its exit code."""
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
    """The traceback of what a task raised, as text, and a pickle of the exception."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    from .pool import MaybeEncodingError, TaskExited

    if not isinstance(error, Exception):
        error = TaskExited(f"the task raised {error!r}, which is not for its caller")
    try:
        pickle, fds = dumps_values(error)
        if fds:
            raise ValueError("it holds handles")
    except Exception as reason:
        pickle, _ = dumps_values(MaybeEncodingError(reason, error))
    return text, pickle


def _parent_sentinel(parent_pid):
    """A descriptor that is readable once the parent has ended."""
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
    """Has `os.environ` say what the engine has set."""
    environ = _polyproc.environ()
    if environ is not None:
        known = os.environ._data
        known.clear()
        known.update(environ)
