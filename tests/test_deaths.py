"""Workers and processes that die, overwrite shared memory or are killed at their start, and the effects on others."""

import os
import signal
import subprocess
import threading
import warnings

import pytest
from conftest import eventually, of_methods, wait_for_end
from polyproc.pool import PoolError

SCRIBBLE = """
    import os, sys, threading
    import polyproc as mp
    import polyproc.pool

    def wait_for(begun, event):
        begun.set()
        event.wait()
        return "waited"

    def memory_files(name):
        found = {}
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.readlink(f"/proc/self/fd/{fd}").startswith(f"/memfd:{name} "):
                    found[os.fstat(int(fd)).st_ino] = int(fd)
            except FileNotFoundError:
                pass
        return found

    def scribble(name, known, offset, length, written=None):
        own = [fd for inode, fd in memory_files(name).items() if inode not in known]
        for fd in own:
            os.pwrite(fd, b"\\xff" * length, offset)
        assert own
        if written is not None:
            written.set()

"""


@pytest.mark.parametrize(("offset", "length"), [(0, 8), (128, 8), (384, 8), (0, 4096), (4096, 4096)])
def test_a_worker_that_overwrites_its_stream(programs, offset, length):
    """Only its own task may fail."""
    code, out, err = programs.run(
        SCRIBBLE
        + f"""
    if __name__ == "__main__":
        mp.set_start_method(METHOD)
        begun, event = mp.Event(), mp.Event()
        with mp.Pool(1) as other:
            beside = other.apply_async(wait_for, (begun, event))
            begun.wait()
            known = list(memory_files("polyproc-worker"))  # a fork inherits them
            pool = mp.Pool(1)
            try:
                pool.apply(scribble, ("polyproc-worker", known, {offset}, {length}))
            except mp.pool.PoolError as error:
                print(type(error).__name__)
            for n in range(20):
                assert pool.apply(abs, (-n,)) == n
            event.set()
            assert beside.get(20) == "waited"
            pool.terminate()
            pool.join()
        print("ends")
        """
    )
    assert (code, err) == (0, "")
    assert out in ("ends\n", "WorkerLost\nends\n")


@pytest.mark.parametrize("end", ["results", "terminate"])
@pytest.mark.parametrize(("offset", "length"), [(0, 64), (0, 4096), (0, 65536), (4096, 65536)])
def test_a_worker_that_overwrites_the_board_of_its_pool(programs, offset, length, end):
    """Each call ends, possibly with an error, at the latest when the pool is terminated; other pools work."""
    code, out, err = programs.run(
        SCRIBBLE
        + f"""
    if __name__ == "__main__":
        mp.set_start_method(METHOD)
        pool, written = mp.Pool(2), mp.Event()
        results = [pool.apply_async(scribble, ("polyproc-pool", [], {offset}, {length}, written))]
        results += [pool.apply_async(abs, (-n,)) for n in range(20)]
        written.wait()
        results += [pool.apply_async(abs, (-n,)) for n in range(20)]
        if "{end}" == "terminate":
            pool.terminate()
            pool.join()
        for result in results:
            try:
                result.get()
            except Exception:
                pass
        pool.terminate()
        pool.join()
        with mp.Pool(1) as pool:
            assert pool.apply(abs, (-1,)) == 1
        print("ends")
        """
    )
    assert (code, out) == (0, "ends\n"), err


def blocked_signals(_=None):
    return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def get_pid(_=None):
    return os.getpid()


def terminate_a_command(_=None):
    command = subprocess.Popen(["sleep", "1000"])
    try:
        command.terminate()
        return command.wait(20)
    except subprocess.TimeoutExpired:
        return "lives on"
    finally:
        command.kill()
        command.wait()


def wait_for_an_alarm(_=None):
    rung = threading.Event()
    signal.signal(signal.SIGALRM, lambda *_: rung.set())
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    return rung.wait(20)


def replace_worker(pool):
    pid = pool.apply(get_pid)
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)


@pytest.mark.parametrize(
    ("task", "expected"),
    [(blocked_signals, []), (terminate_a_command, -signal.SIGTERM), (wait_for_an_alarm, True)],
)
def test_a_replacement_hears_signals_as_the_first_worker_does(mp, task, expected):
    with mp.Pool(1) as pool:
        assert pool.apply(task) == expected
        for _ in range(3):
            replace_worker(pool)
            assert pool.apply(task) == expected


def say_and_wait(born, event):
    born.put(os.getpid())
    event.wait()


def test_workers_that_are_killed_in_the_initializer_are_replaced(mp):
    """A kill from outside, as by the out-of-memory killer, does not count as a failure of the initializer."""
    born, event = mp.Queue(), mp.Event()
    with mp.Pool(1, say_and_wait, (born, event)) as pool:
        result = pool.apply_async(abs, (-1,))
        for _ in range(5):
            pid = born.get(timeout=60)
            os.kill(pid, signal.SIGKILL)
            wait_for_end(pid)
        event.set()
        assert result.get(60) == 1


def test_workers_that_are_killed_at_birth_are_replaced(mp):
    with mp.Pool(2) as pool:
        pool.map(abs, range(100), 1)
        killed = set()

        def kill_the_new():
            for worker in pool._pool:
                if worker.pid not in killed:
                    killed.add(worker.pid)
                    try:
                        os.kill(worker.pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            return len(killed) >= 16

        while not kill_the_new():
            pass
        assert pool.apply_async(abs, (-1,)).get(60) == 1
        assert pool.map_async(abs, range(-100, 0), 1).get(60) == list(range(100, 0, -1))


@of_methods("fork")
def test_another_thread_that_reaps_all_children(programs):
    code, out, err = programs.run(
        """
        import os, threading
        import polyproc as mp

        def reap():
            while True:
                try:
                    os.waitpid(-1, 0)
                except ChildProcessError:
                    pass

        if __name__ == "__main__":
            threading.Thread(target=reap, daemon=True).start()
            context = mp.get_context(METHOD)
            for _ in range(200):
                child = context.Process(target=int)
                child.start()
                child.join()
                assert child.exitcode is not None
            with context.Pool(2) as pool:
                print(pool.map(abs, [-1, -2]))
        """
    )
    assert (code, out, err) == (0, "[1, 2]\n", "")


@of_methods("forkserver")
def test_a_child_made_in_advance_that_is_killed_leaves_no_zombie(programs):
    code, out, err = programs.run(
        """
        import os, signal, time
        import polyproc as mp
        from polyproc.forkserver import _forkserver

        def children():
            found = {}
            for name in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{name}/stat") as file:
                        state, parent = file.read().rpartition(")")[2].split()[:2]
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(parent) == os.getpid() and int(name) != _forkserver._forkserver_pid:
                    found[int(name)] = state
            return found

        def eventually(is_so):
            end = time.monotonic() + 20
            while not is_so():
                assert time.monotonic() < end, children()
                time.sleep(0.01)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            for _ in range(3):
                child = mp.Process(target=int)
                child.start()
                child.join()
            eventually(children)
            spares = list(children())
            for pid in spares:
                os.kill(pid, signal.SIGKILL)
            eventually(lambda: not set(spares) & set(children()))
            child = mp.Process(target=int)
            child.start()
            child.join()
            print(child.exitcode)
        """
    )
    assert (code, out, err) == (0, "0\n", "")


def hold(lock, ready):
    lock.acquire()
    ready.set()
    threading.Event().wait()


def take(lock):
    if not lock.acquire(timeout=20):
        os._exit(1)
    lock.release()


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_the_lock_of_the_dead_where_warnings_are_errors(mp, kind):
    lock, ready = getattr(mp, kind)(), mp.Event()
    owner = mp.Process(target=hold, args=(lock, ready))
    owner.start()
    ready.wait()
    owner.kill()
    owner.join()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with lock:
                pass
        except RuntimeWarning:
            pass
    # This process must not hold it, as it continues to run.
    next_owner = mp.Process(target=take, args=(lock,))
    next_owner.start()
    next_owner.join(60)
    assert next_owner.exitcode == 0


def answer_forever(questions, answers):
    def answer():
        while True:
            answers.put(("thread", questions.get()))

    def handler(number, _):
        answers.put(("handler", number))

    threading.Thread(target=answer, daemon=True).start()
    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, handler)


def test_threads_and_signal_handlers_of_an_idle_worker_run(mp):
    questions, answers = mp.Queue(), mp.Queue()
    with mp.Pool(1, answer_forever, (questions, answers)) as pool:
        pid = pool.apply(get_pid)
        for number in range(10):
            questions.put(number)
            assert answers.get(timeout=20) == ("thread", number)
        for number in (signal.SIGUSR1, signal.SIGTERM):
            os.kill(pid, number)
            assert answers.get(timeout=20) == ("handler", number)
        assert pool.apply(get_pid) == pid


def test_workers_that_ignore_sigterm_and_arrive_late(programs):
    """A pool is terminated while its workers start."""
    code, out, err = programs.run(
        """
        import signal
        import polyproc as mp

        def ignore_sigterm():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            for _ in range(5):
                pool = mp.Pool(4, ignore_sigterm)
                pool.terminate()
                pool.join()
            print("ends")
        """
    )
    assert (code, out, err) == (0, "ends\n", "")


def test_idle_workers_are_replaced_again_and_again(mp):
    """Deaths of workers without a task make no call fail, however many there are."""
    with mp.Pool(1) as pool:
        for number in range(5):
            replace_worker(pool)
            assert pool.apply(abs, (-number,)) == number
        with pytest.raises(PoolError):
            pool.apply(os._exit, (1,))
        eventually(lambda: pool._pool)
