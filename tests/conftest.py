"""Fixtures and helpers shared by the tests of the Python face."""

import contextlib
import faulthandler
import functools
import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import polyproc
import polyproc.connection
import pytest

# Seconds after which a wait fails: generous, as the machine may be loaded.
HANG_BOUND = float(os.environ.get("POLYPROC_HANG_BOUND", 50))


def pytest_addoption(parser):
    parser.addoption(
        "--interval-timer",
        type=float,
        metavar="SECONDS",
        help="run each test under a timer whose signals interrupt the system calls of the main thread",
    )


def pytest_collection_modifyitems(config, items):
    if config.getoption("--interval-timer"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))  # pytest-timeout uses the same timer


@pytest.fixture(autouse=True)
def interval_timer(request):
    """Runs a test under the timer of ``--interval-timer``, which also bounds the test instead of pytest-timeout."""
    period = request.config.getoption("--interval-timer")
    if not period:
        yield
        return
    end = time.monotonic() + 120

    def tick(*_):
        nonlocal end
        if time.monotonic() > end:
            end = math.inf
            pytest.fail("the test hangs")

    before = signal.signal(signal.SIGALRM, tick)
    # Ends a wait in which no handler runs.
    faulthandler.dump_traceback_later(200, exit=True)
    signal.setitimer(signal.ITIMER_REAL, period, period)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def mp(request):
    """Returns a context of each start method."""
    return polyproc.get_context(request.param)


def of_methods(*methods):
    """Runs a test for some start methods only."""
    return pytest.mark.parametrize("mp", methods, indirect=True)


@pytest.fixture
def method(mp):
    return mp.get_start_method()


class Programs:
    """Programs in files of their own, started in sessions of their own."""

    def __init__(self, folder, method):
        self.folder = folder
        self.method = method
        self.started = []

    def start(self, text, *args, name="program.py", **options):
        """Starts a program. ``METHOD`` is the start method in it."""
        path = self.folder / name
        path.write_text(f"METHOD = {self.method!r}\n" + textwrap.dedent(text))
        return self.start_command([str(path), *args], **options)

    def start_command(self, args, **options):
        for stream in ("stdout", "stderr"):
            options.setdefault(stream, subprocess.PIPE)
        # A shell that runs these tests in the background makes them ignore SIGINT.
        options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        program = subprocess.Popen([sys.executable, *args], text=True, cwd=self.folder, start_new_session=True, **options)
        self.started.append(program)
        return program

    def start_in(self, procs, text, *args):
        """As `start`, in the control group with this ``cgroup.procs``."""
        enter = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.executable, sys.argv[1:])"
        path = self.folder / "program.py"
        path.write_text(f"METHOD = {self.method!r}\n" + textwrap.dedent(text))
        enter = enter.replace("sys.argv[1:]", "[sys.executable, *sys.argv[2:]]")
        return self.start_command(["-c", enter, str(procs), str(path), *args])

    def run(self, text, *args, **options):
        """Runs a program. Returns its exit code, standard output and standard error."""
        program = self.start(text, *args, **options)
        out, err = finish(program)
        return program.returncode, out, err


@pytest.fixture
def programs(tmp_path, method):
    """Returns `Programs` for each start method; kills programs that still run after the test."""
    programs = Programs(tmp_path, method)
    yield programs
    for program in programs.started:
        if program.returncode is None:
            kill_group(program)
        program.communicate()


# For programs: after `refuse(*names)` these system calls fail with ENOSYS, as under a container's seccomp profile.
REFUSE = f"""
    import errno, sys
    sys.path.append({str(pathlib.Path(__file__).parent)!r})
    import profiles

    def refuse(*calls):
        profiles.refuse(dict.fromkeys(calls, errno.ENOSYS))
"""


def kill_group(program):
    """Kills a program and its descendants. The program must not be reaped yet, so that its id is still valid."""
    os.killpg(program.pid, signal.SIGKILL)


def finish(program, seconds=HANG_BOUND):
    """Returns the output of a program after its end. If it hangs, kills its group and fails the test."""
    try:
        return program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_group(program)
        out, err = program.communicate()
        pytest.fail(f"the program hangs; it wrote {out!r} and {err!r}")


@pytest.fixture
def watch():
    """Returns ``watch(pid)``: after the test it kills a process that is not a child of this one, if it still runs."""
    pidfds = []

    def add(pid):
        with contextlib.suppress(ProcessLookupError):  # it has exited
            pidfds.append(os.pidfd_open(pid))
        return pid

    yield add
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def state_of(pid):
    """Returns the state of a process's main thread from `/proc`; X if there is no such process."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_running(pid):
    """Returns whether a process runs; a zombie does not."""
    return state_of(pid) not in "ZX"


def wait_until_asleep(pid):
    """Waits until a process has slept at 20 checks in a row: it is in the blocking call that it was about to make."""
    in_a_row = 0

    def is_asleep():
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if state_of(pid) == "S" else 0
        return in_a_row >= 20

    eventually(is_asleep)


def wait_for_end(pid):
    """Waits for the end of a process that is not a child of this one."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert polyproc.connection.wait([pidfd], HANG_BOUND), f"process {pid} lives on"
    finally:
        os.close(pidfd)


def eventually(is_so):
    """Waits until `is_so` returns true, which another thread or process makes happen."""
    deadline = time.monotonic() + HANG_BOUND
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)
