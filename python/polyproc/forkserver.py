"""The fork server: a helper process that imports the main module and what `set_forkserver_preload` names, once, and of which
new processes are copies. (`docs/design/start.md`)"""

import functools
import os

from . import _polyproc, util
from ._carry import dumps_values

__all__ = ["ensure_running", "get_inherited_fds", "connect_to_new_process", "set_forkserver_preload"]

_preload_modules = ["__main__"]


class _Prepared:
    """Of which process, and for what the fork server was last prepared."""

    def __init__(self, main, preparation):
        self.main = main
        self.preparation = preparation


_prepared = _Prepared(None, None)
# Descriptors that this process was given.
_inherited_fds = None


def set_forkserver_preload(modules_names):
    """Sets the modules that the fork server imports. A module that cannot be imported is left out."""
    global _preload_modules
    if not all(type(name) is str for name in modules_names):
        raise TypeError("module_names must be a list of strings")
    _preload_modules = list(modules_names)


def get_inherited_fds():
    """Descriptors that this process was given when it was started; `None` where there were none to give."""
    return _inherited_fds


def with_preload(preparation, start):
    """Calls `start` with what of a preparation new processes are still to be told: the fork server, which it needs, may know it
    all."""
    _prepare(preparation)
    try:
        return start(None if preparation == _prepared.preparation else preparation)
    except _polyproc.PreloadError:
        # The main module raises when it is imported, or starts threads: then each process imports it by itself.
        _prepared.preparation = None
        _set_preload(None)
    try:
        return start(preparation)
    except _polyproc.PreloadError:
        # Another module does, or the system lets no fork server make processes: then these are told all, and import all.
        if _polyproc.is_forkserver_refused():
            _log_once()
        _polyproc.set_preload(None, [])
        return start(preparation)


@functools.cache
def _log_once():
    util.get_logger().warning(
        "the system lets no fork server make processes (clone3 and clone are refused, or /proc is not mounted): "
        "programs are executed instead, which is slower"
    )


def _prepare(preparation):
    global _prepared
    main = [preparation.get(key) for key in ("init_main_from_name", "init_main_from_path")]
    wanted = _Prepared((os.getpid(), main, _preload_modules), preparation)
    if _prepared.main != wanted.main:
        _set_preload(preparation)
        _prepared = wanted


def _set_preload(preparation):
    _polyproc.set_preload(*dumps_values((preparation, _preload_modules)))


class ForkServer:
    """The fork server by the names that `multiprocessing` has for it."""

    def ensure_running(self):
        """Does nothing: the fork server is started when it is needed, and anew when somebody has killed it."""

    @property
    def _forkserver_pid(self):
        return _polyproc.forkserver_pid()


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running


def connect_to_new_process(fds):
    raise NotImplementedError("processes of polyproc are made by its engine")
