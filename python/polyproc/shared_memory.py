"""Shared memory with a name.

As in `multiprocessing`, but that only what creates a segment answers for its end: one that was created is destroyed when all
processes of the program have ended, if nobody has done it; attaching to one never has it destroyed, unless by ``track=True``.
"""

import _posixshmem
import mmap
import os
import types
from multiprocessing import shared_memory as _standard

# All names of the standard library's, but for those below.
globals().update((name, value) for name, value in vars(_standard).items() if not name.startswith("__"))

from . import resource_tracker  # noqa: E402

__all__ = ["SharedMemory", "ShareableList"]


def _make_filename():
    return _standard._make_filename()


class SharedMemory(_standard.SharedMemory):
    """A segment, made by ``create=True`` or found by its name. ``track`` is whether it is destroyed when all processes of the
    program have ended; if it is not given, only what created it has it destroyed."""

    def __init__(self, name=None, create=False, size=0, *, track=None):
        if size < 0:
            raise ValueError("'size' must be a positive integer")
        if create and size == 0:
            raise ValueError("'size' must be a positive number different from zero")
        if name is None and not create:
            raise ValueError("'name' can only be None if create=True")
        self._track = create if track is None else track
        self._flags = os.O_RDWR | (os.O_CREAT | os.O_EXCL if create else 0)
        self._open(name)
        try:
            if self._track:
                resource_tracker.register(self._name, "shared_memory")
            if create:
                os.ftruncate(self._fd, size)
            self._size = os.fstat(self._fd).st_size
            self._mmap = mmap.mmap(self._fd, self._size)
        except BaseException:
            if create:
                self.unlink()
            raise
        self._buf = memoryview(self._mmap)

    def _open(self, name):
        is_given = name is not None
        while True:
            self._name = "/" + name if is_given else _make_filename()
            try:
                self._fd = _posixshmem.shm_open(self._name, self._flags, mode=self._mode)
                return
            except FileExistsError:
                if is_given:
                    raise

    def unlink(self):
        """Destroys the segment: it has no name any more, and no memory once all have closed it."""
        if self._name:
            _posixshmem.shm_unlink(self._name)
            # Whoever has it tracked: the tracker does not know who speaks to it, but must know of what.
            resource_tracker.register(self._name, "shared_memory")
            resource_tracker.unregister(self._name, "shared_memory")


class ShareableList(_standard.ShareableList):
    """A list of simple values in shared memory."""

    # The standard library's, over the class above.
    __init__ = types.FunctionType(
        _standard.ShareableList.__init__.__code__,
        {**vars(_standard), "SharedMemory": SharedMemory},
        "__init__",
        _standard.ShareableList.__init__.__defaults__,
        _standard.ShareableList.__init__.__closure__,
    )
    __init__.__kwdefaults__ = _standard.ShareableList.__init__.__kwdefaults__
