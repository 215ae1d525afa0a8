"""Calls of pools and executors: no call is lost or hangs, whatever happens to other calls."""

import functools
import os
import resource
import time

import polyproc
import pytest
from conftest import wait_for_end
from polyproc.pool import OutOfMemory, TaskTimeout

START = """
    import itertools, os, queue, signal, sys, threading
    import polyproc as mp
    import polyproc.pool

    def wait_for(event, _=None):
        event.wait()

    def negate(x):
        return -x

"""


def run(programs, text, definitions=""):
    """Runs a program that starts with `START` and must print "ends" and nothing else."""
    main = "\nif __name__ == '__main__':\n    mp.set_start_method(METHOD)\n"
    text = START + definitions + main.replace("\n", "\n    ") + text + "\n        print('ends')\n"
    code, out, err = programs.run(text)
    assert (code, out, err) == (0, "ends\n", "")


def test_tasks_beside_cancelled_futures_are_run(programs):
    """More tasks wait than the pool's table holds, and some in the middle of the table are withdrawn."""
    run(
        programs,
        """
        event = mp.Event()
        with mp.ProcessPoolExecutor(1) as executor:
            first = executor.submit(wait_for, event)
            futures = [executor.submit(negate, n) for n in range(3000)]
            cancelled = [n for n in range(100, 120) if futures[n].cancel()]
            event.set()
            first.result(20)
            for n, future in enumerate(futures):
                if n not in cancelled:
                    assert future.result(20) == -n""",
    )


def test_tasks_beside_cancelled_results_are_run(programs):
    run(
        programs,
        """
        event = mp.Event()
        with mp.Pool(1) as pool:
            first = pool.apply_async(wait_for, (event,))
            results = [pool.apply_async(negate, (n,)) for n in range(3000)]
            for n in range(100, 120):
                results[n].cancel()
            event.set()
            first.get(20)
            for n, result in enumerate(results):
                if not 100 <= n < 120:
                    assert result.get(20) == -n""",
    )


INTERRUPTED = """
    class Interrupted(Exception):
        pass

    def interrupt(*_):
        raise Interrupted

    def signal_and_wait(pid, event, number=0):
        if number == 0:
            os.kill(pid, signal.SIGUSR1)
        event.wait()

"""


@pytest.mark.parametrize(
    "call",
    [
        "pool.apply(signal_and_wait, (os.getpid(), event))",
        "pool.map(functools.partial(signal_and_wait, os.getpid(), event), range(20), 1)",
        "pool.map(functools.partial(signal_and_wait, os.getpid(), event), range(20), 5)",
        "pool.starmap(signal_and_wait, [(os.getpid(), event, n) for n in range(20)], 1)",
    ],
)
def test_a_pool_can_be_joined_after_an_interrupted_call(programs, call):
    run(
        programs,
        f"""
        import functools
        signal.signal(signal.SIGUSR1, interrupt)
        event = mp.Event()
        pool = mp.Pool(2)
        try:
            {call}
        except Interrupted:
            event.set()
        pool.close()
        pool.join()""",
        INTERRUPTED,
    )


class RaisesOnce:
    """Raises the first time it is pickled, as a signal handler might then."""

    raised = False

    def __reduce__(self):
        if not RaisesOnce.raised:
            RaisesOnce.raised = True
            raise ConnectionError("once")
        return int, ()


def test_what_is_raised_while_arguments_are_pickled_is_not_lost(mp, monkeypatch):
    with mp.Pool(1) as pool:
        for call in (pool.apply, pool.map):
            monkeypatch.setattr(RaisesOnce, "raised", False)
            with pytest.raises(ConnectionError, match="once"):
                call(identity, [RaisesOnce()])
        assert pool.apply(identity, [RaisesOnce()]) == 0


def identity(x):
    return x


def first_of(_large, x):
    return x


def test_a_task_that_returns_at_once_is_not_timed_out(mp):
    """The task begins at about the time at which its limit would be over, had it begun together with the task before it. Its
    function takes a while to arrive."""
    limit = 0.5
    with mp.Pool(1) as pool:
        for step in range(-4, 6):
            start, others = time.monotonic(), limit + step * 0.005
            before = pool.apply_async(time.sleep, (others,))
            function = functools.partial(first_of, os.urandom(8 << 20))
            try:
                assert pool.apply(function, (step,), timeout=limit) == step
            except TaskTimeout:  # possible on a loaded machine, but not before the limit
                assert before.ready()
                assert time.monotonic() - start >= others + limit


def test_a_generator_that_waits_for_an_earlier_result(programs):
    run(
        programs,
        """
        answers = queue.Queue()

        def numbers():
            yield 1
            while True:
                answer = answers.get()
                if answer == -5:
                    return
                yield -answer + 1

        with mp.Pool(2) as pool:
            for result in pool.imap(negate, numbers()):
                answers.put(result)
            assert result == -5""",
    )


def test_a_generator_that_asks_for_a_result(programs):
    """It returns a result or an error at once."""
    run(
        programs,
        """
        results = None

        def numbers():
            yield 1
            if results is not None:
                try:
                    results.next(timeout=0.1)
                except Exception:
                    pass
            yield from range(2, 5000)

        with mp.Pool(2) as pool:
            results = pool.imap(negate, numbers(), max_pending=1)
            for _ in range(100):
                try:
                    next(results)
                except StopIteration:
                    break
                except Exception:
                    pass""",
    )


def test_a_thread_that_waits_for_the_iterator_stops_no_other(programs):
    run(
        programs,
        """
        waits, go_on = threading.Event(), threading.Event()

        def numbers():
            yield from range(3)
            waits.set()
            go_on.wait()

        with mp.Pool(2) as pool:
            made = []
            thread = threading.Thread(target=lambda: made.extend(pool.imap(negate, numbers())), daemon=True)
            thread.start()
            waits.wait()
            assert list(pool.imap(negate, range(3))) == [0, -1, -2]
            go_on.set()
            thread.join()
            assert made == [0, -1, -2]""",
    )


def test_an_endless_imap_ends_with_its_pool(programs):
    run(
        programs,
        """
        drawn = 0

        def numbers():
            global drawn
            for number in itertools.count():
                drawn += 1
                yield number

        pool = mp.Pool(2)
        results = pool.imap(negate, numbers(), max_pending=10)
        assert next(results) == 0
        pool.terminate()
        before = drawn
        pool.join()
        try:
            for _ in range(100):
                next(results)
        except (StopIteration, mp.pool.PoolTerminated):
            pass
        else:
            raise AssertionError("results of a pool that was terminated")
        assert drawn <= before + 1, drawn - before""",
    )


def test_more_large_results_than_descriptors(programs):
    """A map with more lent results than the program may have descriptors."""
    run(
        programs,
        """
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        with mp.Pool(4) as pool:
            for n, result in enumerate(pool.map(make_bytes, range(200), 1)):
                assert result[0] == n and len(result) == 1_100_000 + n""",
        """
    def make_bytes(number):
        import numpy
        return numpy.full(1_100_000 + number, number, dtype="u1")

""",
    )


def test_an_argument_above_the_memory_limit(mp):
    """The task fails; the workers that take it are not at fault."""
    with open("/proc/self/statm") as file:
        inherited = int(file.read().split()[1]) * resource.getpagesize()  # a forked worker has these pages, too
    with mp.Pool(1, memory_limit=inherited + (64 << 20)) as pool:
        result = pool.apply_async(len, ("x" * (160 << 20),))
        with pytest.raises(OutOfMemory):
            result.get(60)
        assert pool.apply(identity, (3,)) == 3


def remember(*shared):
    global remembered
    remembered = shared


def touch_remembered(number):
    shared, lock = remembered
    with lock:
        shared[number] = True


def test_arguments_of_an_initializer_are_kept_while_the_pool_runs(mp):
    with mp.Manager() as manager:
        with mp.Pool(2, remember, (manager.dict(), manager.Lock())) as pool:
            pool.map(touch_remembered, range(10), 1)
            pid = pool._pool[0].pid
            os.kill(pid, 9)
            wait_for_end(pid)
            pool.map(touch_remembered, range(10), 1)


def read_first(shared):
    return shared[0]


def test_arguments_of_a_submitted_call_are_kept_until_it_is_done(mp):
    with mp.Manager() as manager, mp.Pool(1) as pool, polyproc.ProcessPoolExecutor(2, mp_context=mp) as executor:
        assert pool.apply(read_first, (manager.list([1]),)) == 1
        futures = [executor.submit(read_first, manager.list([n])) for n in range(10)]
        assert [future.result(30) for future in futures] == list(range(10))
