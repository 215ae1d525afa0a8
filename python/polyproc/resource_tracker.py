"""Shared memory that has names is destroyed when the last of the processes that might use it has ended, however it ended.

As in `multiprocessing`: a process of its own reads from a pipe what there is, and does away with what is left at the pipe's
end. All processes of a program share one pipe, and it is not started before it is needed; it is in no session of theirs, so
that whoever kills them as a group does not kill it with them.
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

# Our semaphores have no names.
_CLEANUP_FUNCS = {kind: clean for kind, clean in _standard._CLEANUP_FUNCS.items() if kind != "semaphore"}


class ResourceTracker:
    """One of the ends of the pipe that are written to."""

    def __init__(self):
        self._lock = threading.RLock()
        self._fd = None
        # Where this process has started the tracker.
        self._pid = None

    def __reduce__(self):
        return _adopt, (reduction.DupFd(self.share()),)

    def share(self):
        """The pipe, made if need be before a process is made that is to have it, too."""
        with self._lock:
            if self._fd is None:
                read, self._fd = os.pipe()
                os.close(read)
            return self._fd

    def getfd(self):
        """The pipe, to a tracker that runs."""
        self.ensure_running()
        return self.share()

    def ensure_running(self):
        """Starts the tracker, if none runs."""
        with self._lock:
            if self._check_alive():
                return
            if self._pid is not None:
                try:
                    os.waitpid(self._pid, 0)
                except ChildProcessError:
                    pass  # somebody has waited for all children
                self._pid = None
                warnings.warn("resource_tracker: process died unexpectedly, relaunching.  Some resources might leak.")
            self._launch()

    def _launch(self):
        # Where two processes do this at once, the second tracker sees the first one's lock and ends.
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
        """Has a resource destroyed in the end."""
        self._send("REGISTER", name, rtype)

    def unregister(self, name, rtype):
        """Has a resource left alone."""
        self._send("UNREGISTER", name, rtype)

    def _send(self, cmd, name, rtype):
        message = f"{cmd}:{name}:{rtype}\n".encode("ascii")
        if len(message) > 512:  # what POSIX writes to pipes as a whole
            raise ValueError("msg too long")
        self.ensure_running()
        os.write(self.share(), message)


def _command():
    if getattr(sys, "frozen", False):
        return spawn._frozen_command(spawn._TRACKER)
    program = f"import sys; sys.path.append({spawn._HERE!r}); from polyproc.resource_tracker import _main; _main()"
    return [os.fsdecode(spawn.get_executable()), *util._args_from_interpreter_flags(), "-c", program]


def _adopt(dup_fd):
    """In a new process: the pipe of the one that started it."""
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
    # Of the pipe only: `main` closes standard input.
    main(os.dup(0))


_resource_tracker = ResourceTracker()
share = _resource_tracker.share
ensure_running = _resource_tracker.ensure_running
register = _resource_tracker.register
unregister = _resource_tracker.unregister
getfd = _resource_tracker.getfd
os.register_at_fork(after_in_child=lambda: setattr(_resource_tracker, "_pid", None))
