"""State that the fork server shares between processes, and state that it does not share."""

import os
import socket
import tempfile
import threading

import pytest
from conftest import of_methods

# A program whose main module runs `made`. Each of its processes reports the time at which the module was imported; the program
# prints the number of different imports.
PROGRAM = """
    import os
    import sys
    import time
    import polyproc as mp
    {made}
    IMPORTED = time.monotonic_ns()

    def imported(_=None):
        return IMPORTED

    def put(queue):
        queue.put(IMPORTED)

    if __name__ == "__main__":
        {options}
        queue = mp.Queue()
        for _ in range(3):
            child = mp.Process(target=put, args=(queue,))
            child.start()
            child.join()
        print(len({{queue.get() for _ in range(3)}}), flush=True)
"""
HELD = {
    "a socket": "import socket; pair = socket.socketpair()",
    "the open file": "file = open(__file__)",
    "a pipe": "pipe = os.pipe()",
    "TemporaryDirectory": "import tempfile; folder = tempfile.TemporaryDirectory()",
    "registered with atexit": "import atexit; atexit.register(os.getpid)",
    "an event loop": "import asyncio; loop = asyncio.new_event_loop()",
    "a connection to a database": "import sqlite3; db = sqlite3.connect(os.path.join(os.path.dirname(__file__), 'db')); "
    "db.execute('create table if not exists t (x)')",
    "'generator'": "import random; generator = random.Random(1)",
}


def run(programs, made="", options="pass"):
    return programs.run(PROGRAM.format(made=made, options=options))


@pytest.mark.parametrize("made", ["", "import logging, threading, tempfile", "null = open(os.devnull)", "lock = mp.Lock()"])
@of_methods("forkserver")
def test_what_can_be_shared_is_imported_once(programs, made):
    assert run(programs, made) == (0, "1\n", "")


@of_methods("forkserver")
def test_the_fork_server_can_be_started_before_it_is_needed(programs):
    code, out, err = programs.run(
        """
        import os
        import sys
        import time
        import polyproc as mp
        mp.forkserver.ensure_running()
        server = mp.forkserver._forkserver._forkserver_pid
        mark = os.path.join(os.path.dirname(__file__), "imported")
        if __name__ == "__mp_main__":
            with open(mark, "w") as file:
                file.write(f"{os.getpid()}\\n")
            IMPORTER = os.getpid()

        def put(queue):
            queue.put(IMPORTER)

        if __name__ == "__main__":
            while not (os.path.exists(mark) and open(mark).read().endswith("\\n")):
                time.sleep(0.01)
            mp.forkserver.ensure_running()
            queue = mp.Queue()
            child = mp.Process(target=put, args=(queue,))
            child.start()
            print({server, queue.get(), int(open(mark).read())} == {server}, flush=True)
            child.join()
        """
    )
    assert (code, out, err) == (0, "True\n", "")


@of_methods("forkserver")
def test_a_fork_server_that_was_not_needed_ends_with_its_program(programs):
    code, out, err = programs.run(
        """
        import multiprocessing
        import time
        import polyproc
        polyproc.install()
        multiprocessing.forkserver.ensure_running()
        print(multiprocessing.forkserver._forkserver._forkserver_pid, flush=True)
        if __name__ == "__mp_main__":
            time.sleep(1000)
        """
    )
    assert (code, err) == (0, "")
    assert not os.path.exists(f"/proc/{int(out)}")


@pytest.mark.parametrize("what", HELD)
@of_methods("forkserver")
def test_a_main_module_that_holds_something_is_imported_by_each_process(programs, what):
    code, out, err = run(programs, HELD[what])
    assert (code, out, err.count("\n")) == (0, "3\n", 1)
    assert "processes must not share" in err
    if not what.startswith(("an event", "a connection")):
        assert what.replace("a pipe", "pipe:[") in err


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ("mp.set_forkserver_preload(['__main__'])", 1),
        ("mp.get_context('forkserver').preload = 'always'", 1),
        ("mp.set_forkserver_preload([])", 3),
        ("mp.set_forkserver_preload(['json'])", 3),
        ("mp.get_context('forkserver').preload = 'never'", 3),
    ],
)
@of_methods("forkserver")
def test_whether_main_is_shared_can_be_said(programs, options, count):
    assert run(programs, HELD["the open file"], options) == (0, f"{count}\n", "")


@of_methods("forkserver")
def test_a_module_that_is_named_is_shared(programs):
    (programs.folder / "named.py").write_text("import time\nSTAMP = time.monotonic_ns()\n")
    code, out, err = programs.run(
        """
        import sys
        import polyproc as mp

        def put(queue):
            import named
            queue.put(named.STAMP)

        if __name__ == "__main__":
            mp.set_forkserver_preload(["named"])
            queue = mp.Queue()
            for _ in range(3):
                child = mp.Process(target=put, args=(queue,))
                child.start()
                child.join()
            print(len({queue.get() for _ in range(3)}), "named" in sys.modules)
        """
    )
    assert (code, out, err) == (0, "1 False\n", "")


@pytest.mark.parametrize("on_error", ["ignore", "fail"])
@of_methods("forkserver")
def test_a_module_that_cannot_be_preloaded(programs, on_error):
    options = f"mp.set_forkserver_preload(['no_such_module'], on_error={on_error!r})"
    code, out, err = run(programs, options=options)
    if on_error == "ignore":
        assert (code, out, err) == (0, "3\n", "")
    else:
        assert code == 1
        assert "'no_such_module' could not be preloaded" in err


@of_methods("forkserver")
def test_bad_options_are_named(mp):
    with pytest.raises(ValueError, match="'auto', 'always' or 'never', not 'yes'"):
        mp.preload = "yes"
    with pytest.raises(ValueError, match="'ignore', 'warn' or 'fail', not 'no'"):
        mp.set_forkserver_preload([], on_error="no")


@of_methods("forkserver")
def test_the_fork_server_ends_in_order(programs):
    made = "import atexit, tempfile; folder = tempfile.TemporaryDirectory(dir=os.path.dirname(__file__)); owner = os.getpid()"
    code, out, err = run(programs, made, "mp.set_forkserver_preload(['__main__'])")
    assert (code, out, err) == (0, "1\n", "")
    assert not [path for path in programs.folder.iterdir() if path.is_dir() and path.name.startswith("tmp")]


@of_methods("spawn", "forkserver")
def test_processes_do_at_exit_what_their_import_of_main_left_to_be_done(programs):
    made = "import tempfile; folder = tempfile.TemporaryDirectory(dir=os.path.dirname(__file__))"
    code, out, _ = run(programs, made, "mp.set_start_method(METHOD)")
    assert (code, out) == (0, "3\n")
    assert not [path for path in programs.folder.iterdir() if path.is_dir() and path.name.startswith("tmp")]


@of_methods("forkserver")
def test_no_two_workers_have_one_connection(programs):
    """The server echoes each request; a process that reads the answer to another's request reports it."""
    connections = []

    def serve(connection):
        connections.append(connection)
        with connection, connection.makefile("rwb") as file:
            for line in file:
                file.write(line)
                file.flush()

    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        code, out, err = programs.run(
            f"""
            import socket
            import polyproc as mp
            connection = socket.create_connection(("127.0.0.1", {server.getsockname()[1]}))
            file = connection.makefile("rwb")

            def ask(n):
                file.write(b"%d\\n" % n)
                file.flush()
                return int(file.readline())

            if __name__ == "__main__":
                with mp.Pool(4) as pool:
                    print(pool.map(ask, range(400), 1) == list(range(400)))
            """
        )
    assert (code, out) == (0, "True\n"), err
    assert len(connections) >= 3  # the program's, and those of workers that needed one


@of_methods("forkserver")
def test_no_two_workers_have_one_place_in_a_file(programs):
    with tempfile.NamedTemporaryFile("wb", dir=programs.folder, delete=False) as numbers:
        numbers.write(b"".join(b"%7d\n" % n for n in range(1000)))
    code, out, _ = programs.run(
        f"""
        import random
        import polyproc as mp
        file = open({numbers.name!r}, "rb", buffering=0)

        def read(n):
            file.seek(n * 8)
            return int(file.read(8))

        if __name__ == "__main__":
            wanted = [random.randrange(1000) for _ in range(40_000)]
            with mp.Pool(4) as pool:
                print(sum(a != b for a, b in zip(pool.map(read, wanted, 100), wanted)))
        """
    )
    os.unlink(numbers.name)
    assert (code, out) == (0, "0\n")


@of_methods("fork", "forkserver", "spawn")
def test_random_numbers_of_numpy_differ(programs):
    pytest.importorskip("numpy")
    code, out, _ = programs.run(
        """
        import numpy
        import polyproc as mp
        numpy.random.rand()

        def draw(barrier):
            barrier.wait()
            return numpy.random.rand()

        def begin(given):
            global barrier
            barrier = given

        def task(_):
            return draw(barrier)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            with mp.Pool(4, begin, (mp.Barrier(4),)) as pool:
                print(len(set(pool.map(task, range(4), 1))))
        """
    )
    assert (code, out) == (0, "4\n")
