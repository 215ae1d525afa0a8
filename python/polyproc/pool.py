"""Pools of processes on the engine: no call hangs when a process dies.

The interface is that of `multiprocessing`, with these differences:

- A worker that dies fails the task that it ran, with `WorkerLost`, and is replaced. With ``retries=`` the task is run again.
- ``timeout=`` ends a task that takes too long, `cancel()` a call that is not wanted any more, and ``memory_limit=`` a task that
  uses too much memory.
- A function or arguments that pickle refuses go through cloudpickle, if that is installed.
- An initializer that raises makes all tasks fail with `NoWorkers`, at once.
- `imap` and `imap_unordered` read ahead within a bound (``max_pending=``). Items that are unread when the pool is closed are
  read by `join`.
"""

from __future__ import annotations

import builtins
import concurrent.futures
import itertools
import numbers
import os
import signal
import threading
import warnings
import weakref
from multiprocessing import pool as _standard
from multiprocessing import util
from multiprocessing.pool import (
    CLOSE,
    INIT,
    RUN,
    TERMINATE,
    MaybeEncodingError,
    RemoteTraceback,
    ThreadPool,
    mapstar,
    starmapstar,
)

from . import TimeoutError, _pickling, _polyproc, context, get_context, resource_tracker, spawn

__all__ = ["Pool", "ThreadPool"]


# The setups of pools whose workers are forks, by key: each worker finds its setup in its copy of this process.
_setups = {}
_numbers = itertools.count()


class PoolError(Exception):
    """A task has no result, for a reason other than an exception of its own.

    Attributes:
        index: the index of the item of a `map` or `imap`, counted from 0; `None` if the call had one task only, or if a chunk
            of `map` failed as a whole.
    """

    index: int | None = None


class WorkerLost(PoolError):
    """The worker died while it ran the task.

    Attributes:
        pid: the worker's process id.
        exitcode: the worker's exit code, as that of a process object: negative for a signal.
        signal: the signal that killed it, or `None`.
    """

    pid: int | None = None
    exitcode: int | None = None

    @property
    def signal(self) -> signal.Signals | None:
        return signal.Signals(-self.exitcode) if self.exitcode is not None and self.exitcode < 0 else None


class OutOfMemory(PoolError, MemoryError):
    """The worker exceeded its memory limit while it ran the task, and was killed."""


class TaskTimeout(PoolError, TimeoutError, builtins.TimeoutError):
    """The task exceeded its time limit, and its worker was killed.

    Attributes:
        seconds: the time limit, in seconds.
    """

    seconds: float | None = None


class TaskCancelled(PoolError, concurrent.futures.CancelledError):
    """The task was cancelled."""


class TaskExited(PoolError):
    """The task raised `SystemExit` or another exception that is not an `Exception`. The worker keeps running."""


class PoolTerminated(PoolError):
    """The pool was terminated, or closed, before the task ended."""


class NoWorkers(PoolError):
    """No worker can run tasks: the initializer raised, or workers could not be started."""


def _rebuild_error(text, pickle):
    """Returns the exception that a task raised. Its cause is a `RemoteTraceback` with the traceback of the worker."""
    try:
        error = _pickling.loads(pickle, [])
    except Exception as reason:
        error = RuntimeError(f"the task raised an exception that cannot be rebuilt here: {reason!r}")
    error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""')
    return error


class ApplyResult(_standard.ApplyResult):
    """The future result of a call. Unlike in `multiprocessing`, it can be awaited."""

    def __init__(self, pool, outcome, callback=None, error_callback=None):
        self._pool = pool
        self._outcome = outcome
        if callback is not None or error_callback is not None:
            outcome.then(callback, error_callback)

    def ready(self):
        return self._outcome.ready()

    def successful(self):
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        try:
            self._outcome.result()
        except BaseException:
            return False
        return True

    def wait(self, timeout=None):
        self._outcome.wait(timeout)

    def get(self, timeout=None):
        if not self._outcome.wait(timeout):
            raise TimeoutError
        (value,) = self._outcome.result()
        return value

    def cancel(self):
        """Cancels the tasks that have not begun, and kills the workers that run the others. `get` raises `TaskCancelled`."""
        self._outcome.cancel()

    def _take_back(self):
        """Cancels the tasks that no worker has begun. Returns whether the call has ended as cancelled."""
        return self._outcome.take_back()

    def __await__(self):
        import asyncio

        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle(set_outcome, value):
            if not future.done():
                set_outcome(value)

        def when_over(set_outcome):
            return lambda value: loop.call_soon_threadsafe(settle, set_outcome, value)

        self._outcome.then(when_over(future.set_result), when_over(future.set_exception))
        return future.__await__()


AsyncResult = ApplyResult


class MapResult(ApplyResult, _standard.MapResult):
    """The future result of a `map`."""


# Containers whose iterators neither run user code nor block.
_CONTAINERS = (list, tuple, range, dict, set, frozenset, str, bytes, bytearray)


def _feed(results, unfed):
    """Reads the items of an `imap`, in a thread of its own."""
    results.feed()
    unfed.pop(results, None)


def _start_feeding(results, unfed):
    thread = threading.Thread(target=_feed, args=(results, unfed), name="polyproc-imap", daemon=True)
    unfed[results] = thread
    thread.start()


class IMapIterator(_standard.IMapIterator):
    """An iterator over the results of `Pool.imap`, in the order of the items."""

    def __init__(self, results, unfed):
        self._results = results
        self._unfed = unfed

    def __del__(self, _start_feeding=_start_feeding):
        # The tasks still run, as in `multiprocessing`; their results are discarded.
        if self._results.abandon():
            try:
                _start_feeding(self._results, self._unfed)
            except RuntimeError:  # the interpreter is shutting down
                self._results.stop()

    def __iter__(self):
        return self

    def next(self, timeout=None):
        found = self._results.next(timeout)
        if found is None:
            raise StopIteration
        if not found:
            raise TimeoutError
        return found[0]

    def __next__(self):
        return self.next()


class IMapUnorderedIterator(IMapIterator, _standard.IMapUnorderedIterator):
    """An iterator over the results of `Pool.imap_unordered`, in the order of their arrival."""


class _Singles(IMapIterator):
    """An iterator over results that returns each one in a list."""

    def next(self, timeout=None):
        return [super().next(timeout)]


class _Worker:
    """A worker, with the attributes and methods of a process object."""

    daemon = True

    def __init__(self, child):
        self._child = child
        self.name = child.name
        self.pid = self.ident = child.pid

    @property
    def exitcode(self):
        return self._child.poll()

    @property
    def sentinel(self):
        return self._child.fileno()

    def is_alive(self):
        return self.exitcode is None

    def join(self, timeout=None):
        self._child.wait(timeout)

    def terminate(self):
        self._send_signal(signal.SIGTERM)

    def kill(self):
        self._send_signal(signal.SIGKILL)

    def _send_signal(self, number):
        if self.exitcode is None:
            self._child.send_signal(number)

    def __eq__(self, other):
        return isinstance(other, _Worker) and self.pid == other.pid

    def __hash__(self):
        return hash(self.pid)

    def __repr__(self):
        how = "started" if self.exitcode is None else f"stopped exitcode={self.exitcode}"
        return f"<{type(self).__name__} name={self.name!r} pid={self.pid} {how} daemon>"


# All pools of this process that may have workers.
_pools = weakref.WeakSet()
os.register_at_fork(after_in_child=_pools.clear)


def active_workers():
    """Returns the workers of all pools of this process."""
    return [worker for pool in list(_pools) for worker in pool._pool]


def _limits(timeout, retries):
    if timeout is None and retries == 0:
        return None
    if timeout is not None:
        _check_number("timeout", timeout, numbers.Real)
    if isinstance(retries, bool) or not isinstance(retries, int):
        raise TypeError(f"retries must be an int, not {retries!r}")
    if not 0 <= retries < 1 << 31:
        raise ValueError(f"retries must be at least 0 and less than 2**31, not {retries!r}")
    return timeout, retries


def _check_number(name, value, kind: type = int, least=None):
    """Raises `TypeError` or `ValueError` unless an argument is a positive number of this kind, and not below `least`."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be {'an int' if kind is int else 'a number'}, not {value!r}")
    if not 0 < value < 1 << 62 or least is not None and value < least:
        raise ValueError(f"{name} must be {'positive' if least is None else f'at least {least}'}, not {value!r}")


# The smallest memory limit, in bytes: no interpreter runs in less.
_LEAST_MEMORY = 1 << 20


def _cpu_count():
    """Returns how many processors this process may use. Follows `PYTHON_CPU_COUNT` and `-X cpu_count` if Python does."""
    return os.process_cpu_count() or 1 if hasattr(os, "process_cpu_count") else len(os.sched_getaffinity(0))


def _name_argument(error, args, kwds):
    """Adds a note to an error of pickling that names the argument."""
    if isinstance(error.__cause__, RemoteTraceback) or not hasattr(error, "add_note"):
        return  # the task raised it; or Python is older than 3.11
    for name, value in (*enumerate(args), *kwds.items()):
        try:
            _pickling.dumps_task(value)
        except _pickling.REFUSED:
            what = f"argument {name}, counted from 0" if isinstance(name, int) else f"argument {name!r}"
            error.add_note(f"while pickling {what}: {type(value).__name__}")
            return


class Pool(_standard.Pool):
    """Worker processes that run tasks.

    The arguments of `multiprocessing.pool.Pool`, and:

    Args:
        memory_limit: how many bytes a worker may have in memory, including the memory that a fork has inherited and the items
            that it has put in queues and that were not taken. A task that needs more raises `OutOfMemory`.
        max_waiting_bytes: how many bytes of pickled arguments may wait for workers. Above this limit, `apply_async` and
            `map_async` block before they submit more tasks.
    """

    _wrap_exception = True

    @staticmethod
    def Process(ctx, *args, **kwds):
        """Returns a process object of a context, as in `multiprocessing`."""
        return ctx.Process(*args, **kwds)

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
        *,
        memory_limit=None,
        max_waiting_bytes=None,
    ):
        self._state = INIT
        self._ctx = context or get_context()
        if processes is None:
            processes = _cpu_count()
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if memory_limit is not None:
            _check_number("memory_limit", memory_limit, least=_LEAST_MEMORY)
        if max_waiting_bytes is not None:
            _check_number("max_waiting_bytes", max_waiting_bytes)
        if maxtasksperchild is not None and (not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        # Keeps the arguments alive as long as the pool, as `multiprocessing` does: workers may rebuild proxies from them.
        self._initializer, self._initargs = initializer, initargs
        # The engine's iterators of `imap` calls with unread items; and the threads that read the items, if any.
        self._imaps = {}
        limits = maxtasksperchild, memory_limit, max_waiting_bytes
        self._pool_of_engine = self._start(processes, (initializer, initargs), limits)
        self._terminate = util.Finalize(self, Pool._terminate_engine, (self._pool_of_engine,), exitpriority=15)
        self._state = RUN
        _pools.add(self)

    def _start(self, processes, initializer, limits):
        method = str(self._ctx.get_start_method())
        # A template: each worker runs a copy of this process object.
        worker = self.Process(self._ctx)
        worker.daemon = True
        name = type(worker).__name__.replace("Process", "PoolWorker")
        setup = (worker, method, initializer)
        util._flush_std_streams()
        if method == "fork":
            from . import _child  # before the forks: its fork hook marks them as copies

            resource_tracker.share()
            # The workers find the setup in their copy of this process.
            key = next(_numbers)
            _setups[key] = setup
            return _polyproc.Pool(method, processes, name, _pickling.dumps_setup(None, key), limits)

        def start(unsent):
            return _polyproc.Pool(method, processes, name, _pickling.dumps_setup(unsent, setup), limits)

        preparation = spawn.get_preparation_data()
        spawn.set_program()
        if method == "spawn":
            return start(preparation)
        from . import forkserver

        return forkserver.with_preload(preparation, start)

    @staticmethod
    def _terminate_engine(engine):
        engine.terminate()
        engine.join()

    def __del__(self, _warn=warnings.warn, RUN=RUN):
        if self._state == RUN:
            _warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self)

    def __repr__(self):
        kind = type(self)
        return f"<{kind.__module__}.{kind.__qualname__} state={self._state} pool_size={self._processes}>"

    def _check_running(self):
        if self._state != RUN:
            raise ValueError("Pool not running")

    def apply(self, func, args=(), kwds={}, *, timeout=None, retries=0):
        """Returns the result of `func(*args, **kwds)`, run in a worker.

        Args:
            timeout: how many seconds the task may take. Then its worker is killed, and `TaskTimeout` is raised.
            retries: how many times the task is run again after its worker is lost.

        Raises:
            PoolError: if the task has no result: `WorkerLost`, for example.
            ValueError: if the pool is not running.
        """
        self._check_running()
        args, limits = tuple(args), _limits(timeout, retries)
        try:
            return self._pool_of_engine.apply(func, args, kwds, limits)
        except _pickling.REFUSED as error:
            _name_argument(error, args, kwds)
            raise

    def apply_async(self, func, args=(), kwds={}, callback=None, error_callback=None, *, timeout=None, retries=0):
        """Asynchronous version of `apply()`: returns an `ApplyResult`."""
        self._check_running()
        args, limits = tuple(args), _limits(timeout, retries)
        try:
            outcome = self._pool_of_engine.apply_async(func, args, kwds, limits)
        except _pickling.REFUSED as error:
            _name_argument(error, args, kwds)
            raise
        return ApplyResult(self, outcome, callback, error_callback)

    def map(self, func, iterable, chunksize=None, *, timeout=None, retries=0):
        """Returns a list of the results of `func` for each element of `iterable`.

        With `timeout` or `retries`, as in `apply()`, each element has a limit of its own and fails alone. Otherwise a lost
        worker fails the whole chunk that it ran.
        """
        return self._map(func, iterable, False, chunksize, timeout, retries, is_bulk=True).get()

    def starmap(self, func, iterable, chunksize=None, *, timeout=None, retries=0):
        """Like `map()`, but each element is unpacked as the arguments of `func`."""
        return self._map(func, iterable, True, chunksize, timeout, retries, is_bulk=True).get()

    def map_async(self, func, iterable, chunksize=None, callback=None, error_callback=None, *, timeout=None, retries=0):
        """Asynchronous version of `map()`: returns a `MapResult`."""
        return self._map(func, iterable, False, chunksize, timeout, retries, callback, error_callback)

    def starmap_async(self, func, iterable, chunksize=None, callback=None, error_callback=None, *, timeout=None, retries=0):
        """Asynchronous version of `starmap()`: returns a `MapResult`."""
        return self._map(func, iterable, True, chunksize, timeout, retries, callback, error_callback)

    def _map(self, func, iterable, star, chunksize, timeout, retries, callback=None, error_callback=None, is_bulk=False):
        self._check_running()
        values = iterable if type(iterable) is list else list(iterable)
        if chunksize is None:
            chunksize = -(-len(values) // (self._processes * 4))
        elif chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        outcome = self._pool_of_engine.map_async(func, values, chunksize, star, is_bulk, _limits(timeout, retries))
        return MapResult(self, outcome, callback, error_callback)

    def imap(self, func, iterable, chunksize=1, *, max_pending=None, max_pending_bytes=None, timeout=None, retries=0):
        """Returns an iterator over the results of `map()`. Unlike in `multiprocessing`, it reads ahead within a bound.

        Args:
            max_pending: how many tasks may run or have results that were not taken; 512 for each worker by default.
            max_pending_bytes: about how many bytes their arguments and results may have; by default an eighth of the budget
                (`set_memory_budget`), at most 256 MiB.
        """
        ahead = (max_pending, max_pending_bytes)
        return self._imap(IMapIterator, func, iterable, chunksize, ahead, timeout, retries)

    def imap_unordered(self, func, iterable, chunksize=1, *, max_pending=None, max_pending_bytes=None, timeout=None, retries=0):
        """Like `imap()`, with the results in the order of their arrival."""
        ahead = (max_pending, max_pending_bytes)
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize, ahead, timeout, retries)

    def _imap(self, kind, func, iterable, chunksize, ahead, timeout, retries):
        self._check_running()
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize:n}")
        limits = _limits(timeout, retries)
        results = self._read_ahead(func, iterable, chunksize, kind is IMapIterator, ahead, limits)
        results = kind(results, self._imaps)
        results._pool = self  # keeps the pool alive while its results are taken, as in `multiprocessing`
        return results if chunksize == 1 else (item for chunk in results for item in chunk)

    def _imap_chunks(self, func, iterable, chunksize, max_pending):
        """Like `imap`, but returns an iterator over lists of results, which has `next(timeout)`."""
        results = self._read_ahead(func, iterable, chunksize, True, (max_pending, None), None, is_own_thread=False)
        return (IMapIterator if chunksize > 1 else _Singles)(results, self._imaps)

    def _read_ahead(self, func, iterable, chunksize, ordered, ahead, limits, is_own_thread=None):
        if is_own_thread is None:
            # An iterator may wait for an earlier result, or be endless: the thread that takes results must not run it.
            is_own_thread = type(iterable) not in _CONTAINERS
        items, size = ahead
        for name, value in (("max_pending", items), ("max_pending_bytes", size)):
            if value is not None:
                _check_number(name, value)
        ahead = (items or 512 * self._processes, size)
        results = self._pool_of_engine.imap(func, iter(iterable), chunksize, ordered, ahead, limits)
        for imap in [imap for imap in list(self._imaps) if imap.is_fed()]:
            self._imaps.pop(imap, None)
        if is_own_thread:
            _start_feeding(results, self._imaps)
        else:
            results.begin()
            if not results.is_fed():
                self._imaps[results] = None
        return results

    @property
    def _pool(self):
        """The running workers. A worker that dies is replaced."""
        return [_Worker(child) for child in self._pool_of_engine.workers()]

    def _repopulate_pool(self):
        """Does nothing: the engine replaces workers at once."""

    def resize(self, processes):
        """Sets the number of workers to `processes`."""
        _check_number("processes", processes)
        self._pool_of_engine.resize(processes)
        self._processes = processes

    def close(self):
        util.debug("closing pool")
        if self._state == RUN:
            self._state = CLOSE
            if not self._imaps:
                self._pool_of_engine.close()

    def terminate(self):
        util.debug("terminating pool")
        self._state = TERMINATE
        for imap in list(self._imaps):
            imap.stop()
        self._terminate()

    def join(self):
        util.debug("joining pool")
        if self._state == RUN:
            raise ValueError("Pool is still running")
        if self._state not in (CLOSE, TERMINATE):
            raise ValueError("In unknown state")
        if self._state == CLOSE:
            self._drain()
        self._pool_of_engine.close()
        self._pool_of_engine.join()

    def _drain(self):
        """Reads the remaining items of all `imap` calls, and blocks until they are submitted."""
        for imap, thread in list(self._imaps.items()):
            imap.drain()
            if thread is not None and thread is not threading.current_thread():
                thread.join()
            self._imaps.pop(imap, None)

    def __reduce__(self):
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __enter__(self):
        self._check_running()
        return self

    def __exit__(self, exc_type, exc_val, exc_tb):
        self.terminate()
