"""Locks, semaphores, conditions, events, barriers."""

import signal
import threading
import time

import polyproc
import pytest


def increment(lock, value, times):
    for _ in range(times):
        with lock:
            value.value += 1


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"])
def test_only_one_at_a_time(mp, kind):
    lock, value = getattr(mp, kind)(), mp.Value("i", 0, lock=False)
    children = [mp.Process(target=increment, args=(lock, value, 500)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert value.value == 2000


def hold(lock, ready):
    lock.acquire()
    ready.set()
    time.sleep(1000)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_the_lock_of_the_dead_is_taken_over_with_a_warning(mp, kind):
    lock, ready = getattr(mp, kind)(), mp.Event()
    child = mp.Process(target=hold, args=(lock, ready))
    child.start()
    ready.wait()
    assert not lock.acquire(timeout=0.01)
    child.kill()
    with pytest.warns(RuntimeWarning, match="died"):
        assert lock.acquire(timeout=20)
    lock.release()
    assert lock.acquire(timeout=20)
    lock.release()
    child.join()


def acquire(lock):
    lock.acquire()


def test_an_owner_that_ended_in_order_keeps_the_lock(mp):
    lock = mp.Lock()
    child = mp.Process(target=acquire, args=(lock,))
    child.start()
    child.join()
    assert not lock.acquire(timeout=0.5)
    lock.release()
    assert lock.acquire(timeout=20)
    lock.release()
    with mp.Pool(1) as pool:
        pool.apply(acquire, (lock,))
        assert not lock.acquire(timeout=0.1)
        pool.close()
        pool.join()
    assert not lock.acquire(timeout=0.5)


def release(lock):
    lock.release()


def test_a_lock_may_be_released_by_another_process(mp):
    lock = mp.Lock()
    lock.acquire()
    assert not lock.acquire(block=False)
    child = mp.Process(target=release, args=(lock,))
    child.start()
    child.join()
    assert lock.acquire(timeout=20)
    lock.release()
    with pytest.raises(ValueError, match="too many times"):
        lock.release()


def test_a_recursive_lock_is_its_threads(mp):
    lock = mp.RLock()
    with lock, lock:
        thread = threading.Thread(target=lambda: results.append(lock.acquire(timeout=0.01)))
        results = []
        thread.start()
        thread.join()
        assert results == [False]
    with pytest.raises(AssertionError, match="not owned by thread"):
        lock.release()


def test_semaphores_count(mp):
    semaphore, bounded = mp.Semaphore(2), mp.BoundedSemaphore(1)
    assert [semaphore.acquire(block=False) for _ in range(3)] == [True, True, False]
    semaphore.release()
    assert semaphore.get_value() == 1
    with pytest.raises(ValueError, match="too many times"):
        bounded.release()
    with pytest.raises(OSError, match="Invalid argument"):
        mp.Semaphore(-1)


def wait_for_condition(condition, ready):
    with condition:
        ready.release()
        condition.wait()


def test_waiters_of_a_condition_that_are_killed_are_not_counted(mp):
    condition, ready = mp.Condition(), mp.Semaphore(0)
    children = [mp.Process(target=wait_for_condition, args=(condition, ready)) for _ in range(4)]
    for child in children:
        child.start()
        ready.acquire()
    with condition:  # all children wait now
        pass
    for child in children[:3]:
        child.kill()
        child.join()
    with condition:
        condition.notify()
    children[3].join(20)
    assert children[3].exitcode == 0
    with pytest.raises(AssertionError, match="lock is not owned"):
        condition.notify()


def test_wait_for(mp):
    condition, value = mp.Condition(), mp.Value("i", 0)
    child = mp.Process(target=count_up, args=(condition, value))
    child.start()
    with condition:
        assert condition.wait_for(lambda: value.value == 10, timeout=20)
        assert not condition.wait_for(lambda: False, timeout=0.01)
    child.join()


def count_up(condition, value):
    for _ in range(10):
        with condition:
            value.value += 1
            condition.notify_all()


def test_events(mp):
    event, answer = mp.Event(), mp.Event()
    assert not event.wait(0.01)
    child = mp.Process(target=answer_event, args=(event, answer))
    child.start()
    event.set()
    assert answer.wait(20)
    assert event.is_set()
    event.clear()
    assert not event.is_set()
    child.join()


def test_a_pulse_of_a_signal_handler_ends_the_wait_that_it_interrupts(mp):
    event = mp.Event()

    def pulse(*_):
        event.set()
        event.clear()

    before = signal.signal(signal.SIGALRM, pulse)
    try:
        # Repeatedly, as a signal just before the wait does not end it.
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        assert event.wait(20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer_event(event, answer):
    event.wait()
    answer.set()


def come(barrier, queue):
    try:
        barrier.wait()
        queue.put("through")
    except threading.BrokenBarrierError:
        queue.put("broken")


def test_barriers(mp):
    barrier, queue = mp.Barrier(3), mp.Queue()
    children = [mp.Process(target=come, args=(barrier, queue)) for _ in range(2)]
    for child in children:
        child.start()
    assert barrier.wait(20) in range(3)
    assert [queue.get(), queue.get()] == ["through"] * 2
    for child in children:
        child.join()
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)


def test_a_barrier_breaks_when_one_who_waits_is_killed(mp):
    barrier, queue = mp.Barrier(3), mp.Queue()
    children = [mp.Process(target=come, args=(barrier, queue)) for _ in range(2)]
    for child in children:
        child.start()
    while barrier.n_waiting < 2:
        time.sleep(0.001)
    children[0].kill()
    children[0].join()
    assert queue.get(timeout=20) == "broken"
    children[1].join()
    assert barrier.broken
    with pytest.raises(threading.BrokenBarrierError):
        barrier.wait(20)


def test_they_are_refused_where_they_cannot_go(mp):
    import pickle

    for one in (mp.Lock(), mp.Condition(), mp.Event(), mp.Barrier(2), mp.Queue()):
        with pytest.raises(RuntimeError, match="inheritance"):
            pickle.dumps(one)


def test_values_and_arrays(mp):
    value, array = mp.Value("d", 1.5), mp.Array("i", range(5))
    child = mp.Process(target=change, args=(value, array))
    child.start()
    child.join()
    assert value.value == 2.5
    assert array[:] == [1, 2, 3, 4, 5]
    assert type(value.get_lock()) is type(polyproc.RLock())


def change(value, array):
    with value.get_lock():
        value.value += 1
    for place in range(len(array)):
        array[place] += 1


def test_managers(mp):
    with mp.Manager() as manager:
        shared, lock, queue = manager.dict(), manager.Lock(), manager.Queue()
        children = [mp.Process(target=use_manager, args=(shared, lock, queue, n)) for n in range(3)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert shared.copy() == {0: 0, 1: 1, 2: 4, "count": 3}
        assert sorted(queue.get() for _ in range(3)) == [0, 1, 2]
        with mp.Pool(2) as pool:
            assert pool.starmap(put_in, [(shared, n) for n in range(3)]) == [None] * 3


def use_manager(shared, lock, queue, number):
    shared[number] = number * number
    with lock:
        shared["count"] = shared.get("count", 0) + 1
    queue.put(number)


def put_in(shared, number):
    shared[number] = number


def test_thousands_take_few_descriptors_and_go_in_one_message(programs):
    code, _, err = programs.run(
        """
        import resource
        import polyproc

        mp = polyproc.get_context(METHOD)

        def set_all(locks, events, values, queue):
            for lock, event, value in zip(locks, events, values):
                with lock, value.get_lock():
                    event.set()
                    value.value += 1
            queue.put((locks[:600], values[:600], locks[0]))

        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
            locks = [mp.Lock() for _ in range(10_000)]
            events = [mp.Event() for _ in range(10_000)]
            values = [mp.Value("i", n) for n in range(10_000)]
            queue = mp.Queue()
            child = mp.Process(target=set_all, args=(locks, events, values, queue))
            child.start()
            arrived, numbers, same = queue.get(timeout=100)
            child.join()
            assert child.exitcode == 0
            assert all(event.is_set() for event in events)
            assert [value.value for value in values] == list(range(1, 10_001))
            assert [number.value for number in numbers] == list(range(1, 601))
            with locks[0]:
                assert not same.acquire(False) and not arrived[0].acquire(False) and arrived[1].acquire(False)
        """
    )
    assert code == 0, err
