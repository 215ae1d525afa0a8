"""Typical programs, unchanged, print the same with the standard library and after `polyproc.install()`."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest
from conftest import HANG_BOUND

PROGRAMS = sorted((pathlib.Path(__file__).parent / "programs").glob("*.py"))


def run(program, folder):
    command = [sys.executable, "-W", "ignore", str(program)]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    del env["PYTEST_CURRENT_TEST"]  # with this variable, notebooks do not capture output
    return subprocess.run(command, capture_output=True, text=True, timeout=2 * HANG_BOUND, env=env, cwd=folder)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_does_the_same_after_install(program, tmp_path):
    first = program.read_text().partition("\n")[0]
    for module in first.removeprefix("# needs: ").split(", ") if first.startswith("# needs: ") else []:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    theirs = run(program, tmp_path)
    assert theirs.returncode == 0, theirs.stderr
    # Every interpreter that the program starts imports this.
    (tmp_path / "sitecustomize.py").write_text("import polyproc\npolyproc.install()\n")
    ours = run(program, tmp_path)
    assert (ours.returncode, ours.stdout) == (0, theirs.stdout), ours.stderr
