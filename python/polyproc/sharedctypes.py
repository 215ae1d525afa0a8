"""`ctypes` values and arrays in shared memory: those of the standard library, with polyproc's locks."""

from multiprocessing import sharedctypes as _standard
from multiprocessing.sharedctypes import *
from multiprocessing.sharedctypes import (
    Synchronized,
    SynchronizedArray,
    SynchronizedBase,
    SynchronizedString,
    rebuild_ctype,
    reduce_ctype,
)

from . import get_context

__all__ = ["RawValue", "RawArray", "Value", "Array", "copy", "synchronized"]


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """Returns a `ctypes` value in shared memory, with a lock unless `lock` is false."""
    return _standard.Value(typecode_or_type, *args, lock=lock, ctx=ctx or get_context())


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """Returns a `ctypes` array in shared memory, with a lock unless `lock` is false."""
    return _standard.Array(typecode_or_type, size_or_initializer, lock=lock, ctx=ctx or get_context())


def synchronized(obj, lock=None, ctx=None):
    """Returns a wrapper of a shared value or array, with a lock."""
    return _standard.synchronized(obj, lock, ctx or get_context())
