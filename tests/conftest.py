"""What the tests of the Python face share."""

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

# Seconds after which what was waited for does not come: generous, as the machine may be loaded.
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
            item.add_marker(pytest.mark.timeout(0))  # pytest-timeout needs that very timer


@pytest.fixture(autouse=True)
def interval_timer(request):
    """The timer of ``--interval-timer``. It also bounds the test, in the place of pytest-timeout."""
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
    # For a wait in which no handler runs.
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
    """A context of each start method."""
    return polyproc.get_context(request.param)


def of_methods(*methods):
    """Has a test run for some start methods only."""
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
        # A shell that runs these tests in the background has SIGINT ignored.
        options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        program = subprocess.Popen([sys.executable, *args], text=True, cwd=self.folder, start_new_session=True, **options)
        self.started.append(program)
        return program

    def start_in(self, procs, text, *args):
        """As `start`, in the control group of this ``cgroup.procs``."""
        enter = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.executable, sys.argv[1:])"
        path = self.folder / "program.py"
        path.write_text(f"METHOD = {self.method!r}\n" + textwrap.dedent(text))
        enter = enter.replace("sys.argv[1:]", "[sys.executable, *sys.argv[2:]]")
        return self.start_command(["-c", enter, str(procs), str(path), *args])

    def run(self, text, *args, **options):
        """The exit code, standard output and standard error of a program."""
        program = self.start(text, *args, **options)
        out, err = finish(program)
        return program.returncode, out, err


@pytest.fixture
def programs(tmp_path, method):
    """Programs for each start method."""
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
    """Kills a program that was not waited for yet, so that its id is its own, and what it started."""
    os.killpg(program.pid, signal.SIGKILL)


def finish(program, seconds=HANG_BOUND):
    """What a program wrote, once it has ended. One that hangs is killed with its group, and the test fails."""
    try:
        return program.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_group(program)
        out, err = program.communicate()
        pytest.fail(f"the program hangs; it wrote {out!r} and {err!r}")


@pytest.fixture
def watch():
    """``watch(pid)`` has a process that is not this one's child killed after the test, if it still runs."""
    pidfds = []

    def add(pid):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            pidfds.append(os.pidfd_open(pid))
        return pid

    yield add
    for pidfd in pidfds:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def state_of(pid):
    """The state of a process's main thread, as `/proc` has it; X when there is none."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def is_running(pid):
    """Whether a process runs; one that is a zombie does not."""
    return state_of(pid) not in "ZX"


def wait_until_asleep(pid):
    """Waits until a process has slept at 20 looks in a row: it is in the blocking call that it was about to make."""
    in_a_row = 0

    def is_asleep():
        nonlocal in_a_row
        in_a_row = in_a_row + 1 if state_of(pid) == "S" else 0
        return in_a_row >= 20

    eventually(is_asleep)


def wait_for_end(pid):
    """Waits for the end of a process that is not this one's child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert polyproc.connection.wait([pidfd], HANG_BOUND), f"process {pid} lives on"
    finally:
        os.close(pidfd)


def eventually(is_so):
    """Waits for what another thread or process is about to do."""
    deadline = time.monotonic() + HANG_BOUND
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)
