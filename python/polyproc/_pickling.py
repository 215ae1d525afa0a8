"""Pickles values together with the file descriptors that they refer to.

Locks, queues, connections and shared memory, which `multiprocessing` passes to new processes only, can be sent through
queues, pipes and pools as well: an :class:`FdCollector` takes the place of the `Popen` object that the reducers of
`multiprocessing` ask for.
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
    """A descriptor, by its position among the descriptors received with the pickle."""

    def __init__(self, place):
        self.place = place

    def detach(self):
        fds = _local.received
        fd, fds[self.place] = fds[self.place], None
        return fd


class FdCollector:
    """Collects descriptors while values are pickled, as the `Popen` object of `get_spawning_popen`.

    Attributes:
        is_start: true if the pickle goes to a new process, false if it is a message to a running one.
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
        """Like `duplicate_for_child`, but returns the same position for the same descriptor."""
        place = self._shared.get(fd)
        if place is None:
            place = self._shared[fd] = self.duplicate_for_child(fd)
        return place


class collecting_fds:
    """``with collecting_fds(collector):`` adds the descriptors of values pickled in the block to `collector`."""

    def __init__(self, collector):
        self.collector = collector

    def __enter__(self):
        self.outer = context.get_spawning_popen()
        context.set_spawning_popen(self.collector)

    def __exit__(self, *error):
        context.set_spawning_popen(self.outer)


class receiving_fds:
    """``with receiving_fds(fds):`` passes descriptors from `fds` to values unpickled in the block, and closes the rest."""

    def __init__(self, fds):
        self.fds = fds

    def __enter__(self):
        self.outer = getattr(_local, "received", None)
        _local.received = self.fds

    def __exit__(self, *error):
        _local.received = self.outer
        for fd in self.fds:
            if fd is not None:
                os.close(fd)


# Buffers of at least this many bytes are sent out of band.
_LARGE = 16 << 10


def _is_in_the_pickle(buffer, buffers):
    """The `buffer_callback` of a pickler: appends a large buffer to `buffers`; returns true if it stays in the pickle."""
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
    """Returns the concatenated pickles of `values`, and their descriptors. Appends large buffers to the list `buffers`, which
    is `None` for a new process: the pickles then contain them."""
    data, collector = io.BytesIO(), FdCollector(is_start=buffers is None)
    callback = None if buffers is None else lambda buffer: _is_in_the_pickle(buffer, buffers)
    with collecting_fds(collector):
        for value in values:
            pickler(data, callback).dump(value)
    return data.getvalue(), collector.fds


# The exceptions of pickle for a value that cannot be pickled. Other exceptions come from elsewhere, such as a signal handler.
REFUSED = (pickle.PicklingError, AttributeError, TypeError)


def _refuse_file(file):
    # cloudpickle would copy the content of the file.
    if file in (sys.stdin, sys.stdout, sys.stderr):
        name = next(name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is file)
        return getattr, (sys, name)
    raise TypeError(f"cannot pickle {type(file).__name__!r} object")


@functools.cache
def _pickler_by_value():
    """Returns a factory of cloudpickle's pickler, which pickles functions and classes by value; `None` without cloudpickle."""
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
    """Like `_dump`, through cloudpickle. If that fails, too, raises `refused`, the error of pickle, if given."""
    pickler = _pickler_by_value()
    if pickler is None:
        if refused is not None:
            raise refused
        raise pickle.PicklingError(
            "cannot pickle a function or class of this main module, which other processes cannot import, as cloudpickle "
            'is not installed: install it, move the definition to a module, or use the start method "fork"'
        )
    try:
        return _dump(pickler, values, buffers)
    except REFUSED as error:
        raise refused or error from None


# True if definitions of the main module are pickled by value, as other processes cannot import it; `None` until determined.
_is_main_by_value = None


def is_main_by_value():
    """Returns whether definitions of the main module are pickled by value: in notebooks, in the interactive interpreter, with
    ``-c``, and if it is the `__main__` of a package, a folder or a zip file, whose import would run the program."""
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


def _refers_to_main(data):
    return is_main_by_value() and b"__main__" in data


_extra_reducers, _dispatch_table = reduction.ForkingPickler._extra_reducers, copyreg.dispatch_table


class _ReusedPickler:
    """A pickler that a thread uses for many values, since creating one takes longer than a small pickle."""

    def __init__(self):
        self.data = io.BytesIO()
        self.collector: Any = FdCollector(is_start=False)
        self.buffers = []
        self.pickler = _pickler(self.data, self.is_in_the_pickle)
        self.registered = len(_extra_reducers) + len(_dispatch_table)
        # That import registers reducers, so a new pickler is created after it.
        if "multiprocessing.managers" in sys.modules:
            from . import managers as managers  # changes how proxies are pickled

    def is_in_the_pickle(self, buffer):
        return _is_in_the_pickle(buffer, self.buffers)

    def dump(self, value):
        outer = context.get_spawning_popen()
        context.set_spawning_popen(self.collector)
        try:
            self.pickler.dump(value)
        finally:
            context.set_spawning_popen(outer)
        fds, buffers = self.collector.fds, self.buffers
        result = self.data.getvalue(), fds or [], buffers or []
        if fds:
            self.collector.clear()
        if buffers:
            self.buffers = []
        self.pickler.clear_memo()
        self.data.seek(0)
        self.data.truncate()
        return result


def dumps(value, takes_all=False):
    """Pickles a value for a queue, a pipe or a pool.

    A value that pickle refuses goes through cloudpickle if `takes_all`, or if it refers to a main module that is pickled by
    value.

    Returns:
        The pickle, the descriptors that it refers to, which still belong to the value, and its large buffers.
    """
    refused = None
    try:
        kept = getattr(_local, "kept", None)
        if kept is None or kept.registered != len(_extra_reducers) + len(_dispatch_table):
            kept = _ReusedPickler()  # a pickler copies the table of reducers
        _local.kept = None  # a nested call, and the call after a failure, create another
        result = kept.dump(value)
        if len(result[0]) < _LARGE:
            _local.kept = kept
        if _is_main_by_value is False or not _refers_to_main(result[0]):
            return result
    except REFUSED as error:
        if not takes_all and not _refers_to_main(str(error).encode()):
            raise
        refused = error
    buffers = []
    return (*_by_value((value,), buffers, refused), buffers)


# Pickles functions and arguments of tasks.
dumps_task = functools.partial(dumps, takes_all=True)


def _reduce_key(key):
    """Pickles an authentication key for a new process only, as the standard library does."""
    collector = context.get_spawning_popen()
    if collector is None or isinstance(collector, FdCollector) and not collector.is_start:
        raise TypeError("Pickling an AuthenticationString object is disallowed for security reasons")
    return process.AuthenticationString, (bytes(key),)


reduction.ForkingPickler.register(process.AuthenticationString, _reduce_key)


def dumps_values(*values):
    """Pickles values for a new process, with all buffers in the pickles. Returns the pickles and the descriptors."""
    return _dump(_pickler, values, None)


def dumps_setup(*values):
    """Like `dumps_values`, but through cloudpickle if pickle refuses a value, or if a value refers to a main module that is
    pickled by value."""
    try:
        result = dumps_values(*values)
    except REFUSED as error:
        return _by_value(values, None, error)
    return _by_value(values, None) if _refers_to_main(result[0]) else result


def loads(data, fds, buffers=None):
    """Unpickles a value, which takes ownership of its descriptors."""
    if not fds:
        return pickle.loads(data, buffers=buffers)
    with receiving_fds(fds):
        return pickle.loads(data, buffers=buffers)


def reduce_place(rebuild, shared, *args):
    """Returns the `__reduce__` value of an object that is stored at `shared.place` in the memory file `shared.handle`, which
    other objects may share."""
    collector = context.get_spawning_popen()
    if not isinstance(collector, FdCollector):  # a `Popen` of the standard library, or of a library that is built on it
        once = vars(collector).setdefault("_polyproc_shared", {})
        if shared.handle not in once:
            once[shared.handle] = reduction.DupFd(shared.handle)
        return _rebuild_alone, (rebuild, once[shared.handle], shared.place, *args)
    return _rebuild, (rebuild, collector.share_with_child(shared.handle), shared.place, *args)


def _rebuild(rebuild, fd, *args):
    return rebuild(_local.received[fd], *args)


def _rebuild_alone(rebuild, dup_fd, *args):
    return rebuild(dup_fd.detach(), *args)  # the descriptor stays open for other objects of the same file
