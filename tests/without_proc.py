"""Starts, queues and pools without a mounted `/proc`: `test_process.py` runs this in a mount namespace of its own."""

import os

import polyproc


def square(x):
    return x * x


def put(queue, x):
    queue.put(square(x))


def main():
    assert not os.path.exists("/proc/self")
    for method in ("forkserver", "spawn", "fork"):
        mp = polyproc.get_context(method)
        queue = mp.Queue()
        process = mp.Process(target=put, args=(queue, 3))
        process.start()
        assert queue.get(timeout=50) == 9
        process.join()
        try:
            with mp.Pool(2) as pool:
                assert pool.map(square, range(100)) == [x * x for x in range(100)]
                assert len(pool.apply(bytes, (5 << 20,))) == 5 << 20
            print(method)
        except OSError as error:
            print(method, error)


if __name__ == "__main__":
    main()
