"""Processes by `spawn`."""

from . import _polyproc, popen_forkserver

__all__ = ["Popen"]


class Popen(popen_forkserver.Popen):
    method = "spawn"

    def _start(self, process_obj, preparation, data, fds):
        return _polyproc.start("spawn", process_obj.name, process_obj.daemon, data, fds)
