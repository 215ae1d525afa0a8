"""Values on their way to another process: pickles, and the descriptors that they speak of.

What can be given to a new process (locks, queues, connections, shared memory) can so be sent through queues, pipes and pools,
too: a :class:`Carrier` stands in for the process object that `multiprocessing`'s reducers ask for.
"""

import io
import os
import threading

from . import context, reduction

__all__ = ()

_local = threading.local()


class _DupFd:
    """A descriptor by its place among those that came with a pickle."""

    def __init__(self, place):
        self.place = place

    def detach(self):
        fds = _local.arrived
        fd, fds[self.place] = fds[self.place], None
        return fd


class Carrier:
    """Collects the descriptors of what is pickled while it is the one spawned."""

    DupFd = _DupFd

    def __init__(self):
        self.fds = []

    def duplicate_for_child(self, fd):
        self.fds.append(fd)
        return len(self.fds) - 1


class carrying:
    """``with carrying(carrier):`` what is pickled gives its descriptors to it."""

    def __init__(self, carrier):
        self.carrier = carrier

    def __enter__(self):
        self.outer = context.get_spawning_popen()
        context.set_spawning_popen(self.carrier)

    def __exit__(self, *error):
        context.set_spawning_popen(self.outer)


class arriving:
    """``with arriving(fds):`` what is unpickled finds its descriptors in the list. Those that nobody took are closed."""

    def __init__(self, fds):
        self.fds = fds

    def __enter__(self):
        self.outer = getattr(_local, "arrived", None)
        _local.arrived = self.fds

    def __exit__(self, *error):
        _local.arrived = self.outer
        for fd in self.fds:
            if fd is not None:
                os.close(fd)


def dumps(*values):
    """The pickles of values, one after the other, and the descriptors that they speak of, which belong to what is in them."""
    carrier = Carrier()
    data = io.BytesIO()
    with carrying(carrier):
        for value in values:
            reduction.ForkingPickler(data, 5).dump(value)
    return data.getvalue(), carrier.fds


def dumps_task(*values):
    """As `dumps`, for functions and their arguments: what pickle refuses goes through cloudpickle, where that is installed."""
    try:
        return dumps(*values)
    except Exception:
        try:
            import cloudpickle
        except ImportError:
            cloudpickle = None
        if cloudpickle is None:
            raise
        carrier = Carrier()
        with carrying(carrier):
            return b"".join(cloudpickle.dumps(value, protocol=5) for value in values), carrier.fds


def loads(data, fds):
    """The value of a pickle. The descriptors are its own from now on."""
    if not fds:
        return reduction.ForkingPickler.loads(data)
    with arriving(fds):
        return reduction.ForkingPickler.loads(data)


def reduce_handle(rebuild, handle, *args):
    """For `__reduce__` of what is known by one descriptor."""
    carrier = context.get_spawning_popen()
    return _rebuild, (rebuild, carrier.DupFd(carrier.duplicate_for_child(handle)), *args)


def _rebuild(rebuild, dup_fd, *args):
    fd = dup_fd.detach()
    try:
        return rebuild(fd, *args)
    finally:
        os.close(fd)
