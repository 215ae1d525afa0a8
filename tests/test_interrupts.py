"""Ctrl-C at each blocking call: the program raises `KeyboardInterrupt` there, writes one traceback, and ends by itself."""

import signal
import textwrap

import pytest
from conftest import finish, of_methods, wait_until_asleep

PROGRAM = """
import os, signal, sys, threading, time
import polyproc as mp
import polyproc.connection
from polyproc.forkserver import _forkserver

def wait_for(event, _=None):
    event.wait()

BEFORE
if __name__ == "__main__":
    mp.set_start_method(METHOD)
    event = mp.Event()
SETUP
    os.write(1, b"ready\\n")
CALL
    print("the call has returned")
"""


def interrupt(programs, setup, call, before=""):
    """Runs `setup`, then `call`. Sends SIGINT to the program alone, once it sleeps in the call."""
    text = PROGRAM.replace("BEFORE", before)
    for name, part in (("SETUP", setup), ("CALL", call)):
        text = text.replace(name, textwrap.indent(textwrap.dedent(part), "    "))
    program = programs.start(text)
    assert program.stdout.readline() == "ready\n"
    wait_until_asleep(program.pid)
    program.send_signal(signal.SIGINT)
    out, err = finish(program)
    assert (out, err.count("Traceback")) == ("", 1), (out, err)
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT


CHILD = "child = mp.Process(target=wait_for, args=(event,), daemon=True); child.start()"
POOL = "pool = mp.Pool(2)"
EXECUTOR = "executor = mp.ProcessPoolExecutor(2); future = executor.submit(wait_for, event)"
# Before it ends, the program waits for calls that were submitted to an executor.
LET_GO = """
except KeyboardInterrupt:
    event.set()
    raise
"""
OF_A_START_METHOD = {
    "Process.join": (CHILD, "child.join()"),
    "Process.join, with a limit": (CHILD, "child.join(1000)"),
    "wait for a sentinel": (CHILD, "mp.connection.wait([child.sentinel])"),
    "Pool.apply": (POOL, "pool.apply(wait_for, (event,))"),
    "Pool.map": (POOL, "pool.map(wait_for, [event] * 4, 1)"),
    "Pool.map, in chunks": (POOL, "pool.map(wait_for, [event] * 40, 10)"),
    "Pool.starmap": (POOL, "pool.starmap(wait_for, [(event, n) for n in range(4)], 1)"),
    "Pool.imap": (POOL, "next(pool.imap(wait_for, [event] * 4))"),
    "Pool.imap, with a limit": (POOL, "pool.imap(wait_for, [event] * 4).next(1000)"),
    "Pool.imap_unordered": (POOL, "next(pool.imap_unordered(wait_for, [event] * 4))"),
    "AsyncResult.get": (POOL, "pool.apply_async(wait_for, (event,)).get()"),
    "AsyncResult.get, with a limit": (POOL, "pool.map_async(wait_for, [event] * 4).get(1000)"),
    "AsyncResult.wait": (POOL, "pool.apply_async(wait_for, (event,)).wait()"),
    "AsyncResult.wait, before a callback": (
        POOL,
        "try: pool.apply_async(int, callback=lambda _: event.wait()).wait()" + LET_GO,
    ),
    "Pool.join": (POOL, "pool.apply_async(wait_for, (event,)); pool.close(); pool.join()"),
    "Pool.join, with an unread imap": (POOL, "results = pool.imap(wait_for, [event] * 40); pool.close(); pool.join()"),
    "Future.result": (EXECUTOR, "try: future.result()" + LET_GO),
    "Executor.map": (EXECUTOR, "try: list(executor.map(wait_for, [event] * 4))" + LET_GO),
    "Executor.shutdown": (EXECUTOR, "try: executor.shutdown()" + LET_GO),
    "end of an executor's block": (
        "",
        "try:\n    with mp.ProcessPoolExecutor(2) as executor: executor.submit(wait_for, event)" + LET_GO,
    ),
    "Queue.get of a manager": ("manager = mp.Manager(); queue = manager.Queue()", "queue.get()"),
    "Lock.acquire of a manager": ("manager = mp.Manager(); lock = manager.Lock(); lock.acquire()", "lock.acquire()"),
    "Event.wait of a manager": ("manager = mp.Manager(); it = manager.Event()", "it.wait()"),
}


@pytest.mark.parametrize("call", OF_A_START_METHOD)
def test_calls_that_wait_for_processes(programs, call):
    interrupt(programs, *OF_A_START_METHOD[call])


HELD_BY_A_THREAD = """
lock, held = mp.RLock(), threading.Event()
threading.Thread(target=lambda: (lock.acquire(), held.set(), threading.Event().wait()), daemon=True).start()
held.wait()
"""
OF_ALL = {
    "Queue.get": ("queue = mp.Queue()", "queue.get()"),
    "Queue.get, with a limit": ("queue = mp.Queue()", "queue.get(timeout=1000)"),
    "Queue.put": ("queue = mp.Queue(1); queue.put(1)", "queue.put(2)"),
    "Queue.put, with a limit": ("queue = mp.Queue(1); queue.put(1)", "queue.put(2, timeout=1000)"),
    "Queue.put of large bytes": ("queue = mp.Queue(1); queue.put(1)", "queue.put(bytes(2_000_000))"),
    "JoinableQueue.get": ("queue = mp.JoinableQueue()", "queue.get()"),
    "JoinableQueue.join": ("queue = mp.JoinableQueue(); queue.put(1)", "queue.join()"),
    "SimpleQueue.get": ("queue = mp.SimpleQueue()", "queue.get()"),
    "Lock.acquire": ("lock = mp.Lock(); lock.acquire()", "lock.acquire()"),
    "Lock.acquire, with a limit": ("lock = mp.Lock(); lock.acquire()", "lock.acquire(timeout=1000)"),
    "with Lock": ("lock = mp.Lock(); lock.acquire()", "with lock: pass"),
    "RLock.acquire": (HELD_BY_A_THREAD, "lock.acquire()"),
    "Semaphore.acquire": ("semaphore = mp.Semaphore(0)", "semaphore.acquire()"),
    "BoundedSemaphore.acquire": ("semaphore = mp.BoundedSemaphore(1); semaphore.acquire()", "semaphore.acquire()"),
    "Condition.wait": ("condition = mp.Condition(); condition.acquire()", "condition.wait()"),
    "Condition.wait_for": ("condition = mp.Condition(); condition.acquire()", "condition.wait_for(lambda: False)"),
    "Event.wait": ("", "event.wait()"),
    "Event.wait, with a limit": ("", "event.wait(1000)"),
    "Barrier.wait": ("barrier = mp.Barrier(2)", "barrier.wait()"),
    "Connection.recv": ("a, b = mp.Pipe()", "a.recv()"),
    "Connection.recv_bytes": ("a, b = mp.Pipe(duplex=False)", "a.recv_bytes()"),
    "Connection.send": ("a, b = mp.Pipe()", "while True: a.send_bytes(bytes(10_000))"),
    "Connection.poll": ("a, b = mp.Pipe()", "a.poll(None)"),
    "wait for connections": ("a, b = mp.Pipe()", "mp.connection.wait([a, b])"),
    "wait for a queue": ("queue = mp.Queue()", "mp.connection.wait([queue._reader])"),
    "Listener.accept": ("listener = mp.connection.Listener()", "listener.accept()"),
}


@of_methods("forkserver")
@pytest.mark.parametrize("call", OF_ALL)
def test_calls_that_wait_for_no_process(programs, call):
    interrupt(programs, *OF_ALL[call])


SLOW = """
if __name__ == "__mp_main__":
    time.sleep(1000)
"""
STARTS = {
    "Process.start": "mp.Process(target=int, daemon=True).start()",
    "Pool": "mp.Pool(2)",
    "ProcessPoolExecutor": "mp.ProcessPoolExecutor(2)",
}


@pytest.mark.parametrize("start", STARTS)
@of_methods("spawn", "forkserver")
def test_starts_while_the_main_module_is_imported(programs, start):
    # With spawn, a start returns before the child imports anything.
    interrupt(programs, "", STARTS[start] + "\nsignal.pause()", SLOW)


STOP_FORK_SERVER = """
child = mp.Process(target=int)
child.start()
child.join()
os.kill(_forkserver._forkserver_pid, signal.SIGSTOP)
"""


# The fork server may have a spare, so one start may succeed.
@pytest.mark.parametrize("start", ["while True: mp.Process(target=int).start()", "pool = mp.Pool(4); pool.map(abs, [1])"])
@of_methods("forkserver")
def test_starts_with_a_stopped_fork_server(programs, start):
    interrupt(programs, STOP_FORK_SERVER, start)


AT_ANY_MOMENT = """
import random, signal, sys, threading
import polyproc as mp
import polyproc.connection

class Interrupted(Exception):
    pass

def interrupt(*_):
    raise Interrupted

def wait_for(event):
    event.wait()

if __name__ == "__main__":
    mp.set_start_method(METHOD)
    event = mp.Event()
SETUP
    signal.signal(signal.SIGALRM, interrupt)
    for _ in range(300):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2e-4))
            CALL
        except Interrupted:
            pass
    event.set()
    print("ends")
"""


@of_methods("forkserver")
@pytest.mark.parametrize(
    "call",
    [
        "Queue.get",
        "Queue.put",
        "Lock.acquire",
        "Semaphore.acquire",
        "Event.wait",
        "Connection.recv",
        "Connection.poll",
        "Process.join",
    ],
)
def test_a_signal_that_comes_just_before_a_call_waits_is_not_overlooked(programs, call):
    setup, wait = {**OF_ALL, **OF_A_START_METHOD}[call]
    setup = textwrap.indent(textwrap.dedent(setup), "    ")
    code, out, err = programs.run(AT_ANY_MOMENT.replace("SETUP", setup).replace("CALL", wait))
    assert (code, out, err) == (0, "ends\n", "")
