"""Processes that the fork server creates."""

from . import _polyproc, forkserver, popen_fork, spawn
from ._pickling import dumps_setup

__all__ = ["Popen"]


class Popen(popen_fork.Popen):
    method = "forkserver"

    def _launch(self, process_obj):
        preparation = spawn.get_preparation_data()
        spawn.set_program()
        return forkserver.with_preload(preparation, lambda unsent: self._start(process_obj, unsent))

    def _start(self, process_obj, preparation):
        data, fds = dumps_setup(preparation, process_obj)
        return _polyproc.start(self.method, process_obj.name, self._is_bound, data, fds)
