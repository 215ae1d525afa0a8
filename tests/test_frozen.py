"""Stopped processes and silent peers: no process waits for them for ever."""

import os
import signal

import pytest
from conftest import eventually, of_methods, state_of, wait_for_end
from polyproc.pool import TaskTimeout

START = """
    import os, signal, sys, threading
    import polyproc as mp
    from polyproc.forkserver import _forkserver

    def state_of(pid):
        try:
            with open(f"/proc/{pid}/stat") as file:
                return file.read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return "X"

    def stop(pid):
        os.kill(pid, signal.SIGSTOP)
        while state_of(pid) != "T":
            pass

    def kill(pid):
        os.kill(pid, signal.SIGKILL)
        while state_of(pid) not in "ZX":
            pass

"""


@of_methods("forkserver")
@pytest.mark.parametrize(
    "end",
    [
        "pool.terminate(); pool.join()",
        "pool.close(); pool.terminate(); pool.join()",
        "with pool: pass",
        "pool = None",
        "sys.exit(print('ends'))",
    ],
)
def test_a_pool_ends_while_the_fork_server_is_stopped(programs, end):
    """The pool has requested new workers, which do not start."""
    code, out, err = programs.run(
        START
        + f"""
    if __name__ == "__main__":
        mp.set_start_method(METHOD)
        pool = mp.Pool(3)
        pool.map(abs, range(10))
        stop(_forkserver._forkserver_pid)
        for worker in pool._pool:
            kill(worker.pid)
        result = pool.apply_async(abs, (-1,))
        {end}
        print("ends")
        """
    )
    assert (code, out) == (0, "ends\n"), err


@pytest.mark.parametrize("how", ["terminate", "end"])
def test_a_pool_ends_while_its_workers_are_stopped(programs, how):
    code, out, err = programs.run(
        START
        + """
    if __name__ == "__main__":
        mp.set_start_method(METHOD)
        pool = mp.Pool(2)
        pool.map(abs, range(10))
        for worker in pool._pool:
            stop(worker.pid)
        result = pool.apply_async(abs, (-1,))
        if sys.argv[1] == "terminate":
            pool.terminate()
            pool.join()
        print("ends")
        """,
        how,
    )
    assert (code, out, err) == (0, "ends\n", "")


def test_a_stopped_worker_is_timed_out(mp):
    """The worker is stopped while it runs its task."""
    with mp.Pool(1) as pool:
        pid = pool.apply(os.getpid)
        with pytest.raises(TaskTimeout):
            pool.apply(stop_itself, timeout=1)
        wait_for_end(pid)
        assert pool.apply(abs, (-1,)) == 1


def stop_itself():
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("address", ["None", "('127.0.0.1', 0)"])
def test_a_silent_client_does_not_hold_up_an_honest_one(programs, address):
    code, out, err = programs.run(
        f"""
        import socket
        import polyproc as mp
        import polyproc.connection

        def call(address):
            with mp.connection.Client(address, authkey=b"secret") as connection:
                connection.send("hello")

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            listener = mp.connection.Listener({address}, authkey=b"secret")
            silent = socket.socket(socket.AF_INET if type(listener.address) is tuple else socket.AF_UNIX)
            silent.connect(listener.address)
            child = mp.Process(target=call, args=(listener.address,))
            child.start()
            while True:
                try:
                    connection = listener.accept()
                    break
                except (mp.AuthenticationError, EOFError, OSError):
                    pass  # of the silent client
            with connection:
                print(connection.recv())
            child.join()
            silent.close()
        """
    )
    assert (code, out, err) == (0, "hello\n", "")


def hold_and_stop(lock, ready):
    with lock:
        ready.set()
        os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "Condition"])
def test_time_limits_hold_while_the_owner_is_stopped(mp, kind):
    lock, ready = getattr(mp, kind)(), mp.Event()
    child = mp.Process(target=hold_and_stop, args=(lock, ready))
    child.start()
    try:
        ready.wait()
        eventually(lambda: state_of(child.pid) == "T")
        assert not lock.acquire(timeout=0.1)
        assert not lock.acquire(block=False)
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.join()
    assert lock.acquire(timeout=60)
    lock.release()
