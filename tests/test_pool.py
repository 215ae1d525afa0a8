"""Pools: the behaviour of `multiprocessing`'s, and polyproc's additions."""

import asyncio
import itertools
import os
import resource
import signal
import sys
import threading
import time

import polyproc
import pytest
from conftest import eventually, wait_for_end
from polyproc.pool import (
    MaybeEncodingError,
    NoWorkers,
    OutOfMemory,
    PoolTerminated,
    TaskCancelled,
    TaskExited,
    TaskTimeout,
    WorkerLost,
)


def square(x):
    return x * x


def add(a, b=0):
    return a + b


def get_pid(_=None):
    return os.getpid()


def wait_for(event):
    event.wait()


def tell_and_sleep(queue):
    queue.put(os.getpid())
    time.sleep(1000)


@pytest.fixture
def pool(mp):
    with mp.Pool(2) as pool:
        yield pool


def test_calls(pool):
    numbers = list(range(100))
    squares = [x * x for x in numbers]
    assert pool.apply(add, (1,), {"b": 2}) == 3
    assert pool.apply_async(add, (1, 2)).get() == 3
    for chunksize in (None, 1, 7, 1000):
        assert pool.map(square, numbers, chunksize) == squares
        assert pool.map(square, iter(numbers), chunksize) == squares
        assert pool.starmap(add, zip(numbers, numbers), chunksize) == [2 * x for x in numbers]
    for chunksize in (1, 7):
        assert list(pool.imap(square, numbers, chunksize)) == squares
        assert sorted(pool.imap_unordered(square, iter(numbers), chunksize)) == squares
    assert pool.map(square, []) == [] == list(pool.imap(square, []))
    assert pool.map_async(square, numbers).get(30) == squares
    assert pool.starmap_async(add, [(1, 2)]).get(30) == [3]


VALUES = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**63, 10**30, 1.5, float("inf"), "", "text", "\ud800", "é" * 100_000,
    b"", b"bytes", b"x" * 3_000_000, (), (1, ("two", [3])), [], [1, 2], [[1], [1]], {}, {"a": 1}, {"a": [1]}, {1, 2},
    frozenset([1]), 1j, range(3), bytearray(b"x"), [True, 1, 1.0, None, "x", b"x"], {(1, 2): "x"},
    [0] * 100_000, [0.5] * 100_000, list(range(-1000, 1000)), [2**40] * 10, [1, 2**70], ["x"] * 1000,
]  # fmt: skip


def identity(x):
    return x


def test_values_arrive_as_they_are(mp, pool):
    queue, (a, b) = mp.Queue(), mp.Pipe()
    for value in VALUES:
        results = [pool.apply(identity, (value,)), pool.map(identity, [value])[0], next(pool.imap(identity, [value]))]
        queue.put(value)
        results.append(queue.get())
        a.send(value)
        results.append(b.recv())
        for result in results:
            assert result == value
            assert type(result) is type(value)
    assert pool.map(identity, VALUES) == VALUES
    assert repr(pool.map(identity, [1, True, 1.0, 0, False, -0.0])) == "[1, True, 1.0, 0, False, -0.0]"


def test_what_was_one_object_stays_one(mp, pool):
    inner = [1]
    one, other = pool.apply(identity, ([inner, inner],))
    assert one is other
    queue = mp.Queue()
    queue.put((inner, inner))
    one, other = queue.get()
    assert one is other


def test_callbacks(pool):
    said = []
    pool.apply_async(square, (3,), callback=said.append).wait()
    pool.map_async(square, range(3), callback=said.append).wait()
    pool.apply_async(raise_error, ("x",), error_callback=said.append).wait()
    assert said[:2] == [9, [0, 1, 4]]
    assert isinstance(said[2], ValueError)


def test_a_callback_that_raises_is_told_and_the_rest_goes_on(pool, capfd):
    result = pool.apply_async(square, (3,), callback=raise_error)
    assert result.get(30) == 9
    assert pool.apply(square, (4,)) == 16
    assert "ValueError: 9" in capfd.readouterr().err


def test_terminate_in_a_callback(mp):
    pool = mp.Pool(2)
    done = threading.Event()

    def callback(_):
        pool.terminate()
        done.set()

    pool.apply_async(square, (3,), callback=callback)
    assert done.wait(30)
    pool.join()


def raise_error(text):
    raise ValueError(text)


class NotRebuilt(Exception):
    def __init__(self, a, b):
        super().__init__(a)


def raise_not_rebuilt(_):
    raise NotRebuilt(1, 2)


class NotPickled(Exception):
    def __reduce__(self):
        raise TypeError("not this one")


def raise_not_pickled(_):
    raise NotPickled


def return_lambda(_):
    return lambda: None


def exit_by(how):
    if how == "sys.exit":
        sys.exit(3)
    if how == "os._exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def test_errors_arrive_with_their_tracebacks(pool):
    with pytest.raises(ValueError, match="text") as raised:
        pool.apply(raise_error, ("text",))
    assert "raise ValueError(text)" in str(raised.value.__cause__)
    with pytest.raises(ValueError, match="1"):
        pool.map(raise_error, [1, 2], chunksize=1)
    results = pool.imap(odd_only, range(4))
    with pytest.raises(ValueError, match="0"):
        next(results)
    assert next(results) == 1
    with pytest.raises(ValueError, match="2"):
        next(results)
    assert list(results) == [3]


def odd_only(x):
    if x % 2 == 0:
        raise ValueError(x)
    return x


def test_errors_and_results_that_do_not_travel(pool):
    with pytest.raises(RuntimeError, match="cannot be rebuilt here"):
        pool.apply(raise_not_rebuilt, (1,))
    with pytest.raises(MaybeEncodingError, match="not this one"):
        pool.apply(raise_not_pickled, (1,))
    with pytest.raises(MaybeEncodingError, match="lambda"):
        pool.apply(return_lambda, (1,))
    assert pool.apply(square, (3,)) == 9


def test_a_task_that_exits(pool):
    with pytest.raises(TaskExited, match="SystemExit"):
        pool.apply(exit_by, ("sys.exit",))
    with pytest.raises(WorkerLost, match="exit code 3"):
        pool.apply(exit_by, ("os._exit",))
    with pytest.raises(WorkerLost, match="SIGKILL"):
        pool.apply(exit_by, ("SIGKILL",))
    assert pool.map(square, range(10)) == [x * x for x in range(10)]


def lose_some(x):
    if x % 10 == 3:
        os._exit(1)
    return x


def test_one_lost_worker_is_one_lost_item(pool):
    results, lost = [], 0
    items = pool.imap(lose_some, range(40))
    while True:
        try:
            results.append(next(items))
        except StopIteration:
            break
        except WorkerLost:
            lost += 1
    assert lost == 4
    assert results == [x for x in range(40) if x % 10 != 3]
    with pytest.raises(WorkerLost):
        pool.map(lose_some, range(40), 1)


def once(path):
    """Dies on the first run."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return "survived"
    os._exit(1)


def test_retries(pool, tmp_path):
    assert pool.apply(once, (str(tmp_path / "a"),), retries=1) == "survived"
    assert pool.map(once, [str(tmp_path / "b"), str(tmp_path / "c")], retries=1) == ["survived"] * 2
    with pytest.raises(WorkerLost):
        pool.apply(exit_by, ("os._exit",), retries=2)


def test_idle_workers_that_are_killed_are_replaced(pool):
    before = set(pool.map(get_pid, range(100), 1))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
        wait_for_end(pid)
    assert pool.map(square, range(100), 1) == [x * x for x in range(100)]
    assert not before & {worker.pid for worker in pool._pool}


def test_time_limits_and_cancellation(mp, pool):
    event = mp.Event()
    with pytest.raises(TaskTimeout):
        pool.apply(time.sleep, (1000,), timeout=0.05)
    results = pool.imap(time.sleep, [0, 1000, 0], timeout=0.5)
    assert next(results) is None
    with pytest.raises(TaskTimeout):
        next(results)
    assert next(results) is None
    result = pool.map_async(wait_for, [event] * 5, chunksize=1)
    with pytest.raises(polyproc.TimeoutError):
        result.get(0.05)
    assert not result.ready()
    with pytest.raises(ValueError, match="not ready"):
        result.successful()
    result.cancel()
    with pytest.raises(TaskCancelled):
        result.get(30)
    assert not result.successful()
    assert pool.apply(square, (3,)) == 9


def hold(megabytes):
    block = bytearray(megabytes << 20)
    for place in range(0, len(block), 4096):
        block[place] = 1
    time.sleep(1000)


def test_memory_limit(mp):
    with open("/proc/self/statm") as file:
        inherited = int(file.read().split()[1]) * resource.getpagesize()  # a forked worker has these pages, too
    with mp.Pool(1, memory_limit=inherited + (200 << 20)) as pool:
        assert pool.apply(square, (3,)) == 9
        with pytest.raises(OutOfMemory):
            pool.apply(hold, (1000,))
        with pytest.raises(MemoryError):
            pool.apply(hold, (1000,))
        assert pool.apply(square, (3,)) == 9


def initialize(value):
    global initialized
    initialized = value


def get_initialized(_):
    return initialized


def fail():
    raise RuntimeError("no good")


def test_initializers(mp):
    with mp.Pool(2, initialize, ("value",)) as pool:
        assert set(pool.map(get_initialized, range(10), 1)) == {"value"}
    with mp.Pool(2, fail) as pool:
        with pytest.raises(NoWorkers, match="no good"):
            pool.map(square, range(10))
        with pytest.raises(NoWorkers, match="no good"):
            pool.apply(square, (1,))
    with mp.Pool(2, os._exit, (1,)) as pool, pytest.raises(NoWorkers):
        pool.map(square, range(10))
    with pytest.raises(TypeError, match="callable"):
        mp.Pool(2, 5)
    with pytest.raises(ValueError, match="at least 1"):
        mp.Pool(0)


def test_workers_know_who_they_are(mp, pool):
    name, is_daemon, parent = pool.apply(get_process)
    assert "PoolWorker-" in name
    assert is_daemon
    assert parent == os.getpid()


def get_process():
    process = polyproc.current_process()
    return process.name, process.daemon, polyproc.parent_process().pid


def test_max_tasks_per_child(mp):
    with mp.Pool(1, maxtasksperchild=2) as pool:
        pids = [pool.apply(get_pid) for _ in range(6)]
        assert len(set(pids)) == 3
        assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]


def test_after_the_end(mp):
    event = mp.Event()
    with mp.Pool(2) as pool:
        result = pool.apply_async(wait_for, (event,))
        pid = pool._pool[0].pid
    with pytest.raises(PoolTerminated):
        result.get(30)
    wait_for_end(pid)
    for call in (pool.apply, pool.apply_async, lambda f: pool.map(f, [1]), lambda f: pool.imap(f, [1])):
        with pytest.raises(ValueError, match="Pool not running"):
            call(get_pid)
    with pytest.raises(ValueError, match="Pool not running"), pool:
        pass


def test_close_and_join_finish_the_work(mp):
    pool = mp.Pool(2)
    results = [pool.apply_async(square, (x,)) for x in range(100)]
    ahead = pool.imap(square, range(5000))
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    with pytest.raises(ValueError, match="not running"):
        pool.apply(square, (1,))
    pool.join()
    assert [result.get(0) for result in results] == [x * x for x in range(100)]
    assert list(ahead) == [x * x for x in range(5000)]


def test_imap_reads_ahead_within_a_bound(pool):
    taken = 0

    def numbers():
        nonlocal taken
        for number in itertools.count():
            taken += 1
            yield number

    results = pool.imap(square, numbers(), max_pending=10)
    assert [next(results) for _ in range(100)] == [x * x for x in range(100)]
    assert taken <= 111


def broken():
    yield 1
    raise KeyError("of the iterator")


def test_an_iterator_that_raises(pool):
    results = pool.imap(square, broken())
    assert next(results) == 1
    with pytest.raises(KeyError, match="of the iterator"):
        next(results)
    with pytest.raises(KeyError, match="of the iterator"):
        pool.map(square, broken())


def test_results_can_be_awaited(pool):
    async def main():
        first, second = pool.apply_async(square, (3,)), pool.map_async(square, range(3))
        with pytest.raises(ValueError, match="text"):
            await pool.apply_async(raise_error, ("text",))
        return await first, await second, await first

    assert asyncio.run(main()) == (9, [0, 1, 4], 9)


def nested(name):
    with polyproc.get_context(name).Pool(2) as pool:
        return pool.map(square, range(5)), pool.apply(nested_pid)


def nested_pid():
    return os.getpid(), os.getppid()


def test_pools_in_pools(pool, method):
    squares, _ = pool.apply(nested, (method,))
    assert squares == [0, 1, 4, 9, 16]


def test_handles_are_arguments_and_results(mp, pool):
    queue = mp.Queue()
    assert pool.map(put_and_give_back, [(queue, 1), (queue, 2)], 1)
    assert sorted([queue.get(), queue.get()]) == [1, 2]
    back = pool.apply(identity, (queue,))
    back.put("through another")
    assert queue.get() == "through another"


def put_and_give_back(arguments):
    queue, value = arguments
    queue.put(value)
    return queue


def test_lambdas_and_closures_with_cloudpickle(pool):
    pytest.importorskip("cloudpickle")
    factor = 3
    assert pool.map(lambda x: factor * x, range(3)) == [0, 3, 6]
    assert pool.apply(lambda f, x: f(x), (lambda x: x + 1, 1)) == 2
    assert list(pool.imap(lambda x: factor + x, range(3))) == [3, 4, 5]


def test_lambdas_without_cloudpickle(pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(Exception, match="pickle"):
        pool.map(lambda x: x, range(3))


def test_threads_share_a_pool(pool):
    results = []

    def work(offset):
        for x in range(offset, offset + 50):
            results.append(pool.apply(square, (x,)) == x * x)

    threads = [threading.Thread(target=work, args=(offset,)) for offset in range(0, 400, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 400


def test_resize(mp):
    with mp.Pool(1) as pool:
        pool.resize(3)
        eventually(lambda: len(pool._pool) == 3)
        pool.resize(2)
        eventually(lambda: len(pool._pool) == 2)
        assert pool.map(square, range(100), 1) == [x * x for x in range(100)]


def test_many_pools_leave_nothing_open(mp):
    def count():
        return len(os.listdir("/proc/self/fd"))

    def run():
        with mp.Pool(2) as pool:
            assert pool.map(square, range(10)) == [x * x for x in range(10)]

    run()
    before = count()
    for _ in range(20):
        run()
    eventually(lambda: count() <= before)


def test_what_workers_print_is_not_lost(programs):
    code, out, err = programs.run(
        """
        import sys
        import polyproc as mp

        def work(x):
            print("out", x)
            print("err", x, file=sys.stderr)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            with mp.Pool(2) as pool:
                pool.map(work, range(20), 1)
        """
    )
    assert code == 0
    assert sorted(out.split("\n")) == sorted([f"out {x}" for x in range(20)] + [""])
    assert sorted(err.split("\n")) == sorted([f"err {x}" for x in range(20)] + [""])


def test_a_pool_that_is_forgotten_does_not_hang(programs):
    code, out, err = programs.run(
        """
        import time
        import polyproc as mp

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            pool = mp.Pool(2)
            pool.apply_async(time.sleep, (1000,))
            print("ends")
        """
    )
    assert (code, out, err) == (0, "ends\n", "")


def wait_with(event):
    global _event
    _event = event


def size_after_event(data):
    _event.wait()
    return len(data)


def test_who_submits_waits_while_too_many_bytes_wait(mp):
    event = mp.Event()
    with mp.Pool(1, wait_with, (event,), max_waiting_bytes=1 << 20) as pool:
        results = []

        def submit():
            # More tasks than the table holds.
            results.extend(pool.apply_async(size_after_event, (bytes(10_000),)) for _ in range(2000))

        submitter = threading.Thread(target=submit)
        submitter.start()
        submitter.join(1)
        assert submitter.is_alive()
        event.set()
        submitter.join()
        assert [result.get() for result in results] == [10_000] * 2000


WORKERS_AS_PROCESSES = """
    import os
    import sys
    import threading
    import time
    import polyproc as mp
    from multiprocessing.process import BaseProcess

    bootstrap = BaseProcess._bootstrap
    def around(self, *args, **kwds):
        print("begins", self.name.split("-")[0], self.daemon, flush=True)
        try:
            return bootstrap(self, *args, **kwds)
        finally:
            print("ends", flush=True)
    BaseProcess._bootstrap = around

    class OwnProcess(type(mp.get_context(METHOD)).Process):
        def run(self):
            print("runs", flush=True)
            super().run()

    class OwnContext(type(mp.get_context(METHOD))):
        Process = OwnProcess

    def finish():
        time.sleep(0.2)
        print("thread done", flush=True)

    def work():
        threading.Thread(target=finish).start()
        return mp.current_process().name.split("-")[0], os.getppid() == mp.parent_process().pid

    if __name__ == "__main__":
        pool = OwnContext().Pool(1)
        print(pool.apply(work), flush=True)
        pool.close()
        pool.join()
"""


def test_workers_are_processes_of_their_context(programs):
    """So wrappers of `_bootstrap` or `run`, as used by coverage and debuggers, enclose tasks; threads are joined."""
    code, out, err = programs.run(WORKERS_AS_PROCESSES)
    lines = ["begins OwnPoolWorker True", "runs", "('OwnPoolWorker', True)", "thread done", "ends"]
    assert (code, out.splitlines(), err) == (0, lines, "")


def test_a_process_class_whose_run_runs_no_worker_is_told(mp):
    class Idle(mp.Process):
        def run(self):
            pass

    class Context(type(mp)):
        Process = Idle

    if mp.get_start_method() != "fork":
        pytest.skip("the class is a local one")
    with Context().Pool(1) as pool, pytest.raises(polyproc.pool.NoWorkers, match="`run` of the worker's process returned"):
        pool.apply(os.getpid)


def test_workers_are_active_children_and_have_what_processes_have(mp):
    with mp.Pool(2) as pool:
        pool.map(abs, range(2))
        eventually(lambda: len(pool._pool) == 2)
        workers = [child for child in polyproc.active_children() if child in pool._pool]
        assert len(workers) == 2
        first = workers[0]
        assert "PoolWorker-" in first.name
        assert (first.exitcode, first.is_alive(), first.daemon) == (None, True, True)
        assert not polyproc.connection.wait([first.sentinel], 0)
        first.kill()
        first.join(30)
        assert (first.exitcode, first.is_alive()) == (-9, False)
        assert polyproc.connection.wait([first.sentinel], 30)
        assert pool.apply(abs, (-1,)) == 1
    assert not [child for child in polyproc.active_children() if child.pid in {worker.pid for worker in workers}]
