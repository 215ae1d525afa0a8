"""How this program is executed anew, and made ready in a new process."""

import os
import sys
from multiprocessing import spawn as _standard
from multiprocessing.spawn import (
    freeze_support,
    get_executable,
    import_main_path,
    is_forking,
    set_executable,
)

from . import _carry, _polyproc, context, util

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


def get_command_line(**kwds):
    """The command that runs a new process, which is told what to do over a socket."""
    program = f"import sys; sys.path.append({_HERE!r}); from polyproc._polyproc import init; init()"
    return [os.fsdecode(get_executable()), *util._args_from_interpreter_flags(), "-c", program]


def set_program():
    """Tells the engine."""
    command = tuple(get_command_line())
    if set_program.last != command:
        _polyproc.set_program(list(command))
        set_program.last = command


set_program.last = None


def get_preparation_data(name=""):
    """What any new process must know of this one before it can unpickle a process object."""
    from . import resource_tracker

    data = _standard.get_preparation_data(name)
    del data["name"]  # a process object has it
    data["sys_argv"] = list(sys.argv)
    if _carry.is_main_by_value():  # standard input, say, or the program itself
        data.pop("init_main_from_path", None)
        data.pop("init_main_from_name", None)
    data["polyproc"] = {
        "start_method": context._default_context.get_start_method(),
        "is_main_by_value": _carry.is_main_by_value(),
        "is_installed": "polyproc._install" in sys.modules and sys.modules["polyproc._install"].is_installed(),
    }
    data["polyproc_tracker"] = resource_tracker._resource_tracker
    return data


def prepare(data):
    """Makes this process ready to unpickle a process object."""
    own = data.pop("polyproc")
    context._default_context.set_start_method(own["start_method"], force=True)
    _carry.set_main_by_value(own["is_main_by_value"])
    if own["is_installed"]:
        sys.modules["polyproc"].install()
    _standard.prepare(data)


def _main(*_):
    raise NotImplementedError("processes of polyproc are told over a socket what to run")
