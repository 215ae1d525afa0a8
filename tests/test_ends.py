"""The ends of programs, and of their descendants with them."""

import os
import signal
import subprocess
import sys

import polyproc
import pytest
from conftest import finish, is_running, wait_for_end
from polyproc.pool import PoolError, TaskTimeout

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")


@pytest.mark.parametrize("end", ["sys.exit()", "raise SystemExit(0)", "pass"])
def test_a_copy_made_by_fork_does_not_wait_for_futures_of_its_original(programs, end):
    code, out, err = programs.run(
        f"""
        import os, sys
        import polyproc as mp

        def wait_for(event):
            event.wait()

        def main():
            event = mp.Event()
            executor = mp.ProcessPoolExecutor(1)
            future = executor.submit(wait_for, event)
            pid = os.fork()
            if pid == 0:
                {end}
                return
            print("exit code", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            event.set()
            future.result(20)
            executor.shutdown()

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            main()
        """
    )
    assert (code, out, err) == (0, "exit code 0\n", "")


def test_a_copy_made_by_fork_that_waits_for_a_result_leaves_the_pool_alone(programs):
    code, out, err = programs.run(
        """
        import os, signal, time
        import polyproc as mp

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            pool = mp.Pool(2)
            held = pool.apply_async(time.sleep, (60,))
            pid = os.fork()
            if pid == 0:
                while True:
                    held.wait(0)
            try:
                for n in range(3000):
                    assert pool.apply_async(abs, (-n,)).get(20) == n
            finally:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            print("right")
            pool.terminate()
        """
    )
    assert (code, out, err) == (0, "right\n", "")


def test_a_copy_made_behind_the_interpreters_back_ends_no_worker(programs):
    """The copy is made by the system call itself, as some libraries do."""
    code, out, err = programs.run(
        """
        import ctypes, gc, os, platform
        import polyproc as mp

        FORK = {"x86_64": (57,), "aarch64": (220, 17, 0, 0, 0, 0)}[platform.machine()]

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            pool = mp.Pool(2)
            pool.map(abs, range(10), 1)
            before = {worker.pid for worker in pool._pool}
            lock = mp.RLock()
            lock.acquire()
            pid = ctypes.PyDLL(None).syscall(*FORK)
            if pid == 0:
                assert not lock.acquire(False), "it is another process"
                del pool
                gc.collect()
                os._exit(0)
            assert os.waitpid(pid, 0) == (pid, 0)
            assert pool.map(abs, range(10), 1) == list(range(10))
            assert {worker.pid for worker in pool._pool} == before
            pool.terminate()
            print("ends")
        """
    )
    assert (code, out, err) == (0, "ends\n", "")


DAEMON = """
    import os, signal, threading
    import polyproc as mp

    def ignore_sigterm(ready):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ready.set()
        threading.Event().wait()

    def ignore_it_in_native_code(ready):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        ready.set()
        threading.Event().wait()

    def stop(ready):
        ready.set()
        os.kill(os.getpid(), signal.SIGSTOP)

    def is_stopped(pid):
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "T"

    if __name__ == "__main__":
        mp.set_start_method(METHOD)
        ready = mp.Event()
        child = mp.Process(target=TARGET, args=(ready,), daemon=True)
        child.start()
        ready.wait()
        while "TARGET" == "stop" and not is_stopped(child.pid):
            pass
        print(child.pid, flush=True)
"""


@pytest.mark.parametrize("target", ["ignore_sigterm", "ignore_it_in_native_code", "stop"])
def test_a_daemon_that_does_not_end_by_sigterm_is_killed_at_the_end(programs, watch, target):
    program = programs.start(DAEMON.replace("TARGET", target))
    pid = watch(int(program.stdout.readline()))
    assert finish(program) == ("", "")
    assert program.returncode == 0
    wait_for_end(pid)


@pytest.mark.parametrize("used", ["pool", "child", "queue"])
def test_a_program_that_closes_all_descriptors_ends(programs, used):
    """As code does that turns a program into a daemon."""
    code, out, err = programs.run(
        """
        import os, sys
        import polyproc as mp

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            if sys.argv[1] == "pool":
                pool = mp.Pool(2)
                pool.map(abs, range(10))
            elif sys.argv[1] == "child":
                child = mp.Process(target=int)
                child.start()
                child.join()
            else:
                queue = mp.Queue()
                queue.put(1)
            os.closerange(3, 1024)
            print("ends", flush=True)
        """,
        used,
    )
    assert (code, out) == (0, "ends\n"), err
    assert "panicked" not in err


CHANGES_USER = """
    import os, threading
    import polyproc.connection, polyproc.queues, polyproc.synchronize  # another user may not read the interpreter's files
    import polyproc as mp

    def change_user():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    def report_and_sleep(pids, *_):
        pids.put(os.getpid())
        threading.Event().wait()

    def change_user_and_sleep(pids):
        change_user()
        report_and_sleep(pids)

    if __name__ == "__main__":
        mp.set_start_method(METHOD)
        pids = mp.Queue()
        if "KIND" == "daemon":
            children = [mp.Process(target=change_user_and_sleep, args=(pids,), daemon=True) for _ in range(2)]
            for child in children:
                child.start()
        else:
            pool = mp.Pool(2, change_user)
            if "KIND" == "busy":
                results = [pool.apply_async(report_and_sleep, (pids,)) for _ in range(2)]
        if "KIND" == "idle":
            pool.map(abs, range(10), 1)
            found = [worker.pid for worker in pool._pool]
        else:
            found = [pids.get(), pids.get()]
        print(*found, flush=True)
        threading.Event().wait()
"""


@needs_root
@pytest.mark.parametrize("kind", ["idle", "busy", "daemon"])
def test_processes_that_changed_their_user_end_with_a_program_that_is_killed(programs, watch, kind):
    """The kernel clears the parent-death signal of a process that changes its user."""
    programs.folder.chmod(0o755)
    program = programs.start(CHANGES_USER.replace("KIND", kind))
    pids = [watch(int(pid)) for pid in program.stdout.readline().split()]
    assert len(pids) == 2
    program.kill()
    program.wait()
    for pid in pids:
        wait_for_end(pid)


def run_command(pids, new_session=False):
    command = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(1000)"], start_new_session=new_session)
    pids.put((os.getpid(), command.pid))
    command.wait()


def command_of_a_task(pids, watch):
    worker, command = pids.get(timeout=60)
    return worker, watch(command)


def test_a_command_that_a_task_started_ends_with_its_time(mp, watch):
    pids = mp.Queue()
    with mp.Pool(1) as pool:
        # On a loaded machine the time may be over before the command has started.
        for limit in (1, 5, 20):
            with pytest.raises(TaskTimeout):
                pool.apply(run_command, (pids,), timeout=limit)
            if not pids.empty():
                break
        _, command = command_of_a_task(pids, watch)
        wait_for_end(command)


@pytest.mark.parametrize("end", ["cancel", "terminate", "death of the worker"])
def test_a_command_that_a_task_started_ends_with_it(mp, watch, end):
    pids = mp.Queue()
    with mp.Pool(1) as pool:
        result = pool.apply_async(run_command, (pids,))
        worker, command = command_of_a_task(pids, watch)
        if end == "cancel":
            result.cancel()
        elif end == "terminate":
            pool.terminate()
        elif end == "death of the worker":
            os.kill(worker, signal.SIGKILL)
        with pytest.raises(PoolError):
            result.get(60)
        wait_for_end(command)
        wait_for_end(worker)


def test_a_command_that_an_executors_call_started_ends_with_a_killed_worker(mp, watch):
    pids = mp.Queue()
    with polyproc.ProcessPoolExecutor(1, mp_context=mp) as executor:
        future = executor.submit(run_command, pids)
        worker, command = command_of_a_task(pids, watch)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(PoolError):
            future.result(60)
        wait_for_end(command)


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "end"])
def test_a_command_that_a_task_started_ends_with_the_program(programs, watch, end):
    program = programs.start(
        """
        import subprocess, sys, threading
        import polyproc as mp

        def run_command(pids):
            command = subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            pids.put(command.pid)
            command.wait()

        if __name__ == "__main__":
            mp.set_start_method(METHOD)
            pids = mp.Queue()
            pool = mp.Pool(1)
            result = pool.apply_async(run_command, (pids,))
            print(pids.get(), flush=True)
            if sys.argv[1] != "end":
                threading.Event().wait()
        """,
        end,
    )
    command = watch(int(program.stdout.readline()))
    if end != "end":
        program.send_signal(getattr(signal, end))
    finish(program)
    wait_for_end(command)


def test_a_command_in_a_session_of_its_own_lives_on(mp, watch):
    """A new session detaches the command from its worker."""
    pids = mp.Queue()
    with mp.Pool(1) as pool:
        result = pool.apply_async(run_command_in_a_session, (pids,))
        worker, command = command_of_a_task(pids, watch)
        result.cancel()
        with pytest.raises(PoolError):
            result.get(60)
        wait_for_end(worker)
    assert is_running(command)


def run_command_in_a_session(pids):
    run_command(pids, new_session=True)
