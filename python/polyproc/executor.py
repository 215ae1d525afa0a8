"""`concurrent.futures.ProcessPoolExecutor` on the engine's pool: a worker that dies fails the one future that it ran, with a
`BrokenProcessPool` that is a `WorkerLost`, too, and the executor goes on."""

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

# Futures that are not done: work that was submitted is done before the program ends.
_pending = set()


# In a copy of this process nobody ends them.
os.register_at_fork(after_in_child=_pending.clear)


class _WorkerLost(WorkerLost, BrokenProcessPool):
    """A worker died while it ran a call."""


class _NoWorkers(NoWorkers, BrokenProcessPool):
    """The initializer raised, or workers do not start."""


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
    # As in the standard executor: what workers rebuild from arguments (proxies of a manager) lives until the call ends.
    _call = None

    def cancel(self):
        """Takes the call back, unless a worker has begun with it."""
        if not self.done() and not self._result_of_pool._take_back():
            return False
        return super().cancel()

    def running(self):
        """Returns whether a worker has begun with the call, which has not ended."""
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
    """Runs calls in worker processes. Options are those of `polyproc.pool.Pool`."""

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
            except REFUSED as error:  # what cannot be pickled is the future's error
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
        """Gives an iterator of ``fn`` of what the iterables give, in order.

        Args:
            timeout: seconds after which the iterator raises `TimeoutError` instead.
            chunksize: how many calls go to a worker at once.
            buffersize: how many calls may be under way or not taken; what the iterables give is read no further.
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
        """Ends the workers by SIGTERM, and with it the executor: what has not ended fails."""
        self._end_workers("terminate")

    def kill_workers(self) -> None:
        """Ends the workers by SIGKILL, and with it the executor: what has not ended fails."""
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
                if type(error) is not context.TimeoutError:  # that of the task
                    raise
                raise TimeoutError from None
            except (WorkerLost, NoWorkers, PoolTerminated) as error:
                raise _as_of_executor(error) from error.__cause__
            chunk.reverse()
            while chunk:
                yield chunk.pop()  # it is not kept
    finally:
        chunks._results.take_back()  # nobody asks for the rest


@atexit.register
def _finish():
    wait(list(_pending))
