"""The child's side: what the engine calls in a new process, and in the fork server."""

import atexit
import gc
import io
import os
import pickle
import sys
import threading
import traceback

from . import _polyproc, forkserver, process, spawn, util
from ._carry import arriving

# Older versions of `_bootstrap` do what is registered to be done at the end by themselves.
_ENDS_ITSELF = "_exit_function" in process.BaseProcess._bootstrap.__code__.co_names


def preload(data, fds):
    """In the fork server: imports what its processes are to share."""
    preparation, modules = pickle.loads(data)
    # A main module without the guard that tries to start processes is told so, instead.
    process.current_process()._inheriting = True
    try:
        if preparation is not None and "__main__" in modules:
            spawn.prepare(preparation)
        for name in modules:
            if name != "__main__":
                try:
                    __import__(name)
                except ImportError:
                    pass
    finally:
        del process.current_process()._inheriting
    # What is there now stays: a collection in a child need not touch, and so copy, its pages.
    gc.collect()
    gc.freeze()
    return 0


def run(data, fds):
    """In a new process: gives its exit code."""
    forkserver._inherited_fds = list(fds)
    _refresh_environ()
    stream = io.BytesIO(data)
    process.current_process()._inheriting = True
    try:
        try:
            with arriving(fds):
                spawn.prepare(pickle.load(stream))
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
    if _ENDS_ITSELF:
        return process_obj._bootstrap(parent_sentinel=_parent_sentinel(parent_pid))
    atexit._clear()
    atexit.register(util._exit_function)
    try:
        return process_obj._bootstrap(parent_sentinel=_parent_sentinel(parent_pid))
    finally:
        atexit._run_exitfuncs()
        util._flush_std_streams()


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
    """Has `os.environ` say what the engine has set: its copy is that of the fork server."""
    environ = dict(_polyproc.environ())
    known = os.environ._data
    if known != environ:
        known.clear()
        known.update(environ)
