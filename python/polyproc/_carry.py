"""Values on their way to another process: pickles, and the descriptors that they speak of.

What can be given to a new process (locks, queues, connections, shared memory) can so be sent through queues, pipes and pools,
too: a :class:`Carrier` stands in for the process object that `multiprocessing`'s reducers ask for.
"""

import io
import os
import pickle
import threading
from typing import Any

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
        self.clear()

    def clear(self):
        self.fds = []
        self._shared = {}

    def duplicate_for_child(self, fd):
        self.fds.append(fd)
        return len(self.fds) - 1

    def share_with_child(self, fd):
        """As `duplicate_for_child`, for what many have in common."""
        place = self._shared.get(fd)
        if place is None:
            place = self._shared[fd] = self.duplicate_for_child(fd)
        return place


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


# Buffers of so many bytes go beside the pickle.
_LARGE = 16 << 10


def _is_in_the_pickle(buffer, buffers):
    """For a pickler: whether a buffer is to be in the pickle; else it goes to `buffers`."""
    try:
        raw = buffer.raw()
    except BufferError:
        return True
    if raw.nbytes < _LARGE:
        return True
    buffers.append(raw)
    return False


def _pickler(data, callback):
    return reduction.ForkingPickler(data, 5, True, callback)


def _dump(pickler, values, buffers):
    """The pickles of values, one after the other, and the descriptors in them. Large buffers go to the list `buffers`."""
    data, carrier = io.BytesIO(), Carrier()

    callback = None if buffers is None else lambda buffer: _is_in_the_pickle(buffer, buffers)
    with carrying(carrier):
        for value in values:
            pickler(data, callback).dump(value)
    return data.getvalue(), carrier.fds


# How pickle refuses. Whatever else is raised is another's: of a signal handler, say, that ran meanwhile.
_REFUSED = (pickle.PicklingError, AttributeError, TypeError)


def _pickler_by_value():
    """That of cloudpickle, which takes what pickle refuses; `None` where it is not installed."""
    try:
        from cloudpickle import CloudPickler
    except ImportError:
        return None
    return lambda data, callback: CloudPickler(data, 5, callback)


class _Kept:
    """What it takes to pickle one value after the other, made once for each thread: it costs more than a small pickle."""

    def __init__(self):
        self.data = io.BytesIO()
        self.carrier: Any = Carrier()
        self.buffers = []
        self.pickler = _pickler(self.data, self.is_in_the_pickle)

    def is_in_the_pickle(self, buffer):
        return _is_in_the_pickle(buffer, self.buffers)

    def dump(self, value):
        outer = context.get_spawning_popen()
        context.set_spawning_popen(self.carrier)
        try:
            self.pickler.dump(value)
        finally:
            context.set_spawning_popen(outer)
        result = self.data.getvalue(), self.carrier.fds, self.buffers
        self.carrier.clear()
        self.buffers = []
        self.pickler.clear_memo()
        self.data.seek(0)
        self.data.truncate()
        return result


def dumps(value):
    """The pickle of a value, the descriptors that it speaks of, which belong to what is in it, and its large buffers."""
    kept = getattr(_local, "kept", None) or _Kept()
    _local.kept = None  # for who pickles while this pickles, and where this fails
    result = kept.dump(value)
    if len(result[0]) < _LARGE:
        _local.kept = kept
    return result


def dumps_task(value):
    """As `dumps`, for functions and arguments: what pickle refuses goes through cloudpickle, where that is installed."""
    try:
        return dumps(value)
    except _REFUSED:
        pickler = _pickler_by_value()
        if pickler is None:
            raise
    buffers = []
    return (*_dump(pickler, (value,), buffers), buffers)


def dumps_values(*values):
    """Pickles with all in them, and their descriptors."""
    return _dump(_pickler, values, None)


def dumps_setup(*values):
    """As `dumps_values`, by cloudpickle at need."""
    try:
        return dumps_values(*values)
    except _REFUSED:
        pickler = _pickler_by_value()
        if pickler is None:
            raise
    return _dump(pickler, values, None)


def loads(data, fds, buffers=None):
    """The value of a pickle. The descriptors are its own from now on."""
    if not fds:
        return pickle.loads(data, buffers=buffers)
    with arriving(fds):
        return pickle.loads(data, buffers=buffers)


def reduce_place(rebuild, shared, *args):
    """For `__reduce__` of what is known by a descriptor, which many may have in common, and where it is in that file."""
    carrier = context.get_spawning_popen()
    return _rebuild, (rebuild, carrier.share_with_child(shared.handle), shared.place, *args)


def _rebuild(rebuild, fd, *args):
    return rebuild(_local.arrived[fd], *args)
