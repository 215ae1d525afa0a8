"""`install`: changes the standard library's `multiprocessing` in place, so that it runs on the engine.

Modules and classes stay the same objects: names imported earlier keep working, `isinstance` holds, and pickles by name resolve.
Two things change. The contexts become polyproc's, with their start methods and the objects that they create. A class of the
standard library that is called directly, such as `multiprocessing.pool.Pool(4)`, creates an object of polyproc's subclass.
Subclasses in other code run the standard library's code over polyproc's processes, locks and pipes; but a subclass of the pool
that overrides no private attribute gets polyproc's pool as a further base class.
"""

import functools
import multiprocessing
import multiprocessing.connection
import multiprocessing.context
import multiprocessing.forkserver
import multiprocessing.managers
import multiprocessing.pool
import multiprocessing.queues
import multiprocessing.resource_tracker
import multiprocessing.shared_memory
import multiprocessing.spawn
import multiprocessing.synchronize

# `managers` is imported for its changes to `multiprocessing.managers`.
from . import connection, context, forkserver, managers, pool, queues, resource_tracker, shared_memory, spawn, synchronize

__all__ = ()

# Standard module; our module; the standard classes, which stay and create objects of our classes; the names in the standard
# module that are rebound to our functions and objects.
_CHANGED = (
    (multiprocessing.connection, connection, ["Listener"], ["Pipe"]),
    (multiprocessing.pool, pool, ["Pool"], []),
    (multiprocessing.queues, queues, ["Queue", "JoinableQueue", "SimpleQueue"], []),
    (multiprocessing.shared_memory, shared_memory, ["SharedMemory", "ShareableList"], []),
    (
        multiprocessing.synchronize,
        synchronize,
        ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event", "Barrier"],
        [],
    ),
    (
        multiprocessing.resource_tracker,
        resource_tracker,
        [],
        ["_resource_tracker", "ensure_running", "register", "unregister", "getfd"],
    ),
    (
        multiprocessing.forkserver,
        forkserver,
        [],
        ["_forkserver", "ensure_running", "get_inherited_fds", "set_forkserver_preload"],
    ),
    (multiprocessing.spawn, spawn, [], ["freeze_support", "get_command_line"]),
)


def install():
    """See `polyproc.install`, the only caller. A second call does nothing; there is no way back."""
    if context.is_installed():
        return
    _install_contexts()
    for standard, own, classes, names in _CHANGED:
        for name in classes:
            kind = getattr(standard, name)
            kind.__new__ = _new_of(kind, getattr(own, name))
        for name in names:
            setattr(standard, name, getattr(own, name))
    # A subclass may call `multiprocessing.pool.Pool.__init__(self, ...)`: for our pools that runs our `__init__`.
    multiprocessing.pool.Pool.__init__ = _init_of_pool(multiprocessing.pool.Pool.__init__)


def _install_contexts():
    standard = multiprocessing.context
    own, theirs = context._default_context, standard._default_context
    # Both modules share one table, in which other libraries register contexts of their own.
    standard._concrete_contexts.update(context._concrete_contexts)
    context._concrete_contexts = standard._concrete_contexts
    method = theirs.get_start_method(allow_none=True)
    # A start method that was set in polyproc takes precedence.
    if method is not None and own.get_start_method(allow_none=True) is None:
        own.set_start_method(method)
    # Both default contexts share their state: a start method set in one holds in the other.
    theirs.__class__ = context.DefaultContext
    theirs.__dict__ = own.__dict__
    for name in multiprocessing.__all__:
        if name != "Process":  # stays: the class asks the default context for the start method
            setattr(multiprocessing, name, getattr(theirs, name))


def _new_of(standard, own):
    """Returns `__new__` for a standard class. A call of the class itself creates an object of our class. A subclass is created
    as it is, except for pools (`_pool_on_engine`). With a context of another library, all code is the standard library's."""

    def __new__(cls, *args, **kwds):
        # `context` is the fifth parameter of `Pool`. The other classes take `ctx` by keyword, if at all.
        ctx = args[4] if len(args) > 4 else kwds.get("ctx", kwds.get("context"))
        if cls is not standard and not isinstance(ctx, multiprocessing.context.BaseContext):
            ctx = None  # a parameter of the subclass's own
        if not _is_ours(ctx):
            return object.__new__(cls)
        if cls is standard:
            return own.__new__(own)
        return object.__new__(_pool_on_engine(cls) if own is pool.Pool else cls)

    return __new__


def _init_of_pool(init):
    @functools.wraps(init)
    def __init__(self, *args, **kwds):
        (pool.Pool.__init__ if isinstance(self, pool.Pool) else init)(self, *args, **kwds)

    return __init__


@functools.cache
def _pool_on_engine(cls):
    """Returns a subclass of `cls`, a subclass of the standard pool, with our pool as a further base class; `cls` itself if it
    overrides private attributes of the standard pool."""
    standard = multiprocessing.pool.Pool
    if issubclass(cls, pool.Pool):
        return cls
    private = {name for name in vars(standard) if name.startswith("_") and not name.startswith("__")}
    own = [base for base in cls.__mro__ if issubclass(base, standard) and base is not standard]
    if any(private & vars(base).keys() for base in own):
        return cls
    return type(cls)(cls.__name__, (cls, pool.Pool), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _is_ours(ctx):
    """Returns whether processes of a context run on the engine: those of our contexts, of the standard library's contexts
    that code obtained before `install`, and of `None`, the default context."""
    return ctx is None or isinstance(ctx, context.BaseContext) or type(ctx).__module__ == "multiprocessing.context"
