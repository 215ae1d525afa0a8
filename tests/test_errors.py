"""Invalid arguments are refused by name; errors say what failed, in their text and in fields."""

import asyncio
import math
import os
import signal
import sys
import threading
import time

import polyproc
import pytest
from conftest import of_methods


@pytest.fixture(scope="module")
def pool():
    with polyproc.get_context("forkserver").Pool(2) as pool:
        yield pool


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("timeout", -1, ValueError),
        ("timeout", 0, ValueError),
        ("timeout", math.nan, ValueError),
        ("timeout", math.inf, ValueError),
        ("timeout", "1", TypeError),
        ("retries", -1, ValueError),
        ("retries", 1 << 40, ValueError),
        ("retries", 1.5, TypeError),
    ],
)
def test_limits_of_tasks_that_make_no_sense_are_named(pool, name, value, kind):
    calls = [pool.apply, pool.apply_async, pool.map, pool.map_async, pool.starmap, pool.starmap_async]
    for call in [*calls, pool.imap, pool.imap_unordered]:
        args = ((),) if call in (pool.apply, pool.apply_async) else ([()],)
        with pytest.raises(kind, match=f"{name} must be"):
            call(print, *args, **{name: value})


@pytest.mark.parametrize("name", ["max_pending", "max_pending_bytes"])
@pytest.mark.parametrize(("value", "kind"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_bounds_of_read_ahead_that_make_no_sense_are_named(pool, name, value, kind):
    with pytest.raises(kind, match=f"{name} must be"):
        pool.imap(abs, [1], **{name: value})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [
        ("memory_limit", 1, ValueError),
        ("memory_limit", -1, ValueError),
        ("memory_limit", "1G", TypeError),
        ("max_waiting_bytes", 0, ValueError),
        ("max_waiting_bytes", 1.5, TypeError),
    ],
)
def test_options_of_pools_that_make_no_sense_are_named(name, value, kind):
    with pytest.raises(kind, match=f"{name} must be"):
        polyproc.Pool(1, **{name: value})


def test_a_number_of_workers_that_makes_no_sense_is_named(pool):
    for value, kind in ((0, ValueError), (-1, ValueError), ("2", TypeError)):
        with pytest.raises(kind, match="processes must be"):
            pool.resize(value)


def die_at(n, of):
    if n == of:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def exit_at(n, of):
    if n == of:
        os._exit(3)
    return n


def sleep_at(n, of):
    if n == of:
        time.sleep(1000)
    return n


def raise_at(n, of):
    if n == of:
        raise LookupError(n)
    return n


def test_the_loss_of_a_worker_has_fields(pool):
    items = [(n, 3) for n in range(6)]
    with pytest.raises(polyproc.WorkerLost) as caught:
        pool.starmap(die_at, items, 1)
    error = caught.value
    assert (error.index, error.exitcode, error.signal) == (3, -9, signal.SIGKILL)
    assert error.pid > 0
    with pytest.raises(polyproc.WorkerLost) as caught:
        pool.starmap(exit_at, items, 2, retries=1)  # with retries, each item ends on its own
    assert (caught.value.index, caught.value.exitcode, caught.value.signal) == (3, 3, None)
    with pytest.raises(polyproc.WorkerLost) as caught:
        pool.apply(exit_at, (1, 1))
    assert caught.value.index is None
    assert caught.value.pid not in (error.pid, os.getpid())


def test_a_task_that_took_too_long_has_fields_and_is_a_timeout_of_all_kinds(pool):
    with pytest.raises(TimeoutError) as caught:
        pool.starmap(sleep_at, [(n, 2) for n in range(3)], timeout=3)  # the other items never take that long
    error = caught.value
    assert isinstance(error, (polyproc.TaskTimeout, polyproc.TimeoutError))
    assert (error.index, error.seconds) == (2, 3)

    async def wait():
        await pool.apply_async(sleep_at, (1, 1), timeout=0.1)

    with pytest.raises(TimeoutError):
        asyncio.run(wait())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on exceptions")
@pytest.mark.parametrize("chunksize", [1, 4, 100])
def test_the_item_that_raised_is_named(pool, chunksize):
    items = [(n, 57) for n in range(100)]
    with pytest.raises(LookupError) as caught:
        pool.starmap(raise_at, items, chunksize)
    assert caught.value.__notes__ == ["raised for item 57, counted from 0"]
    numbers = pool.imap(raise_at_5, range(8), chunksize)
    with pytest.raises(LookupError) as caught:
        list(numbers)
    assert caught.value.__notes__ == ["raised for item 5, counted from 0"]


def raise_at_5(n):
    return raise_at(n, 5)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="notes on exceptions")
def test_the_argument_that_cannot_be_pickled_is_named(pool):
    lock = threading.Lock()
    for call in (pool.apply, pool.apply_async):
        with pytest.raises(TypeError) as caught:
            call(print, (1, [lock]))
        assert caught.value.__notes__ == ["while pickling argument 1, counted from 0: list"]
        with pytest.raises(TypeError) as caught:
            call(print, (1,), {"file": lock})
        assert caught.value.__notes__ == ["while pickling argument 'file': lock"]


@of_methods("forkserver")
def test_the_default_number_of_workers_is_that_of_the_interpreter(programs):
    code, out, err = programs.run(
        """
        import os
        import polyproc as mp

        if __name__ == "__main__":
            count = getattr(os, "process_cpu_count", lambda: len(os.sched_getaffinity(0)))()
            with mp.Pool() as pool:
                print(pool._processes == count)
        """
    )
    assert (code, out, err) == (0, "True\n", "")


@of_methods("spawn", "forkserver")
def test_what_cannot_be_started_is_a_start_error(programs):
    code, out, err = programs.run(
        """
        import errno
        import polyproc as mp

        if __name__ == "__main__":
            context = mp.get_context(METHOD)
            context.set_executable("/no/such/program")
            for start in (lambda: context.Process(target=print).start(), lambda: context.Pool(1)):
                try:
                    start()
                except mp.StartError as error:
                    print(isinstance(error, mp.ProcessError), isinstance(error, OSError), error.errno == errno.ENOENT)
                    print("executing the program failed: No such file or directory" in str(error))
        """
    )
    assert (code, out, err) == (0, 2 * "True True True\nTrue\n", "")
