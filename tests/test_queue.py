"""Queues between several processes, and after deaths."""

import os
import queue as standard
import signal
import threading

import polyproc
import polyproc.connection
import polyproc.queues
import pytest
from conftest import eventually, wait_for_end

KINDS = ["Queue", "JoinableQueue", "SimpleQueue"]


def put_many(queue, start, count):
    for number in range(start, start + count):
        queue.put(number)


def square_all(tasks, results):
    while True:
        number = tasks.get()
        if number is None:
            tasks.task_done()
            return
        results.put(number * number)
        tasks.task_done()


@pytest.mark.parametrize("kind", KINDS)
def test_items_of_several_producers_all_arrive(mp, kind):
    queue = getattr(mp, kind)()
    children = [mp.Process(target=put_many, args=(queue, 1000 * n, 1000)) for n in range(3)]
    for child in children:
        child.start()
    numbers = [queue.get() for _ in range(3000)]
    for child in children:
        child.join()
    assert sorted(numbers) == list(range(3000))
    for n in range(3):
        own = [number for number in numbers if number // 1000 == n]
        assert own == sorted(own)
    assert queue.empty()


def test_join_waits_for_all_consumers(mp):
    tasks, results = mp.JoinableQueue(), mp.Queue()
    children = [mp.Process(target=square_all, args=(tasks, results)) for _ in range(3)]
    for child in children:
        child.start()
    put_many(tasks, 0, 100)
    for _ in children:
        tasks.put(None)
    tasks.join()
    assert sorted(results.get_nowait() for _ in range(100)) == [n * n for n in range(100)]
    for child in children:
        child.join()
    with pytest.raises(ValueError, match="too many times"):
        tasks.task_done()


def test_bounds_and_time_limits(mp):
    queue = mp.Queue(2)
    queue.put(1)
    queue.put(2, timeout=1)
    assert queue.full()
    assert queue.qsize() == 2
    with pytest.raises(standard.Full):
        queue.put_nowait(3)
    with pytest.raises(standard.Full):
        queue.put(3, timeout=0.01)
    assert [queue.get(), queue.get(timeout=1)] == [1, 2]
    with pytest.raises(standard.Empty):
        queue.get_nowait()
    with pytest.raises(standard.Empty):
        queue.get(timeout=0.01)
    queue.close()
    queue.join_thread()
    for call in (queue.get, lambda: queue.put(1)):
        with pytest.raises(ValueError, match="is closed"):
            call()


def test_what_cannot_be_pickled_is_refused_at_once(mp):
    queue = mp.Queue()
    with pytest.raises(Exception, match="pickle"):
        queue.put(lambda: None)
    queue.put(1)
    assert queue.get() == 1
    assert queue.empty()


class Hearing(polyproc.queues.Queue):
    heard = None

    def _on_queue_feeder_error(self, error, obj):
        self.heard = error, obj


def test_a_class_may_hear_of_what_cannot_be_pickled(mp):
    queue, value = Hearing(ctx=mp), lambda: None
    queue.put(value)
    assert queue.heard[1] is value
    assert "pickle" in str(queue.heard[0])


def put_and_die(queue, ready):
    number = 0
    while True:
        queue.put((number, b"x" * (number % 5000)))
        number += 1
        if number == 100:
            ready.set()


def test_producers_and_consumers_that_are_killed(mp):
    queue = mp.Queue(1000)
    for _ in range(5):
        ready = mp.Event()
        child = mp.Process(target=put_and_die, args=(queue, ready))
        child.start()
        while not ready.is_set():
            try:
                queue.get_nowait()
            except standard.Empty:
                pass
        child.kill()
        child.join()
        while not queue.empty():
            number, data = queue.get()
            assert data == b"x" * (number % 5000)
    consumer = mp.Process(target=take_forever, args=(queue,))
    consumer.start()
    for number in range(100):
        queue.put(number)
    consumer.kill()
    consumer.join()
    queue.put("after all")
    last = None
    while last != "after all":
        last = queue.get(timeout=20)


def take_forever(queue):
    while True:
        queue.get()


def put_and_leave(queue):
    for number in range(1000):
        queue.put((number, "x" * 1000))
    os._exit(0)


def test_items_of_a_process_that_left_at_once_are_there(mp):
    queue = mp.Queue()
    child = mp.Process(target=put_and_leave, args=(queue,))
    child.start()
    child.join()
    assert [queue.get()[0] for _ in range(1000)] == list(range(1000))


def test_waiting_for_several(mp):
    queues = [mp.Queue(), mp.SimpleQueue()]
    a, b = mp.Pipe()
    readers = [queue._reader for queue in queues] + [b]
    assert polyproc.connection.wait(readers, 0) == []
    queues[1].put(1)
    assert polyproc.connection.wait(readers, 20) == [readers[1]]
    assert queues[1].get() == 1
    a.send(2)
    assert polyproc.connection.wait(readers, 20) == [b]


def test_a_signal_handler_runs_while_one_waits(mp):
    queue = mp.Queue()

    def handler(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise InterruptedError("the handler's")

    signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(InterruptedError, match="the handler's"):
            # Repeatedly, as a signal just before the wait does not end it.
            signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
            queue.get()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_threads_of_one_process(mp):
    queue = mp.Queue()
    results = []
    threads = [threading.Thread(target=lambda: results.append(queue.get())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(4):
        queue.put(number)
    for thread in threads:
        thread.join()
    assert sorted(results) == [0, 1, 2, 3]


def test_nothing_of_it_is_left_by_a_group_that_is_killed(programs):
    program = programs.start(
        """
        import time
        import polyproc as mp
        import polyproc.shared_memory

        def work(queue):
            time.sleep(1000)

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            queue, lock = mp.Queue(), mp.Lock()
            memory = polyproc.shared_memory.SharedMemory(create=True, size=1000)
            child = mp.Process(target=work, args=(queue,))
            child.start()
            print(child.pid, memory.name, flush=True)
            time.sleep(1000)
        """
    )
    pid, name = program.stdout.readline().split()
    assert os.path.exists(f"/dev/shm/{name}")
    os.killpg(program.pid, signal.SIGKILL)
    wait_for_end(int(pid))
    eventually(lambda: not os.path.exists(f"/dev/shm/{name}"))
