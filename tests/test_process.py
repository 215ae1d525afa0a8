"""Processes, with all start methods."""

import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from multiprocessing import connection as standard_connection
from multiprocessing import process as standard_process

import polyproc
import polyproc.connection
import pytest
from conftest import HANG_BOUND, REFUSE, eventually, is_running, of_methods, wait_for_end


def put(queue, value):
    queue.put(value)


def tell_about_itself(queue, *args, **kwargs):
    me, parent = polyproc.current_process(), polyproc.parent_process()
    queue.put((me.name, me.daemon, me.pid, os.getpid(), parent.name, parent.pid, args, kwargs))


def end_by(how):
    if how == "return":
        return
    if how == "raise":
        raise ValueError("as it was to")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "os._exit":
        os._exit(7)
    sys.exit(how)


def wait_for(event):
    event.wait()


class Doubler(polyproc.Process):
    def __init__(self, queue, number):
        super().__init__(name="doubler")
        self.queue, self.number = queue, number

    def run(self):
        self.queue.put((self.name, 2 * self.number))


def test_arguments_names_and_ids(mp):
    queue = mp.Queue()
    child = mp.Process(target=tell_about_itself, name="n", args=(queue, 1, "two"), kwargs={"three": [3]}, daemon=True)
    assert (child.pid, child.exitcode, child.is_alive()) == (None, None, False)
    child.start()
    name, daemon, pid, real_pid, parent, parent_pid, args, kwargs = queue.get()
    child.join()
    assert (name, daemon, args, kwargs) == ("n", True, (1, "two"), {"three": [3]})
    assert pid == real_pid == child.pid == child.ident
    assert (parent, parent_pid) == (polyproc.current_process().name, os.getpid())
    assert (child.exitcode, child.is_alive()) == (0, False)


def test_a_subclass_runs_its_run(method):
    polyproc.set_start_method(method, force=True)
    try:
        queue = polyproc.Queue()
        child = Doubler(queue, 21)
        child.start()
        assert queue.get() == ("doubler", 42)
        child.join()
    finally:
        polyproc.set_start_method(None, force=True)


@pytest.mark.parametrize(
    ("how", "code"),
    [("return", 0), ("raise", 1), ("kill", -9), ("os._exit", 7), (3, 3), (None, 0), ("a message", 1)],
)
def test_exit_codes(mp, how, code, capfd):
    child = mp.Process(target=end_by, args=(how,))
    child.start()
    child.join()
    assert child.exitcode == code
    err = capfd.readouterr().err
    assert ("ValueError: as it was to" in err) == (how == "raise")
    assert ("a message" in err) == (how == "a message")


def test_signals_and_sentinels(mp):
    event = mp.Event()
    children = [mp.Process(target=wait_for, args=(event,)) for _ in range(3)]
    for child in children:
        child.start()
    assert set(children) <= set(polyproc.active_children())
    sentinels = [child.sentinel for child in children]
    assert polyproc.connection.wait(sentinels, 0) == []
    children[0].terminate()
    assert polyproc.connection.wait(sentinels) == [children[0].sentinel]
    children[1].kill()
    children[1].join()
    assert standard_connection.wait(sentinels[1:], 0) == [children[1].sentinel]
    event.set()
    for child, code in zip(children, (-signal.SIGTERM, -signal.SIGKILL, 0)):
        child.join()
        assert child.exitcode == code
        child.close()
        with pytest.raises(ValueError, match="process object is closed"):
            child.is_alive()


def test_join_with_a_time_limit(mp):
    event = mp.Event()
    child = mp.Process(target=wait_for, args=(event,))
    child.start()
    child.join(0.01)
    assert child.exitcode is None
    with pytest.raises(ValueError, match="still running"):
        child.close()
    event.set()
    child.join(30)
    assert child.exitcode == 0


def test_one_is_an_instance_of_the_standard_class(mp):
    assert isinstance(mp.Process(), standard_process.BaseProcess)
    assert polyproc.current_process() is standard_process.current_process()


def start_another(mp_name, queue):
    mp = polyproc.get_context(mp_name)
    child = mp.Process(target=put, args=(queue, "of a daemon's"), daemon=True)
    child.start()
    child.join()


def test_daemons_may_have_children(mp, method):
    queue = mp.Queue()
    child = mp.Process(target=start_another, args=(method, queue), daemon=True)
    child.start()
    assert queue.get() == "of a daemon's"
    child.join()
    assert child.exitcode == 0


def test_what_cannot_be_pickled_is_refused_before_the_start(mp, method):
    lock = threading.Lock()
    child = mp.Process(target=lambda: lock)
    if method == "fork":
        child.start()
        child.join()
        assert child.exitcode == 0
        return
    before = len(polyproc.active_children())
    with pytest.raises(Exception, match="pickle"):
        child.start()
    assert len(polyproc.active_children()) == before


def send(connection, value):
    connection.send(value)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "Condition", "Event", "Queue", "JoinableQueue", "SimpleQueue"])
def test_handles_are_arguments_and_travel_through_all_else(mp, kind):
    one = getattr(mp, kind)()
    receiving, sending = mp.Pipe(duplex=False)
    queue = mp.Queue()
    queue.put(one)
    child = mp.Process(target=send, args=(sending, queue.get()))
    child.start()
    assert type(receiving.recv()) is type(one)
    child.join()


def test_fork_hooks_run(programs):
    code, out, err = programs.run(
        """
        import os, polyproc as mp

        def work(queue):
            queue.put(hooked)

        hooked = []
        os.register_at_fork(after_in_child=lambda: hooked.append("child"))

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            queue = mp.Queue()
            child = mp.Process(target=work, args=(queue,))
            child.start()
            print(queue.get())
            child.join()
        """
    )
    expected = [] if programs.method == "spawn" else ["child"]
    assert (code, out, err) == (0, f"{expected}\n", "")


def test_a_main_module_without_its_guard_is_told_so(programs):
    code, out, err = programs.run(
        """
        import polyproc as mp
        child = mp.get_context(METHOD).Process(target=print, args=("once",))
        child.start()
        child.join()
        print("exit code", child.exitcode)
        """
    )
    assert code == 0
    if programs.method == "fork":
        assert (out, err) == ("once\nexit code 0\n", "")
    else:
        assert out == "exit code 1\n"
        assert "An attempt has been made to start a new process before" in err


@pytest.mark.parametrize("how", ["-c", "-", "-m"])
def test_programs_without_a_file(programs, how):
    text = f"""
import polyproc as mp
import os
if __name__ == "__main__":
    mp.set_start_method({programs.method!r})
    child = mp.Process(target=os._exit, args=(9,))
    child.start()
    child.join()
    print(child.exitcode, mp.get_context().Pool(2).map(abs, [-1, -2]))
"""
    (programs.folder / "a_module.py").write_text(text)
    args = {"-c": ["-c", text], "-": ["-"], "-m": ["-m", "a_module"]}[how]
    program = programs.start_command(args, stdin=-1)
    out, err = program.communicate(text, timeout=50)
    assert (out, err) == ("9 [1, 2]\n", "")


@pytest.mark.parametrize("module", ["sys", "numpy"])
def test_functions_of_main_are_known_by_forkserver_without_running_it_again(programs, module):
    """Not even if it imports a library that starts threads on import."""
    pytest.importorskip(module)
    code, out, err = programs.run(
        """
        import polyproc as mp, sys
        import MODULE

        print("runs as", __name__, file=sys.stderr, flush=True)

        class Thing:
            def __init__(self, value):
                self.value = value

        def work(queue, thing):
            queue.put((type(thing) is Thing, thing.value))

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            queue = mp.Queue()
            for value in range(3):
                child = mp.Process(target=work, args=(queue, Thing(value)))
                child.start()
                print(queue.get())
                child.join()
        """.replace("MODULE", module)
    )
    assert (code, out) == (0, "".join(f"(True, {value})\n" for value in range(3)))
    again = {"fork": 0, "spawn": 3, "forkserver": 1}[programs.method]
    assert err == "runs as __main__\n" + again * "runs as __mp_main__\n"


def test_daemons_and_workers_end_with_the_program_however_it_ends(programs):
    text = """
        import os, signal, sys, time
        import polyproc as mp

        def sleep(pids):
            pids.put(os.getpid())
            time.sleep(1000)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            pids = mp.Queue()
            mp.Process(target=sleep, args=(pids,), daemon=True).start()
            pool = mp.Pool(1)
            pool.apply_async(sleep, (pids,))
            print(pids.get(), pids.get(), flush=True)
            if sys.argv[1] == "ends":
                sys.exit()
            time.sleep(1000)
        """
    for how in ("ends", signal.SIGTERM, signal.SIGKILL):
        program = programs.start(text, str(how), stderr=sys.stderr)
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert len(pids) == 2
        if how != "ends":
            program.send_signal(how)
        program.wait(20)
        for pid in pids:
            wait_for_end(pid)


def test_children_are_waited_for_at_the_end(programs):
    code, out, err = programs.run(
        """
        import time
        import polyproc as mp

        def work():
            time.sleep(0.3)
            print("the child has ended")

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            mp.Process(target=work).start()
            print("the program has ended", flush=True)
        """
    )
    assert (code, out, err) == (0, "the program has ended\nthe child has ended\n", "")


def test_ctrl_c_ends_all_with_one_traceback(programs):
    program = programs.start(
        """
        import os, time
        import polyproc as mp

        def sleep(seconds):
            os.write(1, b"x")
            time.sleep(seconds)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            with mp.Pool(2) as pool:
                pool.map(sleep, [100] * 4, chunksize=1)
        """
    )
    assert program.stdout.read(2) == "xx"
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=30)
    assert err.count("Traceback") == 1
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT


def hold_forever(ready, lock):
    with lock:
        ready.set()
        time.sleep(1000)


def test_locks_of_other_threads_do_not_hang_a_new_process(mp):
    """Another thread holds a lock of `logging` at the time of a fork."""
    import logging

    handler = logging.StreamHandler()
    logger = logging.getLogger("of this test")
    logger.addHandler(handler)
    held, go_on = threading.Event(), threading.Event()

    def hold():
        handler.acquire()
        held.set()
        go_on.wait()
        handler.release()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = mp.Process(target=log_something)
    child.start()
    child.join(30)
    go_on.set()
    thread.join()
    logger.removeHandler(handler)
    assert child.exitcode == 0


def log_something():
    import logging

    logging.getLogger("of this test").warning("said")


def test_nothing_is_left_open(mp):
    def count():
        return len(os.listdir("/proc/self/fd"))

    def run():
        queue, (a, b), _ = mp.Queue(), mp.Pipe(), mp.Lock()
        child = mp.Process(target=put, args=(queue, 1))
        child.start()
        assert queue.get() == 1
        child.join()
        child.close()
        a.close()
        b.close()

    run()
    before = count()
    for _ in range(10):
        run()
    eventually(lambda: count() <= before)  # the engine closes the descriptors of dead processes a moment later


@of_methods("spawn", "forkserver")
def test_descriptors_that_are_inherited_are_closed_and_those_of_its_own_start_are_not(programs):
    """Descriptors that a new interpreter opens before it runs ``polyproc`` are its own."""
    (programs.folder / "sitecustomize.py").write_text("import os\nopened = os.dup(1)\nos.set_inheritable(opened, True)\n")
    code, out, err = programs.run(
        """
        import os, sys
        import polyproc as mp

        def look(number):
            import sitecustomize
            print(is_output(number), is_output(sitecustomize.opened), flush=True)

        def is_output(number):
            try:
                return os.path.sameopenfile(number, 1)
            except OSError:
                return False

        if __name__ == "__main__":
            inherited = 100
            os.dup2(1, inherited, inheritable=True)
            process = mp.get_context(METHOD).Process(target=look, args=(inherited,))
            process.start()
            process.join()
        """,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(programs.folder), *filter(None, sys.path)])},
    )
    assert (code, err) == (0, "")
    assert out == "False True\n"


def test_random_numbers_of_processes_differ(programs):
    """They also differ for generators that were used before the process was copied."""
    (programs.folder / "drawn.py").write_text(
        textwrap.dedent("""
        import random, ssl, tempfile, uuid

        # Not `uuid1`: copies of a process may draw the same, as they may in the standard library.

        def draw():
            return random.random(), ssl.RAND_bytes(8), uuid.uuid4(), next(tempfile._get_candidate_names())

        draw()
        """)
    )
    code, out, err = programs.run(
        """
        import drawn
        import polyproc as mp

        def put(queue):
            queue.put(drawn.draw())

        if __name__ == "__main__":
            context = mp.get_context(METHOD)
            queue = context.Queue()
            processes = [context.Process(target=put, args=(queue,)) for _ in range(3)]
            for process in processes:
                process.start()
            drawn = [queue.get() for _ in processes]
            for process in processes:
                process.join()
            print([len(set(column)) for column in zip(*drawn)])
        """
    )
    assert (code, out, err) == (0, "[3, 3, 3, 3]\n", "")


def test_start_twice_and_from_another_process(mp):
    child = mp.Process(target=put, args=(mp.Queue(), 1))
    child.start()
    with pytest.raises(AssertionError, match="twice"):
        child.start()
    child.join()


def test_is_running_is_told_of_zombies():
    """Tests a helper of these tests."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)
    wait_for_end(pid)
    assert not is_running(pid)
    os.waitpid(pid, 0)


@pytest.mark.parametrize("calls", [["clone3"], ["clone3", "get_robust_list"]])
def test_starts_in_containers(programs, calls):
    """Default profiles refuse `clone3`; without `get_robust_list` as well, nothing can be cloned."""
    code, out, err = programs.run(
        REFUSE
        + """
    import sys
    import polyproc as mp

    def square(x):
        return x * x

    def put(queue, x):
        queue.put(square(x))

    if __name__ == "__main__":
        refuse(*sys.argv[1:])
        mp.set_start_method(METHOD)
        queue = mp.Queue()
        for x in range(3):
            process = mp.Process(target=put, args=(queue, x))
            process.start()
            process.join()
            assert process.exitcode == 0
        print([queue.get() for _ in range(3)])
        with mp.Pool(2) as pool:
            print(pool.map(square, range(5)))
        """,
        *calls,
    )
    assert (code, out) == (0, "[0, 1, 4]\n[0, 1, 4, 9, 16]\n"), err
    is_slower = len(calls) > 1 and programs.method == "forkserver"
    warning = "the system does not let the fork server create processes"
    assert [line.split(" (")[0] for line in err.splitlines()] == is_slower * [warning]


def test_without_proc():
    """`spawn` replaces the fork server; `fork` fails and says that it needs /proc to bind a child to its parent."""
    here = os.path.dirname(__file__)
    hidden = "mount -t tmpfs none /proc && exec " + shlex.join([sys.executable, os.path.join(here, "without_proc.py")])
    unshare = ["unshare", "--mount", "sh", "-c", hidden]
    if os.getuid() != 0 or subprocess.run([*unshare[:-1], "mount -t tmpfs none /proc"], capture_output=True).returncode:
        pytest.skip("/proc cannot be hidden here")
    done = subprocess.run(unshare, capture_output=True, text=True, timeout=HANG_BOUND)
    assert done.returncode == 0, done.stderr
    forkserver, spawn, fork = done.stdout.splitlines()
    assert (forkserver, spawn) == ("forkserver", "spawn")
    assert "a forked process needs /proc to be mounted" in fork
    assert done.stderr.count("the system does not let the fork server create processes") == 1


def test_a_program_that_knows_nothing_of_processes_is_no_success(programs):
    """As with an interpreter embedded in another program, which `sys.executable` names."""
    code, out, err = programs.run(
        """
        import polyproc as mp

        def work():
            print("works", flush=True)

        if __name__ == "__main__":
            context = mp.get_context(METHOD)
            context.set_executable("/bin/true")
            child = context.Process(target=work)
            try:
                child.start()
            except mp.StartError:
                print("not started")
            else:
                child.join()
                print("ended", child.exitcode != 0)
        """
    )
    assert (code, err) == (0, "")
    assert out in ({"fork": "works\nended False\n"}.get(programs.method, ""), "not started\n", "ended True\n")
