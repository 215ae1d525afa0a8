"""Python's `multiprocessing`, on an engine written in Rust.

``import polyproc as multiprocessing`` runs programs unchanged; what differs, and what there is more of, is in the migration
page of the documentation.
"""

import sys

from . import context

__all__ = [name for name in dir(context._default_context) if not name.startswith("_")]
globals().update((name, getattr(context._default_context, name)) for name in __all__)

SUBDEBUG = 5
SUBWARNING = 25

# In a process started by `spawn` or `forkserver` the program's main module has this name, too.
if "__main__" in sys.modules:
    sys.modules["__mp_main__"] = sys.modules["__main__"]


def install() -> None:
    """Makes ``import multiprocessing`` mean polyproc from now on, for code that one cannot edit.

    Modules that have imported it already keep what they have.
    """
    from . import _install

    _install.install()
