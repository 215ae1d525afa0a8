"""Kills workers at random, also while they start, and checks that every task still ends exactly once.

``POLYPROC_STORM_ROUNDS`` and ``POLYPROC_STORM_TASKS`` set the length.
"""

import contextlib
import os
import random
import signal
import threading
import time

import polyproc
import pytest

ROUNDS = int(os.environ.get("POLYPROC_STORM_ROUNDS", "2"))
TASKS = int(os.environ.get("POLYPROC_STORM_TASKS", "1000"))
# Minimum number of workers that a round kills.
KILLS = 10


def work(x):
    for _ in range(2000 if x % 50 == 0 else 20):
        pass
    return x, x ^ 1


def give(given, killed):
    """Yields numbers for `work` and appends them to `given`, until there are enough tasks and killed workers."""
    while len(given) < TASKS or len(killed) < KILLS:
        given.append(len(given))
        yield given[-1]


@contextlib.contextmanager
def storm(pool, pause, seed):
    """Kills a worker about every `pause` seconds; yields the list of killed workers."""
    over, killed, choose = threading.Event(), [], random.Random(seed)

    def kill():
        while not over.wait(choose.uniform(0, 2 * pause)):
            workers = pool._pool
            if workers:
                pid = choose.choice(workers).pid
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.timeout(100 + ROUNDS * (10 + TASKS / 100))
@pytest.mark.parametrize(("chunksize", "retries"), [(1, 0), (1, 1000), (7, 1000)])
def test_every_task_ends_exactly_once(mp, chunksize, retries):
    kills = losses = 0
    for seed in range(ROUNDS):
        began, given, ended, lost = time.monotonic(), [], set(), 0
        with mp.Pool(3) as pool:
            pool.apply(work, (0,))
            # Workers that are always killed before they are ready run no task.
            pause = max(time.monotonic() - began, 0.002)
            with storm(pool, pause, seed) as killed:
                tasks = give(given, killed)
                results = pool.imap_unordered(work, tasks, chunksize=chunksize, retries=retries)
                while True:
                    try:
                        x, result = next(results)
                    except StopIteration:
                        break
                    except polyproc.pool.WorkerLost:
                        lost += 1
                        continue
                    assert result == x ^ 1
                    assert x not in ended
                    ended.add(x)
        assert len(ended) + lost == len(given)
        assert lost <= (len(killed) if retries == 0 else 0)
        kills, losses = kills + len(killed), losses + lost
    print(f"{ROUNDS} rounds, {TASKS} tasks and more, {retries} retries: {kills} workers killed, {losses} items lost")
