"""Locks in shared memory without a name: none is left behind, and the death of an owner is detected.

The interface is that of `multiprocessing`, but the objects can also be sent through queues, pipes and pools. If the owner of a
lock dies (by a signal, or `os._exit`), the next process that acquires it gets a `RuntimeWarning`: the protected data may be
inconsistent. An owner that ends normally keeps the lock until a process releases it.
"""

import atexit
import sys
from multiprocessing import synchronize as _standard

from . import _polyproc, context
from ._pickling import reduce_place

__all__ = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"]

RECURSIVE_MUTEX, SEMAPHORE = _polyproc.RECURSIVE_MUTEX, _polyproc.SEMAPHORE
SEM_VALUE_MAX = _polyproc.SemLock.SEM_VALUE_MAX


atexit.register(_polyproc.leave_locks)


class SemLock(_standard.SemLock):
    """The base class of locks and semaphores."""

    def __init__(self, kind, value, maxvalue, *, ctx):
        self._semlock = _polyproc.SemLock(kind, value, maxvalue)
        self._make_methods()

    def __enter__(self):
        return self._semlock.acquire()

    def __exit__(self, kind, error, traceback):
        self._semlock.release()

    def __getstate__(self):
        context.assert_spawning(self)
        lock = self._semlock
        return reduce_place(_polyproc.SemLock._rebuild, lock, lock.kind, lock.maxvalue)

    def __setstate__(self, state):
        rebuild, args = state
        self._semlock = rebuild(*args)
        self._make_methods()

    def locked(self):
        """Returns whether the lock is held; for a semaphore, whether its value is 0."""
        return self._semlock._is_zero()


class Semaphore(SemLock, _standard.Semaphore):
    def __init__(self, value=1, *, ctx):
        SemLock.__init__(self, SEMAPHORE, value, SEM_VALUE_MAX, ctx=ctx)


class BoundedSemaphore(Semaphore, _standard.BoundedSemaphore):
    def __init__(self, value=1, *, ctx):
        SemLock.__init__(self, SEMAPHORE, value, value, ctx=ctx)


class Lock(SemLock, _standard.Lock):
    def __init__(self, *, ctx):
        SemLock.__init__(self, _polyproc.LOCK, 1, 1, ctx=ctx)


class RLock(SemLock, _standard.RLock):
    def __init__(self, *, ctx):
        SemLock.__init__(self, RECURSIVE_MUTEX, 1, 1, ctx=ctx)


class _Object:
    """The base class of the other classes: a wrapper of one object of the engine."""

    def _set(self, shared):
        self._shared = shared

    def _reduced(self):
        context.assert_spawning(self)
        return reduce_place(type(self._shared)._rebuild, self._shared)

    def __getstate__(self):
        return self._reduced()

    def __setstate__(self, state):
        rebuild, args = state
        self._set(rebuild(*args))


class _Count:
    """A count of the standard library's condition, as its tests read it."""

    def __init__(self, get_value):
        self.get_value = get_value


class Condition(_Object, _standard.Condition):
    def __init__(self, lock=None, *, ctx):
        self._lock = lock or ctx.RLock()
        self._set(_polyproc.Condition())

    def _set(self, shared):
        super()._set(shared)
        self._make_methods()

    def __getstate__(self):
        return self._reduced(), self._lock

    def __setstate__(self, state):
        reduced, self._lock = state
        super().__setstate__(reduced)

    @property
    def _sleeping_count(self):
        return _Count(self._shared.waiting)

    @property
    def _woken_count(self):
        return _Count(lambda: 0)

    _wait_semaphore = _woken_count

    def __repr__(self):
        return f"<{type(self).__name__}({self._lock}, {self._shared.waiting()})>"

    def wait(self, timeout=None):
        assert self._lock._semlock._is_mine(), "must acquire() condition before using wait()"
        ticket = self._shared.enter(timeout)
        if ticket is None:
            return False
        count = self._lock._semlock._count()
        for _ in range(count):
            self._lock.release()
        try:
            return ticket.wait(timeout)
        finally:
            for _ in range(count):
                self._lock.acquire()

    def notify(self, n=1):
        assert self._lock._semlock._is_mine(), "lock is not owned"
        self._shared.notify(min(n, sys.maxsize))


class Event(_Object, _standard.Event):
    def __init__(self, *, ctx):
        self._set(_polyproc.Event())

    def _set(self, shared):
        super()._set(shared)
        self.is_set, self.set, self.clear, self.wait = shared.is_set, shared.set, shared.clear, shared.wait

    def __repr__(self):
        return f"<{type(self).__qualname__} at {id(self):#x} {'set' if self.is_set() else 'unset'}>"


class Barrier(_Object, _standard.Barrier):
    def __init__(self, parties, action=None, timeout=None, *, ctx):
        if parties < 1:
            raise ValueError("parties must be >= 1")
        self._action, self._timeout = action, timeout
        self._set(_polyproc.Barrier(parties))

    def __getstate__(self):
        return self._reduced(), self._action, self._timeout

    def __setstate__(self, state):
        reduced, self._action, self._timeout = state
        super().__setstate__(reduced)

    def wait(self, timeout=None):
        return self._shared.wait(self._timeout if timeout is None else timeout, self._action)

    def reset(self):
        self._shared.reset()

    def abort(self):
        self._shared.abort()

    @property
    def parties(self):
        return self._shared.parties

    @property
    def n_waiting(self):
        return self._shared.n_waiting

    @property
    def broken(self):
        return self._shared.broken

    def __repr__(self):
        if self.broken:
            return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: broken>"
        waiters = f"waiters={self.n_waiting}/{self.parties}"
        return f"<{type(self).__module__}.{type(self).__qualname__} at {id(self):#x}: {waiters}>"
