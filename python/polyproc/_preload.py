"""Preloading: the fork server imports the main module and others once, and new processes are copies that have them.

The main module is left out if it holds something that copies must not share: they would all use one socket or file position,
draw the same random numbers from a generator, and run no exit functions. Each process then imports the main module itself.
(`docs/design/start.md`)
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
    """Imports the modules that new processes share. Returns why they must not be shared, or `None`.

    A reason that begins with ``import:`` is a failed import; one that begins with ``holds:`` names what copies must not share.
    """
    with receiving_fds(fds):
        preparation, modules, main, on_error = pickle.loads(data)
    # With this attribute, a main module that starts processes outside the `__main__` guard gets the standard error.
    process.current_process()._inheriting = True
    try:
        why = _import_all(preparation, modules, main, on_error)
    finally:
        del process.current_process()._inheriting
    if why is not None:
        end_preloaded()
        return why
    _stop_idle_threads()
    # Frozen objects are not visited by collections in children, so that their pages are not written to, and not copied.
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
    """Runs the exit functions that preloaded modules have registered."""
    atexit._run_exitfuncs()


def _stop_idle_threads():
    """Makes numerical libraries stop the threads that they started when they were imported.

    A process with threads cannot be copied safely. Libraries such as OpenBLAS stop their threads before a fork, by
    `pthread_atfork(3)`, and start them again when they need them.
    """
    try:
        threads = len(os.listdir("/proc/self/task"))
    except OSError:
        return  # without /proc the engine copies no processes
    if threads > 1:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


class _Look:
    """Wraps imports: ``with _Look() as look:``. Then `found` names one thing that they left and that copies must not share."""

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
        """Returns the set of open descriptors, each with the target of its link."""
        found = set()
        with contextlib.suppress(FileNotFoundError):  # without /proc the engine copies no processes
            for fd in os.listdir("/proc/self/fd"):
                with contextlib.suppress(FileNotFoundError):  # the descriptor of the listing itself
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
                return f"{alive[0]!r}, which has a finalizer to run at exit"
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
    """Returns whether a file belongs neither to the standard library nor to an installed package."""
    is_library = path.startswith((*_LIBRARIES, "<")) or "site-packages" in path or "dist-packages" in path
    return not is_library
