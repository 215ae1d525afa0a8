"""Queues in shared memory: what `put` has returned for is in the queue, whoever is killed.

As in `multiprocessing`, with no thread behind them: `put` puts, so that items are there when it returns, a value that cannot
be pickled raises there and then, and nothing is left to be joined at exit.
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
    """A queue as what `multiprocessing.connection.wait` waits for, and `concurrent.futures` reads from."""

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
        """Does nothing: the other end is the same object, and in use."""


class _Queue(_polyproc.Queue):
    """What the three kinds have in common."""

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
        """A lock for code that holds the standard library's around what it reads; ours needs none."""
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

    A `Full`, for programs that know how to wait; and a `MemoryError`, which it would be anywhere else.
    """


class MemoryBudget(typing.NamedTuple):
    """Bytes of shared memory of a program, all its processes together."""

    limit: int
    in_use: int


def get_memory_budget():
    """How many bytes of shared memory the queues and pools of this program may have in flight, and how many they have now, with
    what they keep to use it again. Half of the machine's memory, or of the container's, unless it was set."""
    return MemoryBudget(*_polyproc.memory_budget())


def set_memory_budget(limit):
    """Sets how many bytes may be in flight, for all processes of this program. A put that finds no room waits, or raises
    `OutOfSpace` when its timeout is over."""
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
        """A class that wants to hear of values that cannot be pickled does so in its own way."""
        if type(self)._on_queue_feeder_error is Queue._on_queue_feeder_error:
            raise error
        self._on_queue_feeder_error(error, obj)

    @staticmethod
    def _on_queue_feeder_error(e, obj):
        """As in `multiprocessing`: to be overridden."""
        import traceback

        traceback.print_exception(type(e), e, e.__traceback__)

    def join_thread(self):
        """Returns at once, as there is no thread."""
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Does nothing, as there is no thread."""


class JoinableQueue(Queue, _standard.JoinableQueue):
    """A queue that counts the items that are not done."""


class SimpleQueue(_Queue, _standard.SimpleQueue):
    def __init__(self, *, ctx):
        self._init(0)

    def empty(self):
        if self._closed:
            raise OSError(f"Queue {self!r} is closed")
        return super().empty()
