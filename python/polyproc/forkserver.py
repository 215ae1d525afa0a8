"""The fork server: a helper process that imports the main module and the modules of `set_forkserver_preload` once. New
processes are copies of it. (`docs/design/start.md`)"""

import atexit
import functools
import os
import typing
import warnings

from . import _polyproc, context, process, spawn, util
from ._pickling import dumps_values

__all__ = ["ensure_running", "get_inherited_fds", "connect_to_new_process", "set_forkserver_preload"]

# How long the fork server may take to end in order when the program ends, in seconds. Then it is killed.
_GRACE_SECONDS = 5


class _Options(typing.NamedTuple):
    """Options of preloading: the modules, whether to import the main module, and what to do if an import fails."""

    modules: tuple = ()
    main: str = "auto"
    on_error: str = "ignore"


class _Prepared:
    """The last preparation of the fork server: a key of process, main module and options, and the preparation data."""

    def __init__(self, key, preparation):
        self.key = key
        self.preparation = preparation


_options = _Options()
_prepared = _Prepared(None, None)
# Descriptors that this process received when it was started.
_inherited_fds = None


def set_forkserver_preload(modules_names, *, on_error="ignore"):
    """Sets the modules that the fork server imports.

    The main module is imported only if ``"__main__"`` is among them, and then whatever it holds.

    Args:
        on_error: what happens if a module cannot be imported: ``"ignore"`` leaves it out, ``"warn"`` also warns in the fork
            server, and ``"fail"`` makes the next start raise `StartError`.
    """
    global _options
    if not all(type(name) is str for name in modules_names):
        raise TypeError("module_names must be a list of strings")
    if on_error not in ("ignore", "warn", "fail"):
        raise ValueError(f"on_error must be 'ignore', 'warn' or 'fail', not {on_error!r}")
    main = "always" if "__main__" in modules_names else "never"
    _options = _Options(tuple(name for name in modules_names if name != "__main__"), main, on_error)


def set_preload_of_main(main):
    """Sets whether the fork server imports the main module.

    ``"auto"`` (unless it holds something that processes must not share), ``"always"`` or ``"never"``.
    """
    global _options
    if main not in ("auto", "always", "never"):
        raise ValueError(f"preload must be 'auto', 'always' or 'never', not {main!r}")
    _options = _options._replace(main=main)


def get_inherited_fds():
    """Returns the descriptors that this process received when it was started, or `None`."""
    return _inherited_fds


def with_preload(preparation, start):
    """Prepares the fork server, then calls `start` with the preparation data that new processes need: `None` if the fork server
    has applied it already. Tries again with less preloaded if preloading fails."""
    options = _options
    _prepare(preparation, options)
    try:
        return start(None if preparation == _prepared.preparation else preparation)
    except _polyproc.PreloadError as error:
        # Without the main module, which each process then imports by itself.
        _say_why(str(error), options)
        _set_preload(None, options)
        _prepared.preparation = None
    try:
        return start(preparation)
    except _polyproc.PreloadError:
        # Another module is the cause, or the system does not let a fork server create processes: nothing is preloaded.
        if _polyproc.is_forkserver_refused():
            _log_once(
                "the system does not let the fork server create processes (clone3 and clone are refused, or /proc is not "
                "mounted): each process executes the program instead, which is slower"
            )
        _polyproc.set_preload(None, [])
        return start(preparation)


def _say_why(why, options):
    kind, _, what = why.partition(":")
    if kind == "import" and options.on_error == "fail":
        raise context.StartError(f"preloading the fork server failed: {what}")
    if kind == "import" and options.on_error == "warn":
        warnings.warn(f"failed to preload: {what}", ImportWarning, stacklevel=4)
    if kind == "holds":
        _log_once(
            "the main module is not preloaded, and each process imports it, as processes must not share an object that it "
            f'holds: {what}. Create the object in a function or under `if __name__ == "__main__":`, or call '
            '`set_forkserver_preload(["__main__"])` to share it, or `set_forkserver_preload([])`'
        )


@functools.cache
def _log_once(text):
    util.get_logger().warning(text)


def _prepare(preparation, options):
    global _prepared
    main = [preparation.get(key) for key in ("init_main_from_name", "init_main_from_path")]
    key = (os.getpid(), main, options)
    if _prepared.key != key:
        if _prepared.key is None or _prepared.key[0] != os.getpid():
            # Runs before the standard library's exit function, which ends processes.
            atexit.register(_polyproc.end_forkserver, _GRACE_SECONDS)
        _set_preload(preparation, options)
        _prepared = _Prepared(key, None if options.main == "never" else preparation)


def _set_preload(preparation, options):
    if options.main == "never" and not options.modules:
        _polyproc.set_preload(None, [])
    else:
        _polyproc.set_preload(*dumps_values((preparation, *options)))


class ForkServer:
    """The fork server, under the names that it has in `multiprocessing`."""

    def ensure_running(self):
        """Starts the fork server if none runs. Returns before it is ready.

        The fork server imports the main module, and the modules of `set_forkserver_preload`, while the program continues. A
        call at the top of the main module, before its other imports, makes the first start as fast as later ones. It fixes
        the default start method, as a start does.

        Raises:
            StartError: if the system cannot execute the fork server.
        """
        if getattr(process.current_process(), "_inheriting", False):
            return  # this process is new, and imports the main module, which calls this function
        preparation = spawn.get_preparation_data()
        spawn.set_program()
        _prepare(preparation, _options)
        _polyproc.start_forkserver()

    @property
    def _forkserver_pid(self):
        return _polyproc.forkserver_pid()


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running


def connect_to_new_process(fds):
    raise NotImplementedError("the engine of polyproc creates processes")
