"""Managers: the standard library's, whose servers polyproc starts, and which end with their program, however it ends."""

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
    """A server process, and proxies for objects in it. Its context is polyproc's default one, if none is given."""

    def __init__(self, address=None, authkey=None, serializer="pickle", ctx=None, **options):
        _standard.BaseManager.__init__(self, address, authkey, serializer, ctx or get_context(), **options)


class SyncManager(BaseManager, _standard.SyncManager):
    """A manager of lists, dicts, queues, locks and the like."""


class SharedMemoryManager(BaseManager, _standard.SharedMemoryManager):
    """A manager of blocks of shared memory, which are destroyed when it is shut down."""

    def __init__(self, *args, **kwds):
        resource_tracker.ensure_running()  # before the server, which shares it
        super().__init__(*args, **kwds)


# Of a set: what its proxy can do.
_SET = (
    "__and__ __contains__ __eq__ __ge__ __gt__ __iand__ __ior__ __isub__ __ixor__ __le__ __len__ __lt__ "
    "__or__ __rand__ __ror__ __rsub__ __rxor__ __sub__ __xor__ add clear copy difference "
    "difference_update discard intersection intersection_update isdisjoint issubset issuperset pop remove "
    "symmetric_difference symmetric_difference_update union update"
).split()
SyncManager.register("Pool", Pool, PoolProxy)
if "set" not in SyncManager._registry:  # before 3.14

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
# Of managers of shared memory: what they make is known to our tracker.
_standard.shared_memory = shared_memory


def _how_it_ended(process):
    if process is None or process.exitcode is None:
        return "it has ended, or its connection was closed"
    if process.exitcode < 0:
        return f"it was killed by {signal.Signals(-process.exitcode).name}"
    return f"it exited with code {process.exitcode}"


def _naming_the_server(method, manager_of):
    """The method of a proxy or manager, whose errors of a connection say what became of the server."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwds):
        try:
            return method(self, *args, **kwds)
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            manager = manager_of(self)
            process = getattr(manager, "_process", None)
            if process is not None:
                process.join(1)  # its sockets close before it has ended
                if process.is_alive():
                    raise
            elif not isinstance(error, ConnectionError) and error.args:
                raise  # it is one that the server sent
            text = f"the server of the manager does not answer: {_how_it_ended(process)}"
            args = (error.errno, text) if isinstance(error, OSError) else (text,)
            raise type(error)(*args) from error

    return wrapper


def _with_key(reduce):
    """That of a proxy, whose key goes wherever it goes: for the standard library's it goes to new processes only, where
    proxies go to others only if they have the key already."""

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
