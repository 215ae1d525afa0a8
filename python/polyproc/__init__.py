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
    """Makes ``import multiprocessing`` mean polyproc from now on, here and in processes started from here.

    For code that one cannot edit. Modules that have imported it already keep what they have.
    """
    import importlib
    import pkgutil

    ours = sys.modules[__name__]
    names = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    # All of them first: they import the standard library's.
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names if name != "popen_spawn_win32"}
    sys.modules["multiprocessing"] = ours
    for name, module in modules.items():
        sys.modules[f"multiprocessing.{name}"] = module


def __getattr__(name):
    if name == "ProcessPoolExecutor":
        from .executor import ProcessPoolExecutor

        return ProcessPoolExecutor
    if name in _BUDGET:
        from . import queues

        return getattr(queues, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


_BUDGET = ["MemoryBudget", "OutOfSpace", "get_memory_budget", "set_memory_budget"]
__all__ += ["install", "ProcessPoolExecutor", *_BUDGET]
