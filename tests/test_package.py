"""The package: its names, its executors, `install()`, shared memory with names."""

import concurrent.futures
import functools
import importlib
import multiprocessing.pool
import multiprocessing.queues
import multiprocessing.synchronize
import os
import pkgutil
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import polyproc
import polyproc.shared_memory
import pytest
from conftest import eventually, is_running
from polyproc.pool import WorkerLost


def square(x):
    return x * x


def exit_at_once(_=None):
    os._exit(1)


def fail():
    raise RuntimeError("no good")


ERRORS = {
    "StartError",
    "PoolError",
    "WorkerLost",
    "OutOfMemory",
    "TaskTimeout",
    "TaskCancelled",
    "TaskExited",
    "PoolTerminated",
    "NoWorkers",
}
BUDGET = {"MemoryBudget", "OutOfSpace", "get_memory_budget", "set_memory_budget"}


def test_all_names_of_multiprocessing_are_there():
    assert set(multiprocessing.__all__) < set(polyproc.__all__)
    assert set(polyproc.__all__) - set(multiprocessing.__all__) == {"install", "ProcessPoolExecutor", *BUDGET, *ERRORS}
    for module in pkgutil.iter_modules(multiprocessing.__path__):
        if "win32" in module.name:
            continue
        theirs = importlib.import_module(f"multiprocessing.{module.name}")
        ours = importlib.import_module(f"polyproc.{module.name}")
        missing = set(theirs.__all__ or ()) - set(dir(ours)) if hasattr(theirs, "__all__") else set()
        assert missing == set(), module.name


def test_methods_of_classes_are_there():
    for name in ("Pool", "Queue", "JoinableQueue", "SimpleQueue", "Lock", "RLock", "Condition", "Event", "Barrier"):
        args = (2,) if name == "Barrier" else ()
        theirs, ours = getattr(multiprocessing, name)(*args), getattr(polyproc, name)(*args)
        missing = {name for name in dir(theirs) if not name.startswith("_")} - set(dir(ours))
        assert missing == set(), name
        if name == "Pool":
            theirs.terminate()
            ours.terminate()


def test_contexts():
    assert polyproc.get_all_start_methods() == ["forkserver", "spawn", "fork"]
    assert polyproc.get_context().get_start_method() == "forkserver"
    with pytest.raises(ValueError, match="cannot find context for 'thread'"):
        polyproc.get_context("thread")


@pytest.mark.parametrize("executor", [concurrent.futures.ProcessPoolExecutor, polyproc.ProcessPoolExecutor])
def test_executors(mp, executor):
    with executor(2, mp_context=mp) as pool:
        assert list(pool.map(square, range(20))) == [x * x for x in range(20)]
        assert list(pool.map(square, range(20), chunksize=3)) == [x * x for x in range(20)]
        assert pool.submit(square, 5).result(30) == 25
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result(30)
        with pytest.raises(concurrent.futures.TimeoutError):
            list(pool.map(time.sleep, [0.3], timeout=0.01))
        with pytest.raises(BrokenProcessPool):
            pool.submit(exit_at_once).result(30)
    with pytest.raises(RuntimeError):
        pool.submit(square, 1)
    with executor(1, mp_context=mp, initializer=fail) as pool, pytest.raises(BrokenProcessPool):
        pool.submit(square, 1).result(30)


def test_an_executor_of_ours_goes_on_after_a_death(mp):
    with polyproc.ProcessPoolExecutor(2, mp_context=mp) as pool:
        with pytest.raises(WorkerLost):
            pool.submit(exit_at_once).result(30)
        assert pool.submit(square, 5).result(30) == 25


def wait_for(event):
    event.wait()


def test_futures_can_be_cancelled(mp):
    event = mp.Event()
    with polyproc.ProcessPoolExecutor(1, mp_context=mp) as pool:
        futures = [pool.submit(wait_for, event) for _ in range(50)]
        assert futures[-1].cancel()
        assert futures[-1].cancelled()
        pool.shutdown(wait=False, cancel_futures=True)
        event.set()
        concurrent.futures.wait(futures, 30)
        assert sum(future.cancelled() for future in futures) >= 40


def test_work_that_was_submitted_is_done_before_the_end(programs):
    code, out, err = programs.run(
        """
        import os
        import polyproc as mp

        if __name__ == "__main__":
            mp.ProcessPoolExecutor(2, mp_context=mp.get_context(METHOD)).submit(os.write, 1, b"done\\n")
            os.write(1, b"ends\\n")
        """
    )
    assert (code, sorted(out.splitlines()), err) == (0, ["done", "ends"], "")


PROGRAM_THAT_INSTALLS = """
    import multiprocessing
    # From before: these are not left behind.
    from multiprocessing import Pool, Process, Queue
    from multiprocessing.pool import AsyncResult, Pool as PoolClass
    from multiprocessing.queues import Queue as QueueClass
    from concurrent.futures import ProcessPoolExecutor
    import polyproc
    polyproc.install()

    class Subclass(PoolClass):
        pass

    class OwnQueue(QueueClass):  # as that of the standard executor
        def _on_queue_feeder_error(self, error, obj):
            print("refused", flush=True)

    def whose(_=None):
        return type(multiprocessing.get_context()).__module__

    def put(queue, value, array, lock):
        with value.get_lock(), lock:
            value.value += array[1]
        queue.put(whose())

    def begin(shared, lock):
        global kept
        kept = shared

    def add(n):
        kept[n] = whose()

    def main():
        queue, value, array = Queue(), multiprocessing.Value("i", 1), multiprocessing.Array("i", [2, 3])
        child = Process(target=put, args=(queue, value, array, multiprocessing.Lock()))
        child.start()
        print(queue.get(), value.value, isinstance(child, multiprocessing.Process))
        child.join()
        with Pool(2) as pool, PoolClass(2) as other:
            result = pool.apply_async(whose)
            print(result.get(), type(pool) is type(other), isinstance(result, AsyncResult), isinstance(pool, PoolClass))
        with Subclass(2) as pool:
            print(type(pool).__name__, pool.map(whose, range(2)))
        own = OwnQueue(7, ctx=multiprocessing.get_context())
        own.put(lambda: None)
        own.put(3)
        print(own.get(), type(own).__name__)
        with ProcessPoolExecutor(2) as pool:
            print(list(pool.map(whose, range(2))))
        with multiprocessing.Manager() as manager:
            shared = manager.dict()
            with Pool(2, begin, (shared, manager.Lock())) as pool:
                pool.map(add, range(2))
            print(dict(sorted(shared.items())))
            with manager.Pool(1) as pool:
                print(pool.apply(whose))

    if __name__ == "__main__":
        multiprocessing.set_start_method(METHOD)
        print(polyproc.get_start_method() == METHOD, multiprocessing.get_context() is polyproc.get_context())
        main()
"""


def test_install(programs):
    code, out, err = programs.run(PROGRAM_THAT_INSTALLS)
    ours = "polyproc.context"
    lines = [
        "True True",
        f"{ours} 4 True",
        f"{ours} True True True",
        f"Subclass {[ours] * 2}",
        "refused",
        "3 OwnQueue",
        f"{[ours] * 2}",
        str({0: ours, 1: ours}),
        ours,
    ]
    assert (code, out.splitlines(), err) == (0, lines, "")


def test_install_with_a_start_method_of_another_library(programs):
    code, out, err = programs.run(
        """
        import multiprocessing
        from multiprocessing import context

        class OtherContext(context.SpawnContext):
            _name = "other"

        context._concrete_contexts["other"] = OtherContext()
        multiprocessing.set_start_method("other")
        import polyproc
        polyproc.install()
        if __name__ == "__main__":
            print(multiprocessing.get_start_method(), polyproc.get_start_method())
        """
    )
    assert (code, out.split(), err) == (0, ["other", "other"], "")


def test_a_subclass_of_the_pool_has_parameters_of_its_own(programs):
    code, out, err = programs.run(
        """
        import multiprocessing.pool
        import polyproc
        polyproc.install()

        class OwnPool(multiprocessing.pool.Pool):
            def __init__(self, a, b, c, workers, name):
                self.name = name
                super().__init__(workers)

        if __name__ == "__main__":
            with OwnPool(1, 2, 3, 1, "five") as pool:
                print(pool.name, isinstance(pool, polyproc.pool.Pool), pool.map(abs, [-1]))
        """
    )
    assert (code, out.splitlines(), err) == (0, ["five True [1]"], "")


def test_install_after_use_takes_over_what_was_set(programs):
    code, out, err = programs.run(
        """
        import multiprocessing
        before = multiprocessing.get_context(METHOD)
        if __name__ == "__main__":
            multiprocessing.set_start_method(METHOD)
            import polyproc
            polyproc.install()
            print(multiprocessing.get_start_method() == polyproc.get_start_method() == METHOD)
            queue = before.Queue()
            child = multiprocessing.Process(target=queue.put, args=(1,))
            child.start()
            print(queue.get(), type(queue).__module__)
            child.join()
        """
    )
    assert (code, out, err) == (0, "True\n1 polyproc.queues\n", "")


def test_every_module_is_an_attribute_of_the_package(programs):
    code, out, err = programs.run(
        """
        import polyproc
        print(polyproc.process.current_process().name, polyproc.pool.Pool.__name__, polyproc.managers.BaseManager.__module__)
        print(hasattr(polyproc, "nothing"), hasattr(polyproc, "_nothing"))
        """
    )
    assert (code, out, err) == (0, "MainProcess Pool polyproc.managers\nFalse False\n", "")


def test_objects_are_known_to_isinstance(mp):
    with mp.Pool(1) as pool:
        kinds = {
            multiprocessing.pool.Pool: pool,
            multiprocessing.pool.AsyncResult: pool.apply_async(len, ("",)),
            multiprocessing.pool.MapResult: pool.map_async(len, [""]),
            multiprocessing.pool.IMapIterator: pool.imap(len, [""]),
            multiprocessing.queues.Queue: mp.Queue(),
            multiprocessing.queues.JoinableQueue: mp.JoinableQueue(),
            multiprocessing.queues.SimpleQueue: mp.SimpleQueue(),
            multiprocessing.synchronize.Barrier: mp.Barrier(1),
            multiprocessing.Process: mp.Process(),
        }
        for kind, thing in kinds.items():
            assert isinstance(thing, kind)


def serve_and_say(queue):
    manager = polyproc.Manager()
    queue.put(manager._process.pid)
    time.sleep(1000)


def test_the_server_of_a_manager_ends_with_its_program(mp):
    queue = mp.Queue()
    child = mp.Process(target=serve_and_say, args=(queue,))
    child.start()
    server = queue.get()
    child.kill()
    child.join()
    eventually(lambda: not is_running(server))


def test_the_server_of_a_manager_that_died_is_named(mp):
    manager = mp.Manager()
    numbers = manager.dict()
    manager._process.kill()
    for use in (lambda: numbers.update({1: 2}), manager.list):
        with pytest.raises((OSError, EOFError), match="the server of the manager does not answer: it was killed by SIGKILL"):
            use()


def test_a_manager_has_the_default_context():
    assert polyproc.managers.SyncManager()._ctx is polyproc.get_context()


def make_segment(queue):
    memory = polyproc.shared_memory.SharedMemory(create=True, size=10)
    memory.buf[0] = 42
    queue.put(memory.name)
    memory.close()


def attach_to_segment(name):
    memory = polyproc.shared_memory.SharedMemory(name)
    memory.buf[1] = 43
    memory.close()


def test_named_memory_outlives_its_maker_and_those_who_attach(mp):
    queue = mp.Queue()
    child = mp.Process(target=make_segment, args=(queue,))
    child.start()
    name = queue.get()
    child.join()
    child = mp.Process(target=attach_to_segment, args=(name,))
    child.start()
    child.join()
    memory = polyproc.shared_memory.SharedMemory(name)
    assert bytes(memory.buf[:2]) == bytes([42, 43])
    memory.close()
    memory.unlink()
    with pytest.raises(FileNotFoundError):
        polyproc.shared_memory.SharedMemory(name)


def test_attaching_in_another_program_does_not_destroy(programs):
    memory = polyproc.shared_memory.SharedMemory(create=True, size=10)
    code, out, err = programs.run(
        f"""
        import polyproc.shared_memory
        memory = polyproc.shared_memory.SharedMemory({memory.name!r})
        memory.close()
        """
    )
    assert (code, err) == (0, "")
    polyproc.shared_memory.SharedMemory(memory.name).close()
    code, out, err = programs.run(
        f"""
        import polyproc.shared_memory
        memory = polyproc.shared_memory.SharedMemory({memory.name!r}, track=True)
        """
    )
    assert "leaked shared_memory" in err
    with pytest.raises(FileNotFoundError):
        polyproc.shared_memory.SharedMemory(memory.name)
    memory.close()


def test_lists_with_names():
    one = polyproc.shared_memory.ShareableList([1, "two", None])
    other = polyproc.shared_memory.ShareableList(name=one.shm.name)
    assert list(other) == [1, "two", None]
    other[0] = 5
    assert one[0] == 5
    other.shm.close()
    one.shm.close()
    one.shm.unlink()


def test_coverage_sees_what_runs_in_processes_and_pools(programs):
    (programs.folder / "coveragerc").write_text(
        "[run]\nconcurrency = multiprocessing\nparallel = True\ninclude = */measured.py\n"
    )
    (programs.folder / "measured.py").write_text(
        textwrap.dedent("""
        import sys
        import polyproc as mp

        def task(n):
            if n % 2:
                tripled = n * 3
                return tripled
            return n

        def put(queue):
            queue.put(1)

        if __name__ == "__main__":
            mp.set_start_method(sys.argv[1])
            pool = mp.Pool(2)
            pool.map(task, range(10))
            pool.close()
            pool.join()
            queue = mp.Queue()
            child = mp.Process(target=put, args=(queue,))
            child.start()
            queue.get()
            child.join()
        """)
    )

    def coverage(*args):
        command = [sys.executable, "-m", "coverage", args[0], "--rcfile=coveragerc", *args[1:]]
        done = subprocess.run(command, cwd=programs.folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    coverage("run", "measured.py", programs.method)
    coverage("combine")
    assert coverage("report", "--format=total").strip() == "100"


def hold_and_put(lock, queue, event, value):
    with lock, value.get_lock():
        value.value += 1
        queue.put(value.value)
    event.set()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_processes_of_the_standard_library_have_our_objects(method):
    objects = polyproc.Lock(), polyproc.Queue(), polyproc.Event(), polyproc.Value("i", 1)
    child = multiprocessing.get_context(method).Process(target=hold_and_put, args=objects)
    child.start()
    assert objects[1].get(timeout=60) == 2
    assert objects[2].wait(60)
    child.join()
    assert child.exitcode == 0


def sleep_and_return(n):
    time.sleep(0.05)
    return n


@pytest.fixture
def executor(mp):
    with polyproc.ProcessPoolExecutor(2, mp_context=mp) as executor:
        yield executor


def test_the_rest_of_a_map_that_is_closed_is_not_run(executor, tmp_path):
    results = executor.map(functools.partial(note_run, tmp_path), range(200))
    next(results)
    results.close()
    executor.shutdown()
    assert len(list(tmp_path.iterdir())) < 100


def note_run(folder, n):
    (folder / str(n)).touch()
    time.sleep(0.01)


def test_a_future_runs_from_when_a_worker_has_begun_until_its_end(mp):
    begun, go = mp.Event(), mp.Event()
    with polyproc.ProcessPoolExecutor(1, mp_context=mp) as executor:
        first = executor.submit(set_and_wait, begun, go)
        second = executor.submit(abs, -1)
        assert begun.wait(60)
        assert (first.running(), second.running()) == (True, False)
        assert not first.cancel()
        go.set()
        assert (first.result(60), second.result(60)) == (None, 1)
        assert (first.running(), second.running()) == (False, False)


def set_and_wait(begun, go):
    begun.set()
    assert go.wait(60)


def test_what_cannot_be_pickled_is_the_error_of_its_future(executor):
    assert isinstance(executor.submit(sleep_and_return, threading.Lock()).exception(), TypeError)
    assert executor.submit(sleep_and_return, 3).result() == 3


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
def test_the_workers_of_an_executor_can_be_ended(mp, how):
    executor = polyproc.ProcessPoolExecutor(2, mp_context=mp)
    futures = [executor.submit(time.sleep, 1000) for _ in range(3)]
    eventually(lambda: len(executor._processes) == executor._max_workers == 2)
    getattr(executor, how)()
    for future in futures:
        assert isinstance(future.exception(30), BrokenProcessPool)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(abs, 1)
    executor.shutdown()


def test_a_manager_has_sets():
    with polyproc.Manager() as manager:
        numbers = manager.set({1, 2})
        numbers.add(3)
        numbers |= {9}
        numbers -= {1}
        assert (len(numbers), 3 in numbers, numbers._getvalue()) == (3, True, {2, 3, 9})


def test_a_process_can_be_interrupted(mp):
    child = mp.Process(target=wait_for_interrupt, args=(ready := mp.Event(), heard := mp.Queue()))
    child.start()
    ready.wait(30)
    child.interrupt()
    assert heard.get(timeout=30) == "interrupted"
    child.join()


def wait_for_interrupt(ready, heard):
    import signal

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        ready.set()
        time.sleep(1000)
    except KeyboardInterrupt:
        heard.put("interrupted")


def test_subclasses_of_the_standard_pool_have_the_engine_beneath_them_after_install(programs):
    code, out, err = programs.run(
        """
        import os
        import signal
        import multiprocessing
        import multiprocessing.pool
        import polyproc
        polyproc.install()

        class Nestable(multiprocessing.pool.Pool):  # as it is copied from page to page
            def __init__(self, *args, **kwds):
                context = type(multiprocessing.get_context(METHOD))()
                super(Nestable, self).__init__(*args, context=context, **kwds)

            def shout(self):
                return [text.upper() for text in self.map(str, "abc")]

        class ByItsClass(multiprocessing.pool.Pool):
            def __init__(self, processes):
                multiprocessing.pool.Pool.__init__(self, processes)

        class Private(multiprocessing.pool.Pool):
            def _get_tasks(self):
                pass

        def die(_):
            os.kill(os.getpid(), signal.SIGKILL)

        if __name__ == "__main__":
            multiprocessing.set_start_method(METHOD)
            for kind in (Nestable, ByItsClass):
                with kind(2) as pool:
                    print(type(pool).__name__, isinstance(pool, kind), isinstance(pool, polyproc.pool.Pool))
                    try:
                        pool.map(die, [1])
                    except polyproc.WorkerLost as error:
                        print(error.signal.name)
                    print(pool.map(abs, [-1, 2]))
            with Nestable(1) as pool:
                print(pool.shout())
            with Private(1) as pool:
                print(isinstance(pool, polyproc.pool.Pool), pool.map(abs, [-1]))
            with multiprocessing.pool.ThreadPool(1) as pool:
                print(pool.map(abs, [-1]))
        """
    )
    lines = [
        "Nestable True True",
        "SIGKILL",
        "[1, 2]",
        "ByItsClass True True",
        "SIGKILL",
        "[1, 2]",
        "['A', 'B', 'C']",
        "False [1]",
        "[1]",
    ]
    assert (code, out.splitlines(), err) == (0, lines, "")
