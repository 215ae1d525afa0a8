"""Python's `multiprocessing`, on an engine written in Rust.

``import polyproc as multiprocessing`` runs programs unchanged. The migration page of the documentation lists the differences
and the additions.
"""

import importlib.util
import sys

from . import context

__all__ = [name for name in dir(context._default_context) if not name.startswith("_")]
globals().update((name, getattr(context._default_context, name)) for name in __all__)

SUBDEBUG = 5
SUBWARNING = 25

# An alias of the main module: processes started by `spawn` or `forkserver` import it under this name.
if "__main__" in sys.modules:
    sys.modules["__mp_main__"] = sys.modules["__main__"]


def install() -> None:
    """Makes `multiprocessing` run on polyproc, in this process and in the processes that it starts from now on.

    For code that cannot be edited. Names imported from `multiprocessing` before the call work, too: its modules and classes
    stay the same objects.
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
