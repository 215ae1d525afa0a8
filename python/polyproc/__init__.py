"""Python's `multiprocessing`, on an engine written in Rust.

``import polyproc as multiprocessing`` runs programs unchanged; what differs, and what there is more of, is in the migration
page of the documentation.
"""

import importlib.util
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
    """Has `multiprocessing` run on polyproc from now on, here and in processes started from here.

    For code that one cannot edit. What was imported from `multiprocessing` before works, too: its modules and classes stay the
    same objects.
    """
    from ._install import install

    install()


def __getattr__(name):
    if name == "ProcessPoolExecutor":
        from .executor import ProcessPoolExecutor

        return ProcessPoolExecutor
    if name in _BUDGET:
        from . import queues

        return getattr(queues, name)
    if name in _ERRORS:
        from . import pool

        return getattr(pool, name)
    if importlib.util.find_spec(f"{__name__}.{name}") is not None:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_BUDGET = ["MemoryBudget", "OutOfSpace", "get_memory_budget", "set_memory_budget"]
_ERRORS = [
    "PoolError",
    "WorkerLost",
    "OutOfMemory",
    "TaskTimeout",
    "TaskCancelled",
    "TaskExited",
    "PoolTerminated",
    "NoWorkers",
]
__all__ += ["install", "ProcessPoolExecutor", *_BUDGET, *_ERRORS]
