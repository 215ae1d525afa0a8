"""Named shared memory.

The interface is that of `multiprocessing`, but only the program that created a segment destroys it: when all its processes have
ended, unless the segment was unlinked before. Attaching to a segment does not destroy it, except with ``track=True``.
"""

import _posixshmem
import mmap
import os
import types
from multiprocessing import shared_memory as _standard

# All names of the standard module, except those defined below.
globals().update((name, value) for name, value in vars(_standard).items() if not name.startswith("__"))

from . import resource_tracker  # noqa: E402

__all__ = ["SharedMemory", "ShareableList"]


def _make_filename():
    return _standard._make_filename()


class SharedMemory(_standard.SharedMemory):
    """A segment, created by ``create=True`` or attached by its name.

    Args:
        size: the number of bytes of a segment to create.
        track: whether the segment is destroyed when all processes of this program have ended. The default is `create`.
    """

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
        """Destroys the segment: removes its name now, and frees its memory once all processes have closed it."""
        if self._name:
            _posixshmem.shm_unlink(self._name)
            # Registers first: the tracker rejects names that it does not know, and perhaps no process has registered this one.
            resource_tracker.register(self._name, "shared_memory")
            resource_tracker.unregister(self._name, "shared_memory")


class ShareableList(_standard.ShareableList):
    """A list of simple values in shared memory."""

    # The standard `__init__`, with the class above among its globals.
    __init__ = types.FunctionType(
        _standard.ShareableList.__init__.__code__,
        {**vars(_standard), "SharedMemory": SharedMemory},
        "__init__",
        _standard.ShareableList.__init__.__defaults__,
        _standard.ShareableList.__init__.__closure__,
    )
    __init__.__kwdefaults__ = _standard.ShareableList.__init__.__kwdefaults__
