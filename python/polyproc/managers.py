"""Managers of the standard library. polyproc starts their servers, which end with their program, however it ends."""

import functools
import signal
from multiprocessing import managers as _standard
from multiprocessing.managers import BaseProxy, PoolProxy, Token

from . import get_context, resource_tracker, shared_memory
from .pool import Pool

__all__ = ["BaseManager", "SyncManager", "BaseProxy", "Token", "SharedMemoryManager"]


def __getattr__(name):
    return getattr(_standard, name)


class BaseManager(_standard.BaseManager):
    """A server process, and proxies for objects in it. The default of `ctx` is polyproc's default context."""

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, **options):
        _standard.BaseManager.__init__(self, address, authkey, serializer, ctx or get_context(), **options)


class SyncManager(BaseManager, _standard.SyncManager):
    """A manager of lists, dicts, queues, locks and similar objects."""


class SharedMemoryManager(BaseManager, _standard.SharedMemoryManager):
    """A manager of blocks of shared memory, which are destroyed when it is shut down."""

    def __init__(self, *args, **kwds):
        resource_tracker.ensure_running()  # before the server starts, so that it shares the tracker
        super().__init__(*args, **kwds)


# The methods of the proxy of a set.
_SET = (
    "__and__ __contains__ __eq__ __ge__ __gt__ __iand__ __ior__ __isub__ __ixor__ __le__ __len__ __lt__ "
    "__or__ __rand__ __ror__ __rsub__ __rxor__ __sub__ __xor__ add clear copy difference "
    "difference_update discard intersection intersection_update isdisjoint issubset issuperset pop remove "
    "symmetric_difference symmetric_difference_update union update"
).split()
SyncManager.register("Pool", Pool, PoolProxy)
if "set" not in SyncManager._registry:  # Python before 3.14

    def _in_place(name):
        def operator(self, other):
            self._callmethod(name, (other,))
            return self

        return operator

    class SetProxy(_standard.MakeProxyType("BaseSetProxy", _SET)):
        """A set in the server of a manager."""

        __ior__ = _in_place("__ior__")
        __iand__ = _in_place("__iand__")
        __isub__ = _in_place("__isub__")
        __ixor__ = _in_place("__ixor__")

    SyncManager.register("set", set, SetProxy)
# Managers of shared memory create blocks by our module, which registers them with our tracker.
_standard.shared_memory = shared_memory


def _how_it_ended(process):
    if process is None or process.exitcode is None:
        return "it has ended, or its connection was closed"
    if process.exitcode < 0:
        return f"it was killed by {signal.Signals(-process.exitcode).name}"
    return f"it exited with code {process.exitcode}"


def _naming_the_server(method, manager_of):
    """Wraps a method of a proxy or manager, so that its connection errors say how the server ended."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwds):
        try:
            return method(self, *args, **kwds)
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            manager = manager_of(self)
            process = getattr(manager, "_process", None)
            if process is not None:
                process.join(1)  # its sockets close before the process has exited
                if process.is_alive():
                    raise
            elif not isinstance(error, ConnectionError) and error.args:
                raise  # the server sent this error
            text = f"the server of the manager does not answer: {_how_it_ended(process)}"
            args = (error.errno, text) if isinstance(error, OSError) else (text,)
            raise type(error)(*args) from error

    return wrapper


def _with_key(reduce):
    """Wraps the `__reduce__` of a proxy, so that its key is part of every pickle. The standard library passes the key to new
    processes only; a proxy in a message works only where the key is known already."""

    @functools.wraps(reduce)
    def wrapper(self):
        rebuild, (*args, options) = reduce(self)
        if "authkey" in options:
            options["authkey"] = bytes(options["authkey"])
        return rebuild, (*args, options)

    return wrapper


BaseProxy.__reduce__ = _with_key(BaseProxy.__reduce__)
BaseProxy._callmethod = _naming_the_server(BaseProxy._callmethod, lambda proxy: proxy._manager)
_standard.BaseManager._create = _naming_the_server(_standard.BaseManager._create, lambda manager: manager)
