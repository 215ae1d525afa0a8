"""Processes by the fork server."""

import io

from . import _polyproc, forkserver, popen_fork, reduction, spawn
from .context import get_spawning_popen, set_spawning_popen

__all__ = ["Popen"]


class _DupFd:
    """A descriptor that a new process was given, by its place among all that it was given."""

    def __init__(self, place):
        self.place = place

    def detach(self):
        return forkserver.get_inherited_fd(self.place)


class Popen(popen_fork.Popen):
    method = "forkserver"
    DupFd = _DupFd

    def _launch(self, process_obj):
        self._fds = []
        preparation = spawn.get_preparation_data(process_obj._name)
        data = io.BytesIO()
        outer = get_spawning_popen()
        set_spawning_popen(self)
        try:
            reduction.dump(preparation, data)
            reduction.dump(process_obj, data)
        finally:
            set_spawning_popen(outer)
        return self._start(process_obj, data.getvalue(), preparation)

    def _start(self, process_obj, data, preparation):
        spawn.set_program()
        return forkserver.start(preparation, process_obj.name, process_obj.daemon, data, self._fds)

    def duplicate_for_child(self, fd):
        self._fds.append(fd)
        return len(self._fds) - 1
