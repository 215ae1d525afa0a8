"""Queues in shared memory: once `put` has returned, the item is in the queue, whichever process is killed.

The interface is that of `multiprocessing`, but there is no feeder thread. `put` itself writes the item, so a value that cannot
be pickled raises in `put`, and nothing needs to be joined at exit.
"""

import os
import threading
import types
import typing
from multiprocessing import queues as _standard
from queue import Empty, Full

from . import _polyproc, context
from .synchronize import SEM_VALUE_MAX

__all__ = ["Queue", "SimpleQueue", "JoinableQueue"]


class _End:
    """An end of a queue, for `multiprocessing.connection.wait` to wait on and `concurrent.futures` to read from."""

    def __init__(self, queue):
        self._queue = queue

    @property
    def closed(self):
        return self._queue._closed

    def fileno(self):
        if self.closed:
            raise OSError("handle is closed")
        return self._queue._fileno()

    def poll(self, timeout=0.0):
        return not self._queue.empty()

    def recv(self):
        return self._queue.get()

    def send(self, obj):
        self._queue.put(obj)

    def close(self):
        """Does nothing: both ends are the same queue, which stays in use."""


class _Queue(_polyproc.Queue):
    """The base class of the three kinds of queues."""

    def __getstate__(self):
        context.assert_spawning(self)
        collector = context.get_spawning_popen()
        return [collector.DupFd(collector.duplicate_for_child(fd)) for fd in self._fds()]

    def __setstate__(self, state):
        self._rebuild_from([dup_fd.detach() for dup_fd in state])

    def __reduce__(self):
        return _rebuild, (type(self), self.__getstate__())

    def _rebuild_from(self, fds):
        try:
            self._rebuild(fds)
        finally:
            for fd in fds:
                os.close(fd)

    @property
    def _reader(self):
        return _End(self)

    _writer = _reader

    def _poll(self, timeout=0.0):
        return self._reader.poll(timeout)

    @property
    def _rlock(self):
        """A new lock, for code that locks the standard library's queue while it reads. This queue needs none."""
        return threading.Lock()

    _wlock = _rlock

    def _put_failed(self, error, obj):
        raise error

    __class_getitem__ = classmethod(types.GenericAlias)


def _rebuild(kind, state):
    queue = kind.__new__(kind)
    queue.__setstate__(state)
    return queue


class OutOfSpace(Full, MemoryError):
    """Too many bytes are in flight: in all queues and pools of the program (see `set_memory_budget`), or in this queue.

    It is a `Full`, for programs that handle full queues, and a `MemoryError`.
    """


class MemoryBudget(typing.NamedTuple):
    """The shared memory of a program, all its processes together.

    Attributes:
        limit: how many bytes may be in flight.
        in_use: how many bytes are in flight, including memory that is kept for reuse.
    """

    limit: int
    in_use: int


def get_memory_budget():
    """Returns how many bytes of shared memory the queues and pools of this program may have in flight, and how many they have.

    The limit is half of the memory of the machine or the container, unless it was set by `set_memory_budget`.
    """
    return MemoryBudget(*_polyproc.memory_budget())


def set_memory_budget(limit):
    """Sets how many bytes of shared memory may be in flight, for all processes of this program.

    A `put` that finds no room blocks, and raises `OutOfSpace` after its timeout.
    """
    _polyproc.set_memory_budget(limit)


class Queue(_Queue, _standard.Queue):
    def __init__(self, maxsize=0, *, max_bytes=0, ctx):
        self._init(max(maxsize, 0), max(max_bytes, 0))
        self._maxsize = maxsize if maxsize > 0 else SEM_VALUE_MAX

    def __getstate__(self):
        return self._maxsize, super().__getstate__()

    def __setstate__(self, state):
        self._maxsize, fds = state
        super().__setstate__(fds)

    def _put_failed(self, error, obj):
        """Raises the error of a value that cannot be pickled, unless a subclass overrides `_on_queue_feeder_error`."""
        if type(self)._on_queue_feeder_error is Queue._on_queue_feeder_error:
            raise error
        self._on_queue_feeder_error(error, obj)

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """Handles a value that cannot be pickled. For subclasses to override, as in `multiprocessing`."""
        import traceback

        traceback.print_exception(type(e), e, e.__traceback__)

    def join_thread(self):
        """Returns at once, as there is no thread."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Does nothing, as there is no thread."""


class JoinableQueue(Queue, _standard.JoinableQueue):
    """A queue that counts unfinished items, for `task_done` and `join`."""


class SimpleQueue(_Queue, _standard.SimpleQueue):
    def __init__(self, *, ctx):
        self._init(0)

    def empty(self):
        if self._closed:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()
