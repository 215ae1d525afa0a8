"""Compares polyproc with the standard library and its peers in Python.

    pip install . -r bench/python/requirements.txt
    python bench/python/bench.py [CASE]... [--rounds 3] [--json FILE]

Each case runs for every rival that supports it, in turn, in a process of its own, for several rounds; the figure is the median
of the rounds. Results are checked. Rivals that are not installed are named and left out. Figures depend on the machine and
its load: ratios are more reliable.
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import time

POOLS = {}
CASES = {}


def case(unit, *rivals):
    """Registers a case: a function of a rival that returns seconds if the unit is "s", otherwise a rate per second."""

    def note(function):
        CASES[function.__name__.replace("_", "-")] = (function, unit, rivals)
        return function

    return note


def pool(name):
    """Registers a rival's pool: a generator that yields an object with the methods of `multiprocessing.Pool`."""

    def note(function):
        POOLS[name] = contextlib.contextmanager(function)
        return function

    return note


def context(rival):
    """Returns the context of `module` or `module-method`."""
    module, _, method = rival.partition("-")
    module = {"std": "multiprocessing"}.get(module, module)
    return importlib.import_module(module).get_context(method or None)


def nothing():
    pass


def identity(x):
    return x


def square(x):
    return x * x


def median_time(function, times):
    """Returns the median duration of `times` calls, in seconds."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


# Processes.


def start_and_join(rival, times):
    mp = context(rival)

    def run():
        child = mp.Process(target=nothing)
        child.start()
        child.join()
        assert child.exitcode == 0

    run()
    run()
    return median_time(run, times)


@case("s", "polyproc-fork", "std-fork", "billiard-fork")
def start_fork(rival):
    return start_and_join(rival, 100)


@case("s", "polyproc-forkserver", "std-forkserver", "std-fork", "billiard-forkserver")
def start_forkserver(rival):
    return start_and_join(rival, 100 if rival in ("polyproc-forkserver", "std-fork") else 20)


@case("s", "polyproc-spawn", "std-spawn", "billiard-spawn")
def start_spawn(rival):
    return start_and_join(rival, 8)


# Pools.


class OfExecutor:
    """An executor with the method names of a pool."""

    def __init__(self, executor):
        self.executor = executor

    def apply(self, function, args):
        return self.executor.submit(function, *args).result()

    def map(self, function, values, chunksize=None):
        return list(self.executor.map(function, values, chunksize=chunksize or len(values) // 8))

    def imap_unordered(self, function, values):
        return self.executor.map(function, values)


def of_module(name):
    @pool(name)
    def start():
        with context(name).Pool(2) as started:
            yield started


for module in ("polyproc-forkserver", "polyproc-fork", "std-fork", "std-forkserver", "billiard"):
    of_module(module)


@pool("executor-polyproc")
def polyproc_executor():
    import polyproc

    with polyproc.ProcessPoolExecutor(2) as executor:
        yield OfExecutor(executor)


@pool("executor-std")
def standard_executor():
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(2, mp_context=context("std-fork")) as executor:
        yield OfExecutor(executor)


@pool("loky")
def loky():
    from loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=2)
    yield OfExecutor(executor)
    executor.shutdown()


class OfPebble(OfExecutor):
    def apply(self, function, args):
        return self.executor.schedule(function, args=args).result()

    def map(self, function, values, chunksize=None):
        return list(self.executor.map(function, values, chunksize=chunksize or len(values) // 8).result())

    def imap_unordered(self, function, values):
        return self.executor.map(function, values).result()


@pool("pebble")
def pebble():
    from pebble import ProcessPool

    with ProcessPool(2) as executor:
        yield OfPebble(executor)


class OfMpire(OfExecutor):
    def apply(self, function, args):
        return self.executor.apply(function, args)

    def map(self, function, values, chunksize=None):
        # mpire unpacks iterable arguments; the values here are not iterable.
        return self.executor.map(function, values, chunk_size=chunksize)

    def imap_unordered(self, function, values):
        return self.executor.imap_unordered(function, values, chunk_size=1)


@pool("mpire")
def mpire():
    from mpire import WorkerPool

    with WorkerPool(2, keep_alive=True, start_method="fork") as executor:
        yield OfMpire(executor)


ALL_POOLS = tuple(POOLS)


@case("s", *ALL_POOLS)
def pool_start(rival):
    def run():
        with POOLS[rival]() as started:
            assert started.apply(square, (3,)) == 9

    run()
    return median_time(run, 10)


def rate_of_pool(rival, count, run):
    values = list(range(count))
    with POOLS[rival]() as started:
        run(started, values[:100])
        start = time.perf_counter()
        results = run(started, values)
        taken = time.perf_counter() - start
        assert sorted(results) == [x * x for x in values]
        return count / taken


def is_fast(rival):
    return "polyproc" in rival


@case("/s", *ALL_POOLS)
def map_one_by_one(rival):
    return rate_of_pool(rival, 400_000 if is_fast(rival) else 10_000, lambda pool, values: pool.map(square, values, 1))


@case("/s", *ALL_POOLS)
def map_default(rival):
    count = 1_000_000 if "executor" not in rival and rival not in ("loky", "pebble") else 400_000
    return rate_of_pool(rival, count, lambda pool, values: pool.map(square, values))


@case("/s", *ALL_POOLS)
def imap_unordered(rival):
    count = 400_000 if is_fast(rival) else 10_000
    return rate_of_pool(rival, count, lambda pool, values: list(pool.imap_unordered(square, values)))


@case("s", *ALL_POOLS)
def apply_round_trip(rival):
    with POOLS[rival]() as started:
        for _ in range(50):
            started.apply(square, (3,))
        return median_time(lambda: started.apply(square, (3,)), 2000)


@case("s", *ALL_POOLS)
def array_of_256_mib(rival):
    import numpy

    array = numpy.arange(32 << 20, dtype="f8")
    with POOLS[rival]() as started:
        back = started.apply(identity, (array,))
        assert (back == array).all()
        back = None

        def run():
            back = started.apply(identity, (array,))
            assert back.shape == array.shape
            assert back[-1] == array[-1]

        return median_time(run, 5)


# Queues and pipes.


def queue_of(rival, kind="Queue"):
    if rival == "faster-fifo":
        import faster_fifo

        return faster_fifo.Queue(max_size_bytes=64 << 20)
    return getattr(context(rival), kind)()


def start_child(rival, function, *args):
    mp = context("std-fork" if rival == "faster-fifo" else rival)
    child = mp.Process(target=function, args=args)
    child.start()
    return child


def produce(queue, ready, value, count):
    ready.put(None)
    for _ in range(count):
        queue.put(value, block=True, timeout=1000)


def produce_simply(queue, ready, value, count):
    ready.put(None)
    for _ in range(count):
        queue.put(value)


def rate_of_queue(rival, value, count, kind="Queue"):
    queue, ready = queue_of(rival, kind), queue_of(rival, kind)
    producer = produce if kind == "Queue" else produce_simply
    child = start_child(rival, producer, queue, ready, value, count)
    is_simple = kind == "SimpleQueue"
    take = queue.get if is_simple else lambda: queue.get(timeout=1000)
    ready.get() if is_simple else ready.get(timeout=1000)
    start = time.perf_counter()
    for _ in range(count):
        last = take()
    taken = time.perf_counter() - start
    assert last == value
    child.join()
    return count / taken


QUEUES = ("polyproc-forkserver", "std-fork", "billiard", "faster-fifo")


@case("/s", *QUEUES)
def queue_of_ints(rival):
    return rate_of_queue(rival, 12345, 300_000 if rival == "polyproc-forkserver" else 50_000)


@case("/s", *QUEUES)
def queue_of_tuples(rival):
    return rate_of_queue(rival, ("name", 1.5, [1, 2, 3], {"a": None}), 100_000 if is_fast(rival) else 50_000)


@case("/s", *QUEUES)
def queue_of_1_mib(rival):
    return rate_of_queue(rival, b"x" * (1 << 20), 1000)


@case("/s", "polyproc-forkserver", "std-fork", "billiard")
def simple_queue_of_ints(rival):
    return rate_of_queue(rival, 12345, 300_000 if is_fast(rival) else 50_000, "SimpleQueue")


def produce_and_join(queue, ready, count):
    ready.put(None)
    for number in range(count):
        queue.put(number)
    queue.join()
    ready.put(None)


@case("/s", "polyproc-forkserver", "std-fork", "billiard")
def joinable_queue(rival):
    count = 300_000 if is_fast(rival) else 30_000
    queue, ready = queue_of(rival, "JoinableQueue"), queue_of(rival)
    child = start_child(rival, produce_and_join, queue, ready, count)
    ready.get()
    start = time.perf_counter()
    for number in range(count):
        assert queue.get() == number
        queue.task_done()
    ready.get()
    taken = time.perf_counter() - start
    child.join()
    return count / taken


def echo(connection):
    for value in iter(connection.recv, None):
        connection.send(value)


def pipe_round_trip(rival, value, times):
    here, there = context(rival).Pipe()
    child = start_child(rival, echo, there)

    def run():
        here.send(value)
        assert here.recv() == value

    for _ in range(10):
        run()
    taken = median_time(run, times)
    here.send(None)
    child.join()
    return taken


@case("s", "polyproc-forkserver", "std-fork", "billiard")
def pipe_of_ints(rival):
    return pipe_round_trip(rival, 12345, 3000)


@case("s", "polyproc-forkserver", "std-fork", "billiard")
def pipe_of_1_mib(rival):
    return pipe_round_trip(rival, b"x" * (1 << 20), 200)


@case("s", "polyproc-forkserver", "std-fork", "billiard")
def lock(rival):
    one = context(rival).Lock()

    def run():
        for _ in range(1000):
            with one:
                pass

    return median_time(run, 100) / 1000


def lock_often(one, value, count):
    for _ in range(count):
        with one:
            value.value += 1


@case("/s", "polyproc-forkserver", "std-fork", "billiard")
def lock_by_two(rival):
    mp, count = context(rival), 100_000
    one, value = mp.Lock(), mp.Value("i", 0, lock=False)
    children = [start_child(rival, lock_often, one, value, count) for _ in range(2)]
    while value.value == 0:
        pass
    start, before = time.perf_counter(), value.value
    for child in children:
        child.join()
    taken = time.perf_counter() - start
    assert value.value == 2 * count
    return (2 * count - before) / taken


def run_one(name, rival):
    """Measures one figure in a process of its own. Returns None if the rival is not installed or fails."""
    command = [sys.executable, os.path.abspath(__file__), "--one", name, rival]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode != 0:
        print(f"  {name} of {rival} failed:\n{done.stderr[-1500:]}", file=sys.stderr)
        return None
    return float(done.stdout.split()[-1])


def in_words(figure, unit):
    if unit == "/s":
        return f"{figure / 1e6:.2f} M/s" if figure >= 1e6 else f"{figure / 1e3:.1f} k/s"
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if figure * factor >= 1:
            return f"{figure * factor:.2f} {name}"
    return f"{figure * 1e9:.0f} ns"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, rival = options.one
        print(CASES[name][0](rival))
        return
    unknown = set(options.cases) - set(CASES)
    if unknown:
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    records = []
    print(f"Python {sys.version.split()[0]}, {len(os.sched_getaffinity(0))} processors, {options.rounds} rounds")
    for name in options.cases or CASES:
        _, unit, rivals = CASES[name]
        figures = {rival: [] for rival in rivals}
        for _ in range(options.rounds):
            for rival in rivals:
                figure = run_one(name, rival)
                if figure is not None:
                    figures[rival].append(figure)
        medians = {rival: statistics.median(found) for rival, found in figures.items() if found}
        best_first = sorted(medians, key=medians.get, reverse=unit == "/s")
        standard = next((medians[rival] for rival in ("std-fork", "executor-std") if rival in medians), None)
        standard = medians.get(name.replace("start-", "std-"), standard)
        print(f"\n{name}")
        for rival in best_first:
            ratio = medians[rival] / standard if standard else 1
            times = f"{ratio if unit == '/s' else 1 / ratio:8.2f} x std" if standard else ""
            print(f"  {rival:22}{in_words(medians[rival], unit):>12}{times}", flush=True)
            runs = sorted(figures[rival])
            records.append({"case": name, "who": rival, "median": medians[rival], "unit": unit, "runs": runs})
        for rival in rivals:
            if rival not in medians:
                print(f"  {rival:22}   left out")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(records, file, indent=1)


if __name__ == "__main__":
    main()
