"""Objects that can be sent through queues, pipes and pools, and objects that cannot."""

import multiprocessing.reduction
import pickle
import threading

import pytest


def echo(value):
    return value


def test_strings_and_bytes_that_are_the_same_arrive_as_the_same(mp):
    text, data = "x" * 60_000, b"y" * 50
    queue = mp.Queue()
    queue.put([text] * 500 + [data, "short", data])
    *texts, first, short, second = queue.get()
    assert all(other is texts[0] for other in texts)
    assert (texts[0], len(texts), first, short) == (text, 500, data, "short")
    assert second is first
    categories = [f"a category of some length {n}" for n in range(700)]
    rows = [(n, categories[n % 700]) for n in range(5000)]
    with mp.Pool(1) as pool:
        assert pool.map(tuple, rows, 100) == rows
        assert pool.apply(echo, (rows,)) == rows
        one, two = pool.apply(echo, ([text, text],))
        assert one is two
    queue.put({"a key of some length": categories[0], "another key that is long": categories[0]})
    assert queue.get() == {"a key of some length": categories[0], "another key that is long": categories[0]}


def test_a_pipe_takes_pickles_as_bytes_and_gives_them(mp):
    ours, theirs = mp.Pipe()
    for value in [1, "text", None, {"a": [1, 2, (3,)]}, range(10), b"bytes" * 100_000]:
        for protocol in (0, 2, pickle.HIGHEST_PROTOCOL):
            ours.send_bytes(pickle.dumps(value, protocol))
            assert theirs.recv() == value
        ours.send(value)
        assert pickle.loads(theirs.recv_bytes()) == value
    for data in (b"", b"\x00", b"\x03" * 9, bytes(range(256))):
        ours.send_bytes(data)
        assert theirs.recv_bytes() == data


class Held:
    """An object that pickle refuses until a reducer is registered."""

    def __init__(self):
        self.lock = threading.Lock()


def make_held():
    return Held()


def test_reducers_may_be_registered_at_any_time(mp):
    queue = mp.Queue()
    queue.put([object()])  # creates a pickler
    queue.get()
    with pytest.raises(TypeError):
        queue.put(Held())
    queue.put([object()])
    queue.get()
    multiprocessing.reduction.ForkingPickler.register(Held, lambda held: (make_held, ()))
    try:
        queue.put(Held())
        assert type(queue.get()) is Held
    finally:
        del multiprocessing.reduction.ForkingPickler._extra_reducers[Held]


def test_keys_and_open_files_are_refused(mp):
    key = mp.current_process().authkey
    with mp.Pool(1) as pool, open(__file__) as file:
        for value in (key, (key,), {"deep": [key]}):
            with pytest.raises(TypeError, match="AuthenticationString"):
                mp.Queue().put(value)
            with pytest.raises(TypeError, match="AuthenticationString"):
                pool.apply(echo, (value,))
        with pytest.raises(TypeError, match="TextIOWrapper"):
            pool.apply(echo, (file,))


def test_a_lambda_is_the_target_of_a_process(mp):
    queue = mp.Queue()
    child = mp.Process(target=lambda: queue.put(7))
    child.start()
    assert queue.get(timeout=30) == 7
    child.join()


def results_of_a_pool_that_nobody_keeps(mp):
    return mp.Pool(2).imap(abs, [-1, 2, -3])


@pytest.mark.filterwarnings("ignore:unclosed running multiprocessing pool:ResourceWarning")
def test_a_pool_lives_as_long_as_its_results_are_taken(mp):
    assert list(results_of_a_pool_that_nobody_keeps(mp)) == [1, 2, 3]


def test_proxies_carry_the_key_of_their_manager(programs):
    """Also through a pool that was created before; with a manager of the standard library."""
    code, out, err = programs.run(
        """
        import multiprocessing.managers
        import polyproc as mp

        def add(values):
            values.append(7)
            return values

        if __name__ == "__main__":
            context = mp.get_context(METHOD)
            with context.Pool(1) as pool, multiprocessing.managers.SyncManager(authkey=b"another") as manager:
                values = pool.apply(add, (manager.list([1]),))
                print(list(values), list(pool.apply(add, (values,))))
        """
    )
    assert (code, out, err) == (0, "[1, 7] [1, 7, 7]\n", "")
