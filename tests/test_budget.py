"""The budget for data in flight: see `polyproc.set_memory_budget`."""

import queue as standard
import time

import polyproc
import polyproc.pool
import pytest
from conftest import eventually, of_methods

MIB = 1 << 20


@pytest.fixture(autouse=True)
def budget():
    before = polyproc.get_memory_budget().limit
    polyproc.set_memory_budget(16 * MIB)
    yield
    polyproc.set_memory_budget(before)


def put_many(queue, count, value):
    for _ in range(count):
        queue.put(value)


def fill(queue, value):
    for count in range(10_000):
        try:
            queue.put(value, False)
        except polyproc.OutOfSpace:
            return count


@pytest.mark.parametrize("size", [100, 100_000, 3 * MIB])
def test_a_queue_without_a_bound_has_that_of_the_program(size):
    queue = polyproc.Queue()
    value = bytes(size)
    count = 0
    with pytest.raises(MemoryError, match="of 16777216 bytes are in use"):
        while True:
            queue.put_nowait(value)
            count += 1
    budget = polyproc.get_memory_budget()
    assert count * size > 3 * MIB
    assert budget.in_use <= budget.limit == 16 * MIB
    with pytest.raises(standard.Full):
        queue.put(value, timeout=0.02)
    for _ in range(count):
        assert len(queue.get()) == size
    queue.put(value)


def test_what_cannot_fit_alone_is_refused_at_once():
    queue = polyproc.Queue()
    with pytest.raises(polyproc.OutOfSpace, match=f"of {16 * MIB} bytes are in use"):
        queue.put(bytes(9 * MIB))
    with pytest.raises(polyproc.OutOfSpace, match="of 1000 bytes are in use"):
        polyproc.Queue(max_bytes=1000).put(bytes(2000))


def test_a_producer_waits_for_its_consumer(mp):
    queue = mp.Queue()
    producer = mp.Process(target=put_many, args=(queue, 30, bytes(2 * MIB)))
    producer.start()
    for _ in range(30):
        assert len(queue.get()) == 2 * MIB
        budget = polyproc.get_memory_budget()
        assert budget.in_use <= budget.limit
    producer.join()
    assert producer.exitcode == 0


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_a_queue_may_have_a_bound_in_bytes(mp, kind):
    value = bytes(MIB)
    queue = getattr(mp, kind)(max_bytes=5 * MIB // 2)
    producer = mp.Process(target=put_many, args=(queue, 10, value))
    producer.start()
    eventually(lambda: queue.qsize() == 2)
    with pytest.raises(standard.Full):
        queue.put(value, timeout=0.05)
    assert queue.qsize() == 2
    assert all(queue.get() == value for _ in range(10))
    producer.join()


def double(value):
    return value + value


def test_arguments_and_results_of_a_pool_wait_for_room(mp):
    with mp.Pool(2) as pool:
        values = [bytes([n]) * (n % 3 * MIB) for n in range(40)]
        assert pool.map(double, values, 1) == [value + value for value in values]
        assert list(pool.imap(double, values)) == [value + value for value in values]
        queue = mp.Queue()
        fill(queue, bytes(MIB))
        # The queue uses nearly the whole budget: the items pass one by one.
        assert pool.map(double, values, 1) == [value + value for value in values]
        with pytest.raises(Exception, match=f"of {16 * MIB} bytes are in use"):
            pool.apply(len, (bytes(70_000), bytes(9 * MIB)))
        assert pool.apply(double, (1,)) == 2


@of_methods("forkserver")
def test_results_that_do_not_fit_together_go_one_by_one(mp):
    values = [bytes([n]) * (n % 3 * MIB) for n in range(40)]
    with mp.Pool(5) as pool:
        assert pool.map(double, values, 1) == [value + value for value in values]


@of_methods("forkserver")
def test_lent_arrays_give_way_to_copies(mp):
    numpy = pytest.importorskip("numpy")
    with mp.Pool(2) as pool:
        arrays = [numpy.full(MIB // 4, n) for n in range(30)]  # 2 MiB each
        kept = pool.map(double, arrays, 1)
        assert all((result == 2 * n).all() for n, result in enumerate(kept))
        budget = polyproc.get_memory_budget()
        assert budget.in_use <= budget.limit
        # The kept arrays leave room for a large item, repeatedly.
        queue = mp.Queue()
        for _ in range(5):
            child = mp.Process(target=queue.put, args=(bytes(6 * MIB),))
            child.start()
            assert len(queue.get(timeout=30)) == 6 * MIB
            child.join()
            assert child.exitcode == 0
        assert sum(map(len, kept)) == 30 * (MIB // 4)


@pytest.mark.parametrize("lent", [True, False])
def test_a_pipe_holds_16_mib_and_one_message_more(mp, lent):
    receiving, sending = mp.Pipe(duplex=False)
    polyproc.set_memory_budget(1 << 40 if lent else 0)  # without a budget, values are copied instead of lent
    value = bytes(3 * MIB)
    sent = mp.Value("i", 0)
    sender = mp.Process(target=send_many, args=(sending, sent, 20, value))
    sender.start()
    eventually(lambda: sent.value >= 4)
    time.sleep(0.2)  # nothing signals that the sender is blocked
    assert sent.value <= 6
    for _ in range(20):
        assert receiving.recv() == value
    sender.join()


def send_many(connection, sent, count, value):
    for _ in range(count):
        connection.send(value)
        sent.value += 1
