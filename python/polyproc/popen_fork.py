"""Processes by `fork`, and the code that all three start methods share."""

import os
import signal

from . import _polyproc, resource_tracker, util

__all__ = ["Popen"]


# Seconds between `SIGTERM` and `SIGKILL` for a daemonic process when the program ends.
_GRACE_SECONDS = 5


def _is_server(process_obj):
    """Returns whether the process object is for the server of a manager."""
    target = getattr(process_obj, "_target", None)
    names = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    return names == ("multiprocessing.managers", "BaseManager._run_server")


class Popen:
    """A started process, as `multiprocessing`'s process objects use it."""

    method = "fork"

    def __init__(self, process_obj):
        util._flush_std_streams()
        # The server of a manager ends with its program, like a daemon.
        self._is_daemon = process_obj.daemon
        self._is_bound = process_obj.daemon or _is_server(process_obj)
        self.finalizer = None
        self._child = self._launch(process_obj)
        self.pid = self._child.pid
        self.sentinel = self._child.fileno()
        self.returncode = None

    def _launch(self, process_obj):
        from ._child import bootstrap_fork

        resource_tracker.share()
        parent = os.getpid()
        return _polyproc.fork(process_obj.name, self._is_bound, lambda: bootstrap_fork(process_obj, parent))

    def poll(self, flag=os.WNOHANG):
        """Returns the exit code, negative for a signal; `None` while it runs. Blocks unless `flag` has `os.WNOHANG`."""
        if self.returncode is None:
            try:
                self.returncode = self._child.poll() if flag & os.WNOHANG else self._child.wait()
            except ChildProcessError:
                return None  # a child of the original process, of which this one is a fork
        return self.returncode

    def wait(self, timeout=None):
        """Blocks until the process ends, and returns its exit code; `None` after `timeout` seconds."""
        if self.returncode is None and timeout is None and self._is_daemon and util.is_exiting():
            # `multiprocessing` has sent `SIGTERM`, but the process may ignore it or be stopped.
            self.returncode = self._child.wait(_GRACE_SECONDS)
            if self.returncode is None:
                self.kill()
        if self.returncode is None:
            self.returncode = self._child.wait(timeout)
        return self.returncode

    def _send_signal(self, number):
        if self.returncode is None:
            self._child.send_signal(number)

    def interrupt(self):
        self._send_signal(signal.SIGINT)

    def terminate(self):
        self._send_signal(signal.SIGTERM)

    def kill(self):
        self._send_signal(signal.SIGKILL)

    def close(self):
        self._child = None
