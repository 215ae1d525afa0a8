"""Types of the package that a type checker must infer. Pyright checks this file; nothing runs it."""

from __future__ import annotations

import polyproc
from polyproc.connection import Connection
from polyproc.pool import ApplyResult, Pool
from polyproc.queues import Queue
from polyproc.synchronize import Event, Lock
from typing_extensions import assert_type


def square(x: int) -> int:
    return x * x


def main() -> None:
    with polyproc.Pool(2, memory_limit=1 << 30) as pool:
        assert_type(pool, Pool)
        pool.map(square, [1, 2], timeout=1.0, retries=2)
        later = pool.apply_async(square, (3,), callback=print)
        assert_type(later, ApplyResult)
        later.cancel()
    assert_type(polyproc.Queue(), Queue)
    assert_type(polyproc.Lock(), Lock)
    assert_type(polyproc.Event(), Event)
    ends: tuple[Connection, Connection] = polyproc.Pipe()
    assert_type(ends[0], Connection)
    child = polyproc.Process(target=square, args=(3,), name="child", daemon=True)
    child.start()
    child.join(1.0)
    assert_type(child.exitcode, "int | None")
    with polyproc.ProcessPoolExecutor(2) as executor:
        assert_type(executor.submit(square, 3).result(), int)
