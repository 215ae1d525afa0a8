"""Values and arrays of `ctypes` in shared memory: the standard library's, with polyproc's locks."""

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
    """Returns a value with a lock."""
    return _standard.Value(typecode_or_type, *args, lock=lock, ctx=ctx or get_context())


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """Returns an array with a lock."""
    return _standard.Array(typecode_or_type, size_or_initializer, lock=lock, ctx=ctx or get_context())


def synchronized(obj, lock=None, ctx=None):
    """Returns a value or an array with a lock."""
    return _standard.synchronized(obj, lock, ctx or get_context())
