"""`concurrent.futures.ProcessPoolExecutor` on the engine's pool.

A worker that dies fails only the future that it ran. The exception is both a `WorkerLost` and a `BrokenProcessPool`; the
executor keeps running.
"""

from __future__ import annotations

import atexit
import functools
import os
import threading
import time
from concurrent.futures import Executor, Future, TimeoutError, wait
from concurrent.futures.process import BrokenProcessPool, _RemoteTraceback
from typing import TYPE_CHECKING, Any

from . import context
from ._pickling import REFUSED
from .pool import NoWorkers, Pool, PoolTerminated, RemoteTraceback, TaskCancelled, WorkerLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext
    from typing import ParamSpec, TypeVar

    P = ParamSpec("P")
    T = TypeVar("T")

__all__ = ["ProcessPoolExecutor"]

# Futures that are not done. The program waits for them before it ends (`_finish`).
_pending = set()


# A forked copy of this process never completes them.
os.register_at_fork(after_in_child=_pending.clear)


class _WorkerLost(WorkerLost, BrokenProcessPool):
    """A worker died while it ran a call."""


class _NoWorkers(NoWorkers, BrokenProcessPool):
    """The initializer raised, or workers could not be started."""


class _Terminated(PoolTerminated, BrokenProcessPool):
    """The workers were terminated or killed."""


def _as_of_executor(error):
    for kind in (_WorkerLost, _NoWorkers, _Terminated):
        if type(error) is kind.__bases__[0]:
            broken = kind(*error.args)
            vars(broken).update(vars(error))
            broken.__cause__ = error.__cause__
            return broken
    if isinstance(error.__cause__, RemoteTraceback):
        error.__cause__ = _RemoteTraceback(error.__cause__.tb)
    return error


class _Future(Future):
    _result_of_pool = None
    # Keeps the arguments alive until the call ends, as the standard executor does: a worker may rebuild proxies from them.
    _call = None

    def cancel(self):
        """Cancels the call unless a worker has begun it. Returns whether the call is cancelled."""
        if not self.done() and not self._result_of_pool._take_back():
            return False
        return super().cancel()

    def running(self):
        """Returns whether a worker has begun the call and the call has not ended."""
        return self._result_of_pool is not None and not self.done() and self._result_of_pool._outcome.is_running()

    def _succeed(self, value):
        _pending.discard(self)
        self._call = None
        if self.set_running_or_notify_cancel():
            self.set_result(value)

    def _fail(self, error):
        _pending.discard(self)
        self._call = None
        if isinstance(error, TaskCancelled):
            super().cancel()
        if self.set_running_or_notify_cancel():
            self.set_exception(_as_of_executor(error))


class ProcessPoolExecutor(Executor):
    """Runs calls in worker processes.

    The options `memory_limit` and `max_waiting_bytes` are those of `polyproc.pool.Pool`; the other arguments are those of the
    standard executor.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        memory_limit: int | None = None,
        max_waiting_bytes: int | None = None,
    ):
        if max_workers is not None and max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        options = {"memory_limit": memory_limit, "max_waiting_bytes": max_waiting_bytes}
        self._pool = Pool(max_workers, initializer, initargs, max_tasks_per_child, mp_context, **options)
        self._max_workers = self._pool._processes
        self._is_shut = False
        self._lock = threading.Lock()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future = _Future()
        with self._lock:
            self._check_running()
            _pending.add(future)
            try:
                future._call = (fn, args, kwargs)
                future._result_of_pool = self._pool.apply_async(fn, args, kwargs)
            except REFUSED as error:  # arguments that cannot be pickled fail the future
                future._fail(error)
                return future
            except BaseException:
                _pending.discard(future)
                raise
        future._result_of_pool._outcome.then(future._succeed, future._fail)
        return future

    submit.__doc__ = Executor.submit.__doc__

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Returns an iterator over the results of ``fn`` for the items of the iterables, in order.

        Args:
            timeout: seconds from this call on, after which the iterator raises `TimeoutError`.
            chunksize: how many calls are sent to a worker together.
            buffersize: how many calls may run or have results that were not taken. At this limit the iterables are not read.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        with self._lock:
            self._check_running()
            results = self._pool._imap_chunks(
                functools.partial(_call, fn), zip(*iterables), chunksize, buffersize and -(-buffersize // chunksize)
            )
        return _results(results, None if timeout is None else time.monotonic() + timeout)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            self._is_shut = True
        if cancel_futures:
            for future in list(_pending):
                if future._result_of_pool is not None and future._result_of_pool._pool is self._pool:
                    future.cancel()
        self._pool.close()
        if wait:
            self._pool.join()

    shutdown.__doc__ = Executor.shutdown.__doc__

    @property
    def _processes(self):
        return {worker.pid: worker for worker in self._pool._pool}

    def terminate_workers(self) -> None:
        """Ends the workers by `SIGTERM` and shuts the executor down. Futures that are not done fail."""
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """Ends the workers by `SIGKILL` and shuts the executor down. Futures that are not done fail."""
        self._end_workers("kill")

    def _end_workers(self, how):
        with self._lock:
            self._is_shut = True
        for worker in self._pool._pool:
            getattr(worker, how)()
        self._pool.terminate()

    def _check_running(self):
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")


def _call(fn, args):
    return fn(*args)


def _results(chunks, end):
    try:
        while True:
            try:
                chunk = chunks.next(None if end is None else max(end - time.monotonic(), 0))
            except StopIteration:
                return
            except context.TimeoutError as error:
                if type(error) is not context.TimeoutError:  # raised by the task
                    raise
                raise TimeoutError from None
            except (WorkerLost, NoWorkers, PoolTerminated) as error:
                raise _as_of_executor(error) from error.__cause__
            chunk.reverse()
            while chunk:
                yield chunk.pop()  # without a reference to the result
    finally:
        chunks._results.take_back()  # cancels the calls that have not begun


@atexit.register
def _finish():
    wait(list(_pending))
