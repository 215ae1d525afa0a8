"""What the tests of the Python face share."""

import functools
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


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def mp(request):
    """A context of each start method."""
    return polyproc.get_context(request.param)


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

    def run(self, text, *args, **options):
        """The exit code, standard output and standard error of a program."""
        program = self.start(text, *args, **options)
        out, err = program.communicate(timeout=50)
        return program.returncode, out, err


@pytest.fixture
def programs(tmp_path, method):
    """Programs for each start method."""
    programs = Programs(tmp_path, method)
    yield programs
    for program in programs.started:
        if program.poll() is None:
            program.kill()
        program.communicate()


def is_running(pid):
    """Whether a process runs; one that is a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for_end(pid):
    """Waits for the end of a process that is not this one's child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert polyproc.connection.wait([pidfd], 20), f"process {pid} lives on"
    finally:
        os.close(pidfd)


def eventually(is_so):
    """Waits for what another thread or process is about to do."""
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)
