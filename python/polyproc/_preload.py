"""In the fork server: the main module and others are imported once, and new processes are copies of what is there then.

What copies must not share keeps the main module out of it: a socket or an open file would be one for all of them, a
generator of random numbers would give each the same ones, and what is to be done at exit would be done for none. Then each
process imports the main module by itself. (`docs/design/start.md`)
"""

import atexit
import contextlib
import gc
import os
import pickle
import random
import stat
import sys
import warnings
import weakref

from . import process, spawn
from ._pickling import receiving_fds

__all__ = ()

_HARMLESS_DEVICES = {"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
_LIBRARIES = (os.path.dirname(os.__file__), os.path.dirname(__file__))

# The keys of preparation data that name the main module.
_MAIN = ("init_main_from_name", "init_main_from_path")


def preload(data, fds):
    """Imports what new processes are to share; returns why it is not to be shared, or `None`.

    A reason that begins with ``import:`` is an error of an import, one that begins with ``holds:`` what copies must not share.
    """
    with receiving_fds(fds):
        preparation, modules, main, on_error = pickle.loads(data)
    # A main module without the guard that tries to start processes is told so, instead.
    process.current_process()._inheriting = True
    try:
        why = _import_all(preparation, modules, main, on_error)
    finally:
        del process.current_process()._inheriting
    if why is not None:
        end_preloaded()
        return why
    _stop_idle_threads()
    # What is there now stays: a collection in a child need not touch, and so copy, its pages.
    gc.collect()
    gc.freeze()
    return None


def _import_all(preparation, modules, main, on_error):
    if preparation is not None:
        if main == "never":
            preparation = {key: value for key, value in preparation.items() if key not in _MAIN}
        look = _Look() if main == "auto" else contextlib.nullcontext()
        try:
            with look:
                spawn.prepare(preparation)
        except BaseException as error:
            return f"import:the main module raised {error!r}"
        found = look.found() if main == "auto" else None
        if found is not None:
            return f"holds:{found}"
    for name in modules:
        if name == "__main__":
            continue
        try:
            __import__(name)
        except Exception as error:
            if on_error == "fail":
                return f"import:module {name!r} could not be preloaded: {error!r}"
            if on_error == "warn":
                warnings.warn(f"failed to preload module {name!r}: {error!r}", ImportWarning, stacklevel=2)
    return None


def end_preloaded():
    """Does what the modules left to be done at exit."""
    atexit._run_exitfuncs()


def _stop_idle_threads():
    """Has numerical libraries stop the threads that they started when they were imported.

    A process with threads cannot be copied soundly. These libraries know (OpenBLAS and its like): before a fork they stop
    theirs, by `pthread_atfork(3)`, and start them anew when they need them.
    """
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError:
        return  # without /proc the engine makes no copies either
    if threads > 1:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


class _Look:
    """``with _Look() as look:`` around imports; then `found` names one thing that they left and copies must not share."""

    def __enter__(self):
        self.descriptors = self._descriptors()
        self.finalizers = set(weakref.finalize._registry)
        self.modules = set(sys.modules)
        self.registered = None
        self.register = atexit.register
        atexit.register = self._register
        return self

    def __exit__(self, *error):
        atexit.register = self.register

    @staticmethod
    def _descriptors():
        """Each descriptor, with what it refers to."""
        found = set()
        with contextlib.suppress(FileNotFoundError):  # without /proc the engine makes no copies either
            for fd in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # that of the listing
                    found.add((fd, os.readlink(f"/proc/self/fd/{fd}")))
        return found

    def _register(self, function, *args, **kwds):
        if self.registered is None and _is_of_program(sys._getframe(1).f_code.co_filename):
            self.registered = function
        return self.register(function, *args, **kwds)

    def found(self):
        return self._descriptor() or self._finalizer() or self._generator()

    def _descriptor(self):
        for fd, path in self._descriptors() - self.descriptors:
            mode = os.stat(f"/proc/self/fd/{fd}").st_mode
            if stat.S_ISSOCK(mode):
                return f"a socket (descriptor {fd})"
            if stat.S_ISFIFO(mode) or path.startswith("anon_inode:"):
                return f"{path} (descriptor {fd})"
            if stat.S_ISREG(mode) and not path.startswith(("/memfd:", "/dev/shm/")):
                return f"the open file {path!r} (descriptor {fd})"
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode) and path not in _HARMLESS_DEVICES:
                return f"the device {path!r} (descriptor {fd})"
        return None

    def _finalizer(self):
        if self.registered is not None:
            return f"{self.registered!r}, which is registered with atexit"
        for finalizer in set(weakref.finalize._registry) - self.finalizers:
            alive = finalizer.peek()
            if alive is not None and finalizer.atexit:
                return f"{alive[0]!r}, which has something to do at exit"
        return None

    def _generator(self):
        kinds = [random.Random]
        for module, names in (("numpy.random", ("Generator", "RandomState")), ("torch", ("Generator",))):
            loaded = sys.modules.get(module)
            kinds += [getattr(loaded, name) for name in names if hasattr(loaded, name)]
        for name in set(sys.modules) - self.modules | {"__main__"}:
            module = sys.modules.get(name)
            if _is_of_program(getattr(module, "__file__", None) or "<unknown>"):
                for attribute, value in list(vars(module).items()):
                    if isinstance(value, tuple(kinds)) and not isinstance(value, random.SystemRandom):
                        return f"the random number generator {attribute!r} of {name!r}"
        return None


def _is_of_program(path):
    """Whether a file is neither of the standard library nor of an installed package."""
    is_library = path.startswith((*_LIBRARIES, "<")) or "site-packages" in path or "dist-packages" in path
    return not is_library
