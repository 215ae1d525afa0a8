"""A program in a container of 256 MiB, whose producers are faster than its consumers.

``POLYPROC_CONTAINER_SECONDS`` sets how long each part runs; CONTRIBUTING has a command for a long run.
"""

import contextlib
import os
import pathlib
import sys
import time

import pytest
from conftest import finish, of_methods

SIZE = 256 << 20
SECONDS = float(os.environ.get("POLYPROC_CONTAINER_SECONDS", 3))

PROGRAM = """
    import os, sys, threading, time
    import polyproc
    MIB = 1 << 20
    END = time.monotonic() + float(sys.argv[2])

    def produce(put, value, end):
        while time.monotonic() < end:
            put(value)
        put(None)

    def through(put, get, value, slow):
        child = polyproc.get_context(METHOD).Process(target=produce, args=(put, value, END))
        child.start()
        count = 0
        while (got := get()) is not None:
            assert got[:2] == value[:2] and len(got) == len(value)
            count += len(got)
            if slow:
                time.sleep(len(got) / 2e9)  # the consumer is slower than its producer
        child.join()
        assert child.exitcode == 0
        return count

    def echo(n):
        return bytes([n % 251]) * (8 * MIB)

    def array(n):
        import numpy
        return numpy.full(MIB, n)

    def mapped(function):
        def numbers():
            n = 0
            while time.monotonic() < END:
                yield n
                n += 1
        total = 0
        with polyproc.get_context(METHOD).Pool(2) as pool:
            for n, result in enumerate(pool.imap(function, numbers())):
                assert result[0] == (n % 251 if isinstance(result, bytes) else n), n
                total += memoryview(result).nbytes
        return total

    def main(part, slow):
        mp = polyproc.get_context(METHOD)
        if part in ("unbounded", "bounded"):
            queue = mp.Queue(max_bytes=0 if part == "unbounded" else 16 * MIB)
            return sum(through(queue.put, queue.get, bytes(size), slow) for size in (int(sys.argv[3]),))
        if part == "pipe":
            receiving, sending = mp.Pipe(duplex=False)
            return through(sending.send, receiving.recv, bytes(int(sys.argv[3])), slow)
        return mapped({"imap": echo, "arrays": array}[part])

    if __name__ == "__main__":
        start = time.monotonic()
        total = main(sys.argv[1], sys.argv[4] == "slow")
        budget = polyproc.get_memory_budget()
        print(total / (time.monotonic() - start), budget.limit)
"""


def groups():
    """Yields (version, folder) of each hierarchy in which a control group may be created."""
    for version, root in ((1, "/sys/fs/cgroup/memory"), (2, "/sys/fs/cgroup")):
        root = pathlib.Path(root)
        limit = "memory.limit_in_bytes" if version == 1 else "cgroup.subtree_control"
        if (root / limit).exists() and (version == 1 or "memory" in (root / limit).read_text()):
            yield version, root


@contextlib.contextmanager
def container(size):
    for version, root in groups():
        folder = root / f"polyproc-test-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(size))
        except OSError:
            continue
        try:
            yield version, folder
        finally:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    break
                time.sleep(0.05)
        return
    pytest.skip("no control group with a limit of memory can be made here")


def field(path, name):
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.split()[0] == name)


def run(programs, folder, *args):
    """Runs the program in the group. Returns the numbers that it printed, and the group's peak of shared memory in bytes."""
    program = programs.start_in(folder / "cgroup.procs", PROGRAM, *args)
    most = 0
    while program.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            most = max(most, field(folder / "memory.stat", "shmem"))
        time.sleep(0.01)
    out, err = finish(program)
    assert program.returncode == 0, err
    return [float(word) for word in out.split()], most


@of_methods("forkserver")
@pytest.mark.parametrize(
    ("part", "size", "speed"),
    [
        ("unbounded", 1 << 20, "slow"),
        ("unbounded", 100, "fast"),
        ("unbounded", 30_000, "slow"),
        ("bounded", 1 << 20, "slow"),
        ("pipe", 1 << 20, "slow"),
        ("pipe", 8 << 20, "slow"),
        ("imap", 0, "fast"),
        ("arrays", 0, "fast"),
    ],
)
def test_no_process_of_a_small_container_is_killed(programs, part, size, speed):
    with container(SIZE) as (version, folder):
        (_rate, limit), most = run(programs, folder, part, str(SECONDS), str(size), speed)
        assert limit == SIZE // 2
        # A pipe may hold 16 MiB and one message in addition.
        assert most <= limit + (24 << 20), f"{most} bytes of shared memory"
        killed = folder / ("memory.oom_control" if version == 1 else "memory.events")
        assert field(killed, "oom_kill") == 0
        print(f"{part} {size}: {_rate / 1e6:.0f} MB/s, at most {most >> 20} MiB shared", file=sys.stderr)
