"""Contexts: the public functions, bound to a start method, as in `multiprocessing`. The default is ``forkserver``."""

from __future__ import annotations

import os
import sys
from multiprocessing import context as _standard
from multiprocessing import process
from multiprocessing.context import (
    AuthenticationError,
    BufferTooShort,
    ProcessError,
    TimeoutError,
    assert_spawning,
    get_spawning_popen,
    set_spawning_popen,
)
from typing import TYPE_CHECKING, Any

from . import reduction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .connection import Connection
    from .managers import SyncManager
    from .pool import Pool
    from .queues import JoinableQueue, Queue, SimpleQueue
    from .synchronize import Barrier, BoundedSemaphore, Condition, Event, Lock, RLock, Semaphore

__all__ = ()


class StartError(ProcessError, OSError):
    """A process could not be started; none of its code ran.

    Attributes:
        errno: the system's error number, or `None` if the failure is not a system error.
    """


class BaseContext(_standard.BaseContext):
    StartError = StartError

    @staticmethod
    def active_children() -> list[Any]:
        """Returns a list of the process objects of all running children, including the workers of pools."""
        pool = sys.modules.get("polyproc.pool")
        return process.active_children() + (pool.active_workers() if pool is not None else [])

    def Pipe(self, duplex: bool = True) -> tuple[Connection, Connection]:
        """Returns two connection objects connected by a pipe."""
        from .connection import Pipe

        return Pipe(duplex)

    def Lock(self) -> Lock:
        """Returns a non-recursive lock object."""
        from .synchronize import Lock

        return Lock(ctx=self.get_context())

    def RLock(self) -> RLock:
        """Returns a recursive lock object."""
        from .synchronize import RLock

        return RLock(ctx=self.get_context())

    def Condition(self, lock: Lock | RLock | None = None) -> Condition:
        """Returns a condition object."""
        from .synchronize import Condition

        return Condition(lock, ctx=self.get_context())

    def Semaphore(self, value: int = 1) -> Semaphore:
        """Returns a semaphore object."""
        from .synchronize import Semaphore

        return Semaphore(value, ctx=self.get_context())

    def BoundedSemaphore(self, value: int = 1) -> BoundedSemaphore:
        """Returns a bounded semaphore object."""
        from .synchronize import BoundedSemaphore

        return BoundedSemaphore(value, ctx=self.get_context())

    def Event(self) -> Event:
        """Returns an event object."""
        from .synchronize import Event

        return Event(ctx=self.get_context())

    def Barrier(self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None) -> Barrier:
        """Returns a barrier object."""
        from .synchronize import Barrier

        return Barrier(parties, action, timeout, ctx=self.get_context())

    def Queue(self, maxsize: int = 0, *, max_bytes: int = 0) -> Queue:
        """Returns a queue object for at most `maxsize` items of at most `max_bytes` bytes in total; 0 means no limit."""
        from .queues import Queue

        return Queue(maxsize, max_bytes=max_bytes, ctx=self.get_context())

    def JoinableQueue(self, maxsize: int = 0, *, max_bytes: int = 0) -> JoinableQueue:
        """Returns a queue object with `task_done` and `join`. Its limits are those of `Queue`."""
        from .queues import JoinableQueue

        return JoinableQueue(maxsize, max_bytes=max_bytes, ctx=self.get_context())

    def SimpleQueue(self) -> SimpleQueue:
        """Returns a queue object with `get`, `put`, `empty` and `close` only."""
        from .queues import SimpleQueue

        return SimpleQueue(ctx=self.get_context())

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        memory_limit: int | None = None,
        max_waiting_bytes: int | None = None,
    ) -> Pool:
        """Returns a process pool object. `polyproc.pool.Pool` explains the arguments."""
        from .pool import Pool

        options = {"memory_limit": memory_limit, "max_waiting_bytes": max_waiting_bytes}
        return Pool(processes, initializer, initargs, maxtasksperchild, context=self.get_context(), **options)

    def Manager(self) -> SyncManager:
        """Returns a manager associated with a running server process.

        The manager's methods, such as `Lock()`, `Condition()` and `Queue()`, create shared objects.
        """
        from .managers import SyncManager

        manager = SyncManager(ctx=self.get_context())
        manager.start()
        return manager

    def freeze_support(self) -> None:
        """Runs this process as a child if a frozen program (by PyInstaller, for example) started it; then it does not return.

        Must be called first in the main module of such a program. Does nothing in any other process.
        """
        from .spawn import freeze_support

        freeze_support()

    def set_executable(self, executable: str) -> None:
        """Sets the path of the interpreter that runs child processes, in place of `sys.executable`. Does not affect `fork`."""
        from .spawn import set_executable

        set_executable(executable)

    def set_forkserver_preload(self, module_names: list[str], *, on_error: str = "ignore") -> None:
        """Sets the modules that the fork server imports before it creates processes, which then share them.

        If ``"__main__"`` is among them, the main module is imported, whatever it holds. Without a call of this function, it is
        imported if it holds nothing that processes must not share.

        Args:
            on_error: what happens if a module cannot be imported: ``"ignore"`` leaves it out, ``"warn"`` also warns in the
                fork server, and ``"fail"`` makes the next start raise `StartError`.
        """
        from .forkserver import set_forkserver_preload

        set_forkserver_preload(module_names, on_error=on_error)

    def get_context(self, method=None):
        if method is None:
            return self
        try:
            return _concrete_contexts[method]
        except KeyError:
            raise ValueError(f"cannot find context for {method!r}") from None

    @property
    def reducer(self):
        """Controls how objects are reduced to a form that can be shared with other processes."""
        return globals().get("reduction")

    @reducer.setter
    def reducer(self, reduction):
        globals()["reduction"] = reduction


# Type checkers do not know `_standard.Process`.
_StandardProcess = process.BaseProcess if TYPE_CHECKING else _standard.Process


class _Process(_StandardProcess):
    """The base class of processes of all start methods. Unlike in `multiprocessing`, daemonic processes may have children."""

    def start(self):
        """Starts the child process. Raises `StartError` if it cannot be started."""
        self._check_closed()
        assert self._popen is None, "cannot start a process twice"
        assert self._parent_pid == os.getpid(), "can only start a process object created by current process"
        process._cleanup()
        self._popen = self._Popen(self)
        self._sentinel = self._popen.sentinel
        del self._target, self._args, self._kwargs  # they may refer to this object
        process._children.add(self)

    def interrupt(self):
        """Interrupts the process by `SIGINT`."""
        self._check_closed()
        self._popen.interrupt()

    @staticmethod
    def _after_fork():
        from . import util

        util._finalizer_registry.clear()
        util._run_after_forkers()

    def _bootstrap(self, parent_sentinel=None):
        if self._start_method is not None:
            _force_start_method(self._start_method)
        return super()._bootstrap(parent_sentinel)


class Process(_Process):
    _start_method = None

    @staticmethod
    def _Popen(process_obj):
        return _default_context.get_context().Process._Popen(process_obj)

    @staticmethod
    def _after_fork():
        return _default_context.get_context().Process._after_fork()


class DefaultContext(BaseContext):
    Process = Process

    def __init__(self, context):
        self._default_context = context
        self._actual_context = None

    def get_context(self, method=None):
        if method is not None:
            return super().get_context(method)
        if self._actual_context is None:
            self._actual_context = self._default_context
        return self._actual_context

    def set_start_method(self, method, force=False):
        if self._actual_context is not None and not force:
            raise RuntimeError("context has already been set")
        if method is None and force:
            self._actual_context = None
            return
        self._actual_context = self.get_context(method)

    def get_start_method(self, allow_none=False):
        if self._actual_context is None:
            if allow_none:
                return None
            self._actual_context = self._default_context
        return self._actual_context._name

    def get_all_start_methods(self) -> list[str]:
        """Returns a list of the supported start methods, default first."""
        return ["forkserver", "spawn", "fork"]


class ForkProcess(_Process):
    _start_method = "fork"

    @staticmethod
    def _Popen(process_obj):
        from .popen_fork import Popen

        return Popen(process_obj)


class SpawnProcess(_Process):
    _start_method = "spawn"

    @staticmethod
    def _Popen(process_obj):
        from .popen_spawn_posix import Popen

        return Popen(process_obj)

    @staticmethod
    def _after_fork():
        pass  # an executed program has inherited nothing


class ForkServerProcess(_Process):
    _start_method = "forkserver"

    @staticmethod
    def _Popen(process_obj):
        from .popen_forkserver import Popen

        return Popen(process_obj)


class ForkContext(BaseContext):
    _name = "fork"
    Process = ForkProcess


class SpawnContext(BaseContext):
    _name = "spawn"
    Process = SpawnProcess


class ForkServerContext(BaseContext):
    _name = "forkserver"
    Process = ForkServerProcess

    @property
    def preload(self) -> str:
        """Whether the fork server imports the main module, so that all processes share it.

        ``"auto"`` (unless it holds something that processes must not share), ``"always"`` or ``"never"``.
        """
        from . import forkserver

        return forkserver._options.main

    @preload.setter
    def preload(self, main: str) -> None:
        from .forkserver import set_preload_of_main

        set_preload_of_main(main)


_concrete_contexts = {
    "fork": ForkContext(),
    "spawn": SpawnContext(),
    "forkserver": ForkServerContext(),
}
_default_context = DefaultContext(_concrete_contexts["forkserver"])


def is_installed() -> bool:
    """Returns whether `polyproc.install` was called."""
    return isinstance(_standard._default_context, DefaultContext)


def _force_start_method(method):
    _default_context._actual_context = _concrete_contexts[method]
