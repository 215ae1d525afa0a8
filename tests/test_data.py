"""Large values: written once, not copied at the receiver, and private to each process when changed."""

import gc
import os
import pickle

import polyproc
import pytest
from conftest import eventually

numpy = pytest.importorskip("numpy")


def identity(x):
    return x


def increment(x):
    x += 1
    return x


def describe(x):
    return type(x).__name__, x.flags.writeable, x.flags.aligned, x.flags.owndata


def arrays():
    one = numpy.arange(300_000, dtype="f8")
    read_only = one.copy()
    read_only.flags.writeable = False
    return [
        one[:10],
        one[:10_000],
        one,
        read_only,
        one.reshape(500, 600),
        numpy.asfortranarray(one.reshape(500, 600)),
        one[::2],
        one.astype("i2"),
        numpy.array(["text"] * 300_000),
        numpy.empty(0),
        numpy.zeros((200_000,), dtype=[("a", "i4"), ("b", "f8")]),
    ]


@pytest.fixture(scope="module")
def pool():
    with polyproc.Pool(2) as pool:
        yield pool


def test_arrays_arrive_as_they_are(pool):
    queue, (a, b) = polyproc.Queue(), polyproc.Pipe()
    for array in arrays():
        queue.put(array)
        a.send(array)
        for back in (pool.apply(identity, (array,)), queue.get(), b.recv(), pool.map(identity, [array, 1])[0]):
            assert (back == array).all()
            assert (back.dtype, back.shape, back.strides) == (
                array.dtype,
                array.shape,
                pickle.loads(pickle.dumps(array, 5)).strides,
            )
            assert back.flags.writeable == array.flags.writeable


def test_they_are_aligned_and_may_be_written(pool):
    for array in arrays()[1:3]:
        assert pool.apply(describe, (array,)) == ("ndarray", True, True, False)


def test_writing_changes_nobody_elses(pool):
    array = numpy.zeros(1_000_000)
    first = pool.apply(identity, (array,))
    second = pool.apply(identity, (first,))
    first += 1
    assert array.sum() == 0 == second.sum()
    assert pool.apply(increment, (first,)).sum() == 2_000_000
    assert first.sum() == 1_000_000
    assert pool.apply(identity, (first,)).sum() == 1_000_000
    array += 5
    assert first.sum() == 1_000_000


def test_many_at_once(pool):
    values = [numpy.full(200_000, n) for n in range(200)]
    for chunksize in (1, 7, None):
        assert [x[0] for x in pool.map(increment, values, chunksize)] == list(range(1, 201))
    queue = polyproc.Queue()
    for value in values:
        queue.put(value)
    assert [queue.get()[-1] for _ in values] == list(range(200))
    bounded = polyproc.Queue(2)
    bounded.put(values[0])
    bounded.put(values[1])
    with pytest.raises(Exception, match="^$") as raised:
        bounded.put(values[2], timeout=0.01)
    assert type(raised.value).__name__ == "Full"


def write_and_die(array, path):
    """Changes its argument, and dies on the first run."""
    array += 1
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return array.sum()
    os._exit(1)


def test_a_task_that_is_tried_again_finds_its_arguments_as_they_were(pool, tmp_path):
    array = numpy.zeros(1_000_000)
    assert pool.apply(write_and_die, (array, str(tmp_path / "a")), retries=1) == 1_000_000


def test_large_bytes(pool):
    data = os.urandom(3_000_000)
    queue, (a, b) = polyproc.Queue(), polyproc.Pipe()
    for size in (60_000, 70_000, 1 << 20, 3_000_000):
        queue.put(data[:size])
        a.send(data[:size])
        assert queue.get() == b.recv() == pool.apply(identity, (data[:size],)) == data[:size]
    assert pool.apply(identity, (bytearray(data),)) == data
    assert pool.apply(identity, ([data, data[::-1]],)) == [data, data[::-1]]


def test_no_descriptor_is_left(pool):
    def count():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    array = numpy.zeros(1_000_000)
    pool.apply(identity, (array,))
    before = count()
    for _ in range(100):
        pool.apply(identity, (array,))
    eventually(lambda: count() <= before + 2)


def test_closures_with_large_arrays(pool):
    pytest.importorskip("cloudpickle")
    array = numpy.arange(500_000)
    assert pool.map(lambda n: int(array[n]), range(100)) == list(range(100))
