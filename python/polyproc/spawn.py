"""Executes this program again for a new process, and prepares that process."""

import atexit
import os
import sys
from multiprocessing import spawn as _standard
from multiprocessing.spawn import (
    get_executable,
    import_main_path,
    is_forking,
    set_executable,
)

from . import _pickling, _polyproc, context, util

__all__ = [
    "_main",
    "freeze_support",
    "set_executable",
    "get_executable",
    "get_preparation_data",
    "get_command_line",
    "import_main_path",
]

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


# The arguments of a frozen program, which executes itself again, for a child process: a marker, then the role of the child.
_FROZEN = "--multiprocessing-fork"
_PROCESS, _TRACKER = "polyproc", "polyproc-tracker"


def _frozen_role():
    """Returns the role of this process if a frozen program has executed itself for it, else `None`."""
    is_frozen = getattr(sys, "frozen", False) and sys.argv[1:2] == [_FROZEN] and sys.argv[2:] in ([_PROCESS], [_TRACKER])
    return sys.argv[2] if is_frozen else None


def freeze_support():
    """Runs this process as a child if a frozen program (by PyInstaller, for example) started it; then it does not return.

    Must be called first in the main module of such a program. Does nothing in any other process.
    """
    role = _frozen_role()
    if role is not None:
        atexit.unregister(_end_without_support)
    if role == _PROCESS:
        _polyproc.init()
    if role == _TRACKER:
        from . import resource_tracker

        resource_tracker._main()
        sys.exit()
    if _standard.is_forking(sys.argv):
        _standard.freeze_support()


def _end_without_support():
    sys.stderr.write(
        "a frozen program started this process: call polyproc.freeze_support() first in the main module of the program\n"
    )
    sys.stderr.flush()
    os._exit(255)


if _frozen_role() is not None:
    # Without `freeze_support` the program itself runs: its end must not look like that of a child that ran.
    atexit.register(_end_without_support)


def _frozen_command(role):
    if _frozen_role() is not None:
        raise context.StartError(
            "cannot start a process, as this child of a frozen program does not run as a child: "
            "call polyproc.freeze_support() first in the main module"
        )
    return [os.fsdecode(get_executable()), _FROZEN, role]


def get_command_line(**kwds):
    """Returns the command that executes a new process, which receives its work order over a socket."""
    if getattr(sys, "frozen", False):
        return _frozen_command(_PROCESS)
    program = f"import sys; sys.path.append({_HERE!r}); from polyproc._polyproc import init; init()"
    return [os.fsdecode(get_executable()), *util._args_from_interpreter_flags(), "-c", program]


def set_program():
    """Passes the command for new processes to the engine, if it has changed."""
    command = tuple(get_command_line())
    if set_program.last != command:
        _polyproc.set_program(list(command))
        set_program.last = command


set_program.last = None


def get_preparation_data(name=""):
    """Returns the data of this process that a new process needs before it can unpickle a process object."""
    from . import resource_tracker

    data = _standard.get_preparation_data(name)
    del data["name"]  # the process object has the name
    data["sys_argv"] = list(sys.argv)
    if _pickling.is_main_by_value():  # not importable: standard input, for example, or a package's `__main__`
        data.pop("init_main_from_path", None)
        data.pop("init_main_from_name", None)
    data["polyproc"] = {
        "start_method": context._default_context.get_start_method(),
        "is_main_by_value": _pickling.is_main_by_value(),
        "is_installed": context.is_installed(),
    }
    data["polyproc_tracker"] = resource_tracker._resource_tracker
    return data


def prepare(data):
    """Applies preparation data, so that this process can unpickle a process object."""
    own = data.pop("polyproc")
    context._default_context.set_start_method(own["start_method"], force=True)
    _pickling.set_main_by_value(own["is_main_by_value"])
    if own["is_installed"]:
        sys.modules["polyproc"].install()
    _standard.prepare(data)


def _main(*_):
    raise NotImplementedError("processes of polyproc receive their work over a socket")
