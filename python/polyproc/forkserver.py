"""The fork server: a helper process that imports the main module and what `set_forkserver_preload` names, once, and of which
new processes are copies. (`docs/design/start.md`)"""

import os
import pickle

from . import _polyproc

__all__ = ["ensure_running", "get_inherited_fds", "connect_to_new_process", "set_forkserver_preload"]

_preload_modules = ["__main__"]
# Of which process, and for what the fork server was last prepared.
_prepared = (None, None)
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
    """Calls `start`, which needs a fork server."""
    _prepare(preparation)
    try:
        return start()
    except _polyproc.PreloadError:
        # The main module raises when it is imported, or starts threads: then each process imports it by itself.
        _set_preload(None)
        return start()


def _prepare(preparation):
    global _prepared
    main = [preparation.get(key) for key in ("init_main_from_name", "init_main_from_path")]
    wanted = (os.getpid(), (main, _preload_modules))
    if _prepared != wanted:
        keys = ("sys_path", "sys_argv", "orig_dir", "dir", "init_main_from_name", "init_main_from_path", "polyproc")
        _set_preload({key: preparation[key] for key in keys if key in preparation})
        _prepared = wanted


def _set_preload(preparation):
    _polyproc.set_preload(pickle.dumps((preparation, _preload_modules)))


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
