"""Unused objects are freed: locals of callers, cycles through objects of the extension, iterators, workers."""

import asyncio
import gc
import os
import warnings
import weakref

import polyproc
import polyproc.queues
import pytest
from conftest import eventually, wait_for_end


def identity(x):
    return x


def raise_error(*_):
    raise ValueError("as it was to")


class Local:
    """A local variable of a caller."""


def of_apply(pool):
    pool.apply(raise_error)


def of_apply_async(pool):
    pool.apply_async(raise_error).get()


def of_a_kept_result(pool):
    result = pool.apply_async(raise_error)
    result.get()


def of_a_result_asked_twice(pool):
    result = pool.apply_async(raise_error)
    try:
        result.get()
    except ValueError:
        result.get(60)


def of_successful(pool):
    result = pool.apply_async(raise_error)
    result.wait()
    assert not result.successful()
    result.get()


def of_map(pool):
    pool.map(raise_error, range(3), 1)


def of_starmap(pool):
    pool.starmap(raise_error, [(1, 2)] * 3)


def of_map_async(pool):
    results = pool.map_async(raise_error, range(3))
    results.get()


def of_imap(pool):
    results = pool.imap(raise_error, range(3))
    next(results)


def of_imap_unordered(pool):
    results = pool.imap_unordered(raise_error, range(3))
    list(results)


def of_a_lost_worker(pool):
    result = pool.apply_async(os._exit, (1,))
    result.get()


def of_a_time_limit(pool):
    result = pool.apply_async(polyproc.Event().wait, timeout=0.01)
    result.get()


def of_cancel(pool):
    result = pool.apply_async(polyproc.Event().wait)
    result.cancel()
    result.get()


def of_await(pool):
    async def main():
        result = pool.apply_async(raise_error)
        await result

    asyncio.run(main())


def of_an_error_callback(pool):
    errors = []
    result = pool.apply_async(raise_error, error_callback=errors.append)
    result.wait()
    raise errors[0]


FAILING = [
    of_apply, of_apply_async, of_a_kept_result, of_a_result_asked_twice, of_successful, of_map, of_starmap, of_map_async,
    of_imap, of_imap_unordered, of_a_lost_worker, of_a_time_limit, of_cancel, of_await, of_an_error_callback,
]  # fmt: skip


@pytest.mark.parametrize("call", FAILING)
def test_a_failed_call_keeps_no_locals_of_its_caller(mp, call):
    def caller():
        local = Local()
        with pytest.raises(Exception, match=r"."):
            call(pool)
        return weakref.ref(local)

    def is_gone():
        gc.collect()
        return kept() is None

    with mp.Pool(1) as pool:
        kept = caller()
        eventually(is_gone)  # the pool's thread may be about to drop its callbacks


@pytest.mark.parametrize("ask", ["result", "exception", "map"])
def test_a_failed_call_of_an_executor_keeps_no_locals_of_its_caller(mp, ask):
    def caller():
        local = Local()
        with pytest.raises(ValueError, match="as it was to"):
            if ask == "map":
                list(executor.map(raise_error, range(3)))
            future = executor.submit(raise_error)
            if ask == "exception":
                raise future.exception(60)
            future.result(60)
        return weakref.ref(local)

    def is_gone():
        gc.collect()
        return kept() is None

    with polyproc.ProcessPoolExecutor(1, mp_context=mp) as executor:
        kept = caller()
        eventually(is_gone)


class Node(list):
    """A list that supports weak references and has a callback."""

    def on_result(self, _):
        pass


def through_a_result(pool):
    result = pool.apply_async(identity, (Node(),))
    node = result.get()
    node.append(result)
    return node


def through_the_result_of_a_map(pool):
    results = pool.map_async(identity, [Node()] * 3)
    node = results.get()[0]
    node.append(results)
    return node


def through_a_callback(pool):
    node = Node()
    node.append(pool.apply_async(identity, (1,), callback=node.on_result))
    node[0].get()
    return node


def through_an_error_callback(pool):
    node = Node()
    node.append(pool.apply_async(raise_error, error_callback=node.on_result))
    node[0].wait()
    return node


class Numbers:
    """An iterator with a reference to its reader."""

    def __init__(self, end):
        self.number, self.end, self.reader = 0, end, None

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.end:
            raise StopIteration
        self.number += 1
        return self.number


def through_a_result_of_an_imap(pool):
    results = pool.imap(identity, [Node(), Node()])
    node = next(results)
    node.append(results)
    return node


CYCLES = [
    through_a_result, through_the_result_of_a_map, through_a_callback, through_an_error_callback, through_a_result_of_an_imap,
]  # fmt: skip


@pytest.mark.parametrize("make", CYCLES)
def test_the_collector_finds_cycles(mp, make):
    def is_gone():
        gc.collect()
        return kept() is None

    with mp.Pool(1) as pool:
        kept = weakref.ref(make(pool))
        eventually(is_gone)


def test_the_collector_finds_cycles_through_futures(mp):
    with polyproc.ProcessPoolExecutor(1, mp_context=mp) as executor:
        future = executor.submit(identity, Node())
        node = future.result(60)
        node.append(future)
        kept = weakref.ref(node)
        del node, future

        def is_gone():
            gc.collect()
            return kept() is None

        eventually(is_gone)


def test_the_collector_finds_cycles_through_queues(mp):
    class Queue(polyproc.queues.Queue):
        pass

    node = Node([Queue(ctx=mp)])
    node[0].owner = node
    kept = weakref.ref(node)
    del node
    gc.collect()
    assert kept() is None


def test_an_imap_that_is_dropped_goes_with_its_iterator(mp):
    """At the latest when it has read ahead as far as it may."""
    with mp.Pool(1) as pool:
        kept = []
        for _ in range(10):
            numbers = Numbers(1000)
            results = pool.imap(identity, numbers, max_pending=2)
            assert next(results) == 1
            kept.append(weakref.ref(numbers))
        del numbers, results

        def are_gone():
            gc.collect()
            return not any(one() for one in kept)

        eventually(are_gone)
        assert pool.apply(identity, (1,)) == 1


def forget_a_pool(mp, call):
    pool = mp.Pool(2)
    pids = {worker.pid for worker in pool._pool} | {pool.apply(os.getpid)}
    with pytest.raises(Exception, match=r"."):
        call(pool)
    return pids | {worker.pid for worker in pool._pool}


@pytest.mark.parametrize("call", [of_apply, of_a_kept_result, of_map, of_map_async, of_imap, of_a_lost_worker])
def test_a_pool_that_is_dropped_after_a_failed_call_ends_its_workers(mp, call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it was not closed
        pids = forget_a_pool(mp, call)
        gc.collect()
        for pid in pids:
            wait_for_end(pid)


def test_failed_calls_leave_no_descriptors(mp):
    def count():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    with mp.Pool(2) as pool:
        before = None
        for _ in range(30):
            for call in (of_a_kept_result, of_map_async, of_imap):
                with pytest.raises(ValueError, match="as it was to"):
                    call(pool)
            before = before or count()
        eventually(lambda: count() <= before)
