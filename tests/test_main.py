"""All kinds of `__main__`: its definitions are sent by value if other processes cannot import it."""

import os
import subprocess
import sys
import textwrap
import zipfile

import pytest
from conftest import HANG_BOUND

PROGRAM = """
    import os
    import sys
    import polyproc as mp

    base = 10

    class Kind:
        def __init__(self, value):
            self.value = value

    def make(x):
        return Kind(add(x))

    def add(x):
        return x + base

    class Child(mp.Process):
        def __init__(self, queue):
            super().__init__()
            self.queue = queue

        def run(self):
            self.queue.put(make(5))

    if __name__ == "__main__":
        mp.set_start_method(os.environ["METHOD"])
        with mp.Pool(2) as pool:
            made = pool.map(make, [1, 2])
            print([thing.value for thing in made], all(isinstance(thing, Kind) for thing in made))
            base = 20
            print(pool.apply(add, (1,)))
        queue = mp.Queue()
        child = Child(queue)
        child.start()
        thing = queue.get()
        print(thing.value, isinstance(thing, Kind))
        child.join()
        queue.put(thing)
        child = mp.Process(target=lambda queue: print(queue.get().value, flush=True), args=(queue,))
        child.start()
        child.join()
        with mp.ProcessPoolExecutor(2, mp_context=mp.get_context()) as executor:
            print(executor.submit(make, 3).result().value)
"""
# Forked workers have the program's values of the time of the fork; sent by value, they are current.
OUT = "[11, 12] True\n21\n25 True\n25\n23\n"


def as_argument(folder):
    return ["-c", textwrap.dedent(PROGRAM)], None


def as_input(folder):
    return ["-"], textwrap.dedent(PROGRAM)


def as_package(folder):
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()
    (folder / "package" / "__main__.py").write_text(textwrap.dedent(PROGRAM))
    return ["-m", "package"], None


def as_folder(folder):
    as_package(folder)
    return ["package"], None


def as_zip(folder):
    with zipfile.ZipFile(folder / "program.zip", "w") as file:
        file.writestr("__main__.py", textwrap.dedent(PROGRAM))
    return ["program.zip"], None


@pytest.mark.parametrize("how", [as_argument, as_input, as_package, as_folder, as_zip])
def test_functions_and_classes_of_main_go_by_value(tmp_path, method, how):
    args, text = how(tmp_path)
    program = subprocess.run(
        [sys.executable, *args],
        cwd=tmp_path,
        input=text,
        env={**os.environ, "METHOD": method},
        capture_output=True,
        text=True,
        timeout=HANG_BOUND,
    )
    assert (program.returncode, program.stdout, program.stderr) == (0, OUT, "")


def test_a_program_that_is_imported_by_others_goes_by_name(programs):
    code, out, err = programs.run(
        """
        import polyproc as mp
        import pickle

        def work():
            return __name__

        if __name__ == "__main__":
            with mp.get_context(METHOD).Pool(1) as pool:
                print(pool.apply(work))
        """
    )
    assert (code, out, err) == (0, "__main__\n" if programs.method == "fork" else "__mp_main__\n", "")
