"""Named shared memory is destroyed once the last process that may use it has ended, however it ended.

As in `multiprocessing`, a tracker process reads the names of resources from a pipe, and destroys the remaining ones at end of
file. All processes of a program share one pipe. The tracker starts when it is first needed, in a session of its own, so that a
signal to the program's process group does not kill it.
"""

import fcntl
import os
import signal
import sys
import threading
import warnings
from multiprocessing import resource_tracker as _standard
from multiprocessing.resource_tracker import main

from . import reduction, spawn, util

__all__ = ["ensure_running", "register", "unregister"]

# Without semaphores: ours have no names.
_CLEANUP_FUNCS = {kind: clean for kind, clean in _standard._CLEANUP_FUNCS.items() if kind != "semaphore"}


class ResourceTracker:
    """The writing end of the tracker's pipe."""

    def __init__(self):
        self._lock = threading.RLock()
        self._fd = None
        # The process id of the tracker, if this process has started it.
        self._pid = None

    def __reduce__(self):
        return _adopt, (reduction.DupFd(self.share()),)

    def share(self):
        """Returns the pipe's descriptor. Creates the pipe if needed, so that a process created next shares it."""
        with self._lock:
            if self._fd is None:
                read, self._fd = os.pipe()
                os.close(read)
            return self._fd

    def getfd(self):
        """Starts the tracker if none runs. Returns the descriptor of its pipe."""
        self.ensure_running()
        return self.share()

    def ensure_running(self):
        """Starts the tracker if none runs."""
        with self._lock:
            if self._check_alive():
                return
            if self._pid is not None:
                try:
                    os.waitpid(self._pid, 0)
                except ChildProcessError:
                    pass  # reaped already, by code that waits for any child
                self._pid = None
                warnings.warn("resource_tracker: process died unexpectedly, relaunching.  Some resources might leak.")
            self._launch()

    def _launch(self):
        # If two processes do this at the same time, the second tracker finds the pipe locked by the first one and exits.
        read = os.open(f"/proc/self/fd/{self._fd}", os.O_RDONLY)
        try:
            command = _command()
            self._pid = os.posix_spawn(
                command[0],
                command,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, read, 0)],
                setsid=True,
                setsigmask=[signal.SIGINT, signal.SIGTERM],
            )
        finally:
            os.close(read)

    def _check_alive(self):
        try:
            os.write(self.share(), b"PROBE:0:noop\n")
        except BrokenPipeError:
            return False
        return True

    def register(self, name, rtype):
        """Registers a resource, to be destroyed when the program has ended."""
        self._send("REGISTER", name, rtype)

    def unregister(self, name, rtype):
        """Unregisters a resource, so that it is not destroyed."""
        self._send("UNREGISTER", name, rtype)

    def _send(self, cmd, name, rtype):
        message = f"{cmd}:{name}:{rtype}\n".encode("ascii")
        if len(message) > 512:  # bytes that POSIX guarantees to write to a pipe atomically
            raise ValueError("msg too long")
        self.ensure_running()
        os.write(self.share(), message)


def _command():
    if getattr(sys, "frozen", False):
        return spawn._frozen_command(spawn._TRACKER)
    program = f"import sys; sys.path.append({spawn._HERE!r}); from polyproc.resource_tracker import _main; _main()"
    return [os.fsdecode(spawn.get_executable()), *util._args_from_interpreter_flags(), "-c", program]


def _adopt(dup_fd):
    """Adopts, in a new process, the pipe of the process that started it."""
    fd = dup_fd.detach()
    if _resource_tracker._fd is not None:
        os.close(_resource_tracker._fd)
    _resource_tracker._fd, _resource_tracker._pid = fd, None
    return _resource_tracker


def _main():
    try:
        fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    # A duplicate: `main` closes standard input.
    main(os.dup(0))


_resource_tracker = ResourceTracker()
share = _resource_tracker.share
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd
os.register_at_fork(after_in_child=lambda: setattr(_resource_tracker, "_pid", None))
