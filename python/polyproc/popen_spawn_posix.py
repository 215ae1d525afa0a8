"""Processes by `spawn`."""

from . import popen_forkserver, spawn

__all__ = ["Popen"]


class Popen(popen_forkserver.Popen):
    method = "spawn"

    def _launch(self, process_obj):
        spawn.set_program()
        return self._start(process_obj, spawn.get_preparation_data())
