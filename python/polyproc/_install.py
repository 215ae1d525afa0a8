"""`install`: the standard library's `multiprocessing`, changed in place so that it runs on the engine.

Modules, classes and functions stay the objects that they are: what was imported before is not left behind, `isinstance` holds,
and what is pickled by name is found. Two things change. The contexts are polyproc's: all start methods, and what contexts make.
And a class of the standard library that is called by itself, such as `multiprocessing.pool.Pool(4)`, makes polyproc's, which is
its subclass. Subclasses of other code run the standard library's code, over polyproc's processes, locks and pipes; but those of
the pool that leave its private parts alone have ours beneath them.
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

from . import connection, context, forkserver, managers, pool, queues, resource_tracker, shared_memory, spawn, synchronize

__all__ = ()

# Of each standard module, with ours: the classes that make ours, and the functions and objects that are ours.
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
    """See `polyproc.install`."""
    if context.is_installed():
        return
    _install_contexts()
    for standard, own, classes, names in _CHANGED:
        for name in classes:
            kind = getattr(standard, name)
            kind.__new__ = _new_of(kind, getattr(own, name))
        for name in names:
            setattr(standard, name, getattr(own, name))
    # Subclasses call it by its class, too.
    multiprocessing.pool.Pool.__init__ = _init_of_pool(multiprocessing.pool.Pool.__init__)


def _install_contexts():
    standard = multiprocessing.context
    own, theirs = context._default_context, standard._default_context
    method = theirs.get_start_method(allow_none=True)
    if method is not None and own.get_start_method(allow_none=True) is None:
        own.set_start_method(method)
    # One table, in which other libraries note contexts of their own.
    standard._concrete_contexts.update(context._concrete_contexts)
    context._concrete_contexts = standard._concrete_contexts
    # One default context by two names: what is set in one is set in the other.
    theirs.__class__ = context.DefaultContext
    theirs.__dict__ = own.__dict__
    for name in multiprocessing.__all__:
        if name != "Process":  # the class stays, and asks the default context how it starts
            setattr(multiprocessing, name, getattr(theirs, name))


def _new_of(standard, own):
    """What makes objects of a standard class: ours, but for a subclass of it, and for a context that is other code's."""

    def __new__(cls, *args, **kwds):
        if not _is_ours(args[4] if len(args) > 4 else kwds.get("ctx", kwds.get("context"))):
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
    """Of a subclass of the standard pool, one whose pool is ours; itself where it changes private parts of the standard one."""
    standard = multiprocessing.pool.Pool
    if issubclass(cls, pool.Pool):
        return cls
    private = {name for name in vars(standard) if name.startswith("_") and not name.startswith("__")}
    own = [base for base in cls.__mro__ if issubclass(base, standard) and base is not standard]
    if any(private & vars(base).keys() for base in own):
        return cls
    return type(cls)(cls.__name__, (cls, pool.Pool), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})


def _is_ours(ctx):
    """Whether processes of a context are ours: it is one of ours, or of the standard library from before `install`, or none."""
    return ctx is None or isinstance(ctx, context.BaseContext) or type(ctx).__module__ == "multiprocessing.context"
