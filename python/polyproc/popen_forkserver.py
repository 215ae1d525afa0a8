"""Processes by the fork server."""

import io

from . import _polyproc, forkserver, popen_fork, reduction, spawn
from ._carry import Carrier, carrying

__all__ = ["Popen"]


class Popen(popen_fork.Popen):
    method = "forkserver"

    def _launch(self, process_obj):
        preparation = spawn.get_preparation_data(process_obj._name)
        carrier, data = Carrier(), io.BytesIO()
        with carrying(carrier):
            reduction.dump(preparation, data)
            reduction.dump(process_obj, data)
        spawn.set_program()
        return self._start(process_obj, preparation, data.getvalue(), carrier.fds)

    def _start(self, process_obj, preparation, data, fds):
        who = process_obj.name, process_obj.daemon
        return forkserver.with_preload(preparation, lambda: _polyproc.start("forkserver", *who, data, fds))
