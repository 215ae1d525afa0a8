"""Pool(5).map with chunksize=2: both items of a chunk run in one worker."""

from polyproc import Pool, current_process


def test(x):
    print(current_process().pid, x)
    return x + 100


def test2(s):
    print(current_process().pid, s)


if __name__ == "__main__":
    p = Pool(5)

    print(p.map(test, range(10), chunksize=2))
    p.map(test2, "abc")
