"""Values on their way to another process: pickles, and the descriptors that they speak of.

What can be given to a new process (locks, queues, connections, shared memory) can so be sent through queues, pipes and pools,
too: a :class:`Carrier` stands in for the process object that `multiprocessing`'s reducers ask for.
"""

import collections
import copyreg
import functools
import io
import os
import pickle
import sys
import threading
from typing import Any

from . import _polyproc, context, process, reduction

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
    """Collects the descriptors of what is pickled while it is the one spawned.

    Attributes:
        is_start: whether a process is started with it; else it is a message.
    """

    DupFd = _DupFd

    def __init__(self, is_start):
        self.is_start = is_start
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
    data, carrier = io.BytesIO(), Carrier(is_start=buffers is None)
    callback = None if buffers is None else lambda buffer: _is_in_the_pickle(buffer, buffers)
    with carrying(carrier):
        for value in values:
            pickler(data, callback).dump(value)
    return data.getvalue(), carrier.fds


# How pickle refuses. Whatever else is raised is another's: of a signal handler, say, that ran meanwhile.
REFUSED = (pickle.PicklingError, AttributeError, TypeError)


def _refuse_file(file):
    # cloudpickle would make a copy of what is in it.
    if file in (sys.stdin, sys.stdout, sys.stderr):
        name = next(name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is file)
        return getattr, (sys, name)
    raise TypeError(f"cannot pickle {type(file).__name__!r} object")


@functools.cache
def _pickler_by_value():
    """That of cloudpickle, which takes what pickle refuses; `None` where it is not installed."""
    try:
        from cloudpickle import CloudPickler
    except ImportError:
        return None

    class Pickler(CloudPickler):
        dispatch_table = collections.ChainMap(
            {io.TextIOWrapper: _refuse_file}, reduction.ForkingPickler._extra_reducers, *CloudPickler.dispatch_table.maps
        )

    return lambda data, callback: Pickler(data, 5, callback)


def _by_value(values, buffers, refused=None):
    """As `_dump`, by cloudpickle. Raises what pickle has refused with where that cannot do it, either."""
    pickler = _pickler_by_value()
    if pickler is None:
        if refused is not None:
            raise refused
        raise pickle.PicklingError(
            "what is defined in the main module, which other processes cannot import here, goes by value, and cloudpickle "
            'is not installed: install it, put it in a module, or use the start method "fork"'
        )
    try:
        return _dump(pickler, values, buffers)
    except REFUSED as error:
        raise refused or error from None


# The main module cannot be imported by other processes: what is defined in it goes by value.
_is_main_by_value = None


def is_main_by_value():
    """Whether what is defined in the main module goes by value: in notebooks, in the interactive interpreter, with ``-c``, and
    where that module is the `__main__` of a package, a folder or a zip file, which is the program itself."""
    global _is_main_by_value
    if _is_main_by_value is None:
        set_main_by_value(not _is_main_importable())
    return _is_main_by_value


def set_main_by_value(is_by_value):
    global _is_main_by_value
    _is_main_by_value = is_by_value
    _polyproc.set_main_by_value(is_by_value)


def _is_main_importable():
    main = sys.modules["__main__"]
    name = getattr(getattr(main, "__spec__", None), "name", None)
    if name is not None:
        return name != "__main__" and not name.endswith(".__main__")
    return os.path.exists(getattr(main, "__file__", None) or "")


def _speaks_of_main(data):
    return is_main_by_value() and b"__main__" in data


_extra_reducers, _dispatch_table = reduction.ForkingPickler._extra_reducers, copyreg.dispatch_table


class _Kept:
    """What it takes to pickle one value after the other, made once for each thread: it costs more than a small pickle."""

    def __init__(self):
        self.data = io.BytesIO()
        self.carrier: Any = Carrier(is_start=False)
        self.buffers = []
        self.pickler = _pickler(self.data, self.is_in_the_pickle)
        self.registered = len(_extra_reducers) + len(_dispatch_table)
        if "multiprocessing.managers" in sys.modules:  # importing it registers reducers: another is made then
            from . import managers as managers  # for what its proxies are pickled to

    def is_in_the_pickle(self, buffer):
        return _is_in_the_pickle(buffer, self.buffers)

    def dump(self, value):
        outer = context.get_spawning_popen()
        context.set_spawning_popen(self.carrier)
        try:
            self.pickler.dump(value)
        finally:
            context.set_spawning_popen(outer)
        fds, buffers = self.carrier.fds, self.buffers
        result = self.data.getvalue(), fds or [], buffers or []
        if fds:
            self.carrier.clear()
        if buffers:
            self.buffers = []
        self.pickler.clear_memo()
        self.data.seek(0)
        self.data.truncate()
        return result


def dumps(value, takes_all=False):
    """The pickle of a value, the descriptors that it speaks of, which belong to what is in it, and its large buffers.

    What pickle refuses goes through cloudpickle if it is of a main module that goes by value; all of it if `takes_all`.
    """
    refused = None
    try:
        kept = getattr(_local, "kept", None)
        if kept is None or kept.registered != len(_extra_reducers) + len(_dispatch_table):
            kept = _Kept()  # a pickler has the table of when it was made
        _local.kept = None  # a nested call, and the one after a failure, make another
        result = kept.dump(value)
        if len(result[0]) < _LARGE:
            _local.kept = kept
        if _is_main_by_value is False or not _speaks_of_main(result[0]):
            return result
    except REFUSED as error:
        if not takes_all and not _speaks_of_main(str(error).encode()):
            raise
        refused = error
    buffers = []
    return (*_by_value((value,), buffers, refused), buffers)


# For functions and arguments.
dumps_task = functools.partial(dumps, takes_all=True)


def _reduce_key(key):
    """As the standard library: a new process is given the key, and nobody else."""
    carrier = context.get_spawning_popen()
    if carrier is None or isinstance(carrier, Carrier) and not carrier.is_start:
        raise TypeError("Pickling an AuthenticationString object is disallowed for security reasons")
    return process.AuthenticationString, (bytes(key),)


reduction.ForkingPickler.register(process.AuthenticationString, _reduce_key)


def dumps_values(*values):
    """Pickles with all in them, and their descriptors."""
    return _dump(_pickler, values, None)


def dumps_setup(*values):
    """As `dumps_values`, by cloudpickle at need."""
    try:
        result = dumps_values(*values)
    except REFUSED as error:
        return _by_value(values, None, error)
    return _by_value(values, None) if _speaks_of_main(result[0]) else result


def loads(data, fds, buffers=None):
    """The value of a pickle. The descriptors are its own from now on."""
    if not fds:
        return pickle.loads(data, buffers=buffers)
    with arriving(fds):
        return pickle.loads(data, buffers=buffers)


def reduce_place(rebuild, shared, *args):
    """For `__reduce__` of what is known by a descriptor, which many may have in common, and where it is in that file."""
    carrier = context.get_spawning_popen()
    if not isinstance(carrier, Carrier):  # a process of the standard library, or of a library that is built on it
        once = vars(carrier).setdefault("_polyproc_shared", {})
        if shared.handle not in once:
            once[shared.handle] = reduction.DupFd(shared.handle)
        return _rebuild_alone, (rebuild, once[shared.handle], shared.place, *args)
    return _rebuild, (rebuild, carrier.share_with_child(shared.handle), shared.place, *args)


def _rebuild(rebuild, fd, *args):
    return rebuild(_local.arrived[fd], *args)


def _rebuild_alone(rebuild, dup_fd, *args):
    return rebuild(dup_fd.detach(), *args)  # it stays open: others may be in the same file
