"""Frozen programs run themselves again, once for each of their processes, and not recursively."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest
from conftest import HANG_BOUND

PROGRAM = """
    import os
    import sys
    import polyproc as mp
    from polyproc.shared_memory import SharedMemory

    with open(os.environ["RUNS"], "a") as file:
        file.write("run\\n")

    def double(x):
        return x * 2

    def put(queue, name):
        memory = SharedMemory(name)
        queue.put(double(memory.buf[0]))
        memory.close()

    if __name__ == "__main__":
        if "SUPPORT" in os.environ:
            mp.freeze_support()
        for method in sys.argv[1:]:
            context = mp.get_context(method)
            memory = SharedMemory(create=True, size=10)
            memory.buf[0] = 4
            queue = context.Queue()
            child = context.Process(target=put, args=(queue, memory.name))
            child.start()
            child.join()
            print(method, child.exitcode, queue.get(timeout=1) if child.exitcode == 0 else None)
            memory.close()
            memory.unlink()
            if child.exitcode == 0:
                with context.Pool(2) as pool:
                    print(pool.map(double, range(4)))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if importlib.util.find_spec("PyInstaller") is None:
        pytest.skip("PyInstaller is not installed")
    folder = tmp_path_factory.mktemp("frozen")
    (folder / "program.py").write_text(textwrap.dedent(PROGRAM))
    command = [sys.executable, "-m", "PyInstaller", "--onefile", "--log-level", "ERROR", "program.py"]
    subprocess.run(command, cwd=folder, check=True, timeout=600)
    return folder / "dist" / "program"


def run(program, folder, *methods, **env):
    env = {**os.environ, "RUNS": str(folder / "runs"), **env}
    done = subprocess.run([program, *methods], env=env, capture_output=True, text=True, timeout=HANG_BOUND)
    return done.returncode, done.stdout, done.stderr, (folder / "runs").read_text().count("run")


@pytest.mark.timeout(600)
def test_a_frozen_program_has_processes(program, tmp_path):
    methods = ["fork", "spawn", "forkserver"]
    code, out, err, _ = run(program, tmp_path, *methods, SUPPORT="1")
    assert (code, err) == (0, "")
    assert out == "".join(f"{method} 0 8\n[0, 2, 4, 6]\n" for method in methods)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_frozen_program_without_support_does_not_run_itself_without_end(program, tmp_path, method):
    code, out, err, runs = run(program, tmp_path, method)
    assert "freeze_support() first in" in err
    assert (code, f"{method} 0" in out) != (0, True)
    assert runs <= 8
