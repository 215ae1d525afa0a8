"""The main job in Python, as a user runs it."""

import json
import pathlib
import subprocess
import sys

import pytest

PROGRAM = pathlib.Path(__file__).parent.parent / "examples/python/ast_audit.py"


def run(*args):
    command = [sys.executable, str(PROGRAM), *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "package/good.py").write_text(
        "def f(x: int):\n    assert eval('x')\n    try:\n        pass\n    except:\n        pass\n"
    )
    (tmp_path / "package/bad.py").write_text("def f(:\n")
    (tmp_path / "not_utf8.py").write_bytes(b"x = '\xff'\n")
    (tmp_path / "deep.py").write_text("x = " + "-" * 200_000 + "1\n")
    return tmp_path


def test_json(folder):
    code, out, err = run(folder, "--json", "--workers", 2)
    assert (code, err) == (0, "")
    report = json.loads(out)
    counts = report["packages"]["package"]
    assert [counts[name] for name in ("files", "lines", "functions", "bare_excepts", "risky_calls", "asserts")] == [
        2,
        7,
        1,
        1,
        1,
        1,
    ]
    problems = {pathlib.Path(path).name: problem for path, problem in report["problems"].items()}
    assert set(problems) == {"bad.py", "not_utf8.py", "deep.py"}
    assert "SyntaxError" in problems["bad.py"]


def test_limits_are_lines_of_the_report(folder):
    slow = folder / "package" / "slow.py"
    slow.write_text("x = 1\n" * 200_000)
    code, out, err = run(folder, "--json", "--timeout", "0.000001")
    assert (code, err) == (0, "")
    assert "exceeded its time limit" in json.loads(out)["problems"][str(slow)]


def test_table(folder):
    code, out, err = run(folder)
    assert (code, err) == (0, "")
    assert "3 files could not be parsed:" in out


@pytest.mark.parametrize(
    "args",
    [["/no/such/folder"], ["--workers", "0"], ["--workers", "x"], ["--timeout", "-1"], ["--memory", "0"], ["--nonsense"]],
)
def test_wrong_arguments(args):
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith("usage:")
    assert "Traceback" not in err
