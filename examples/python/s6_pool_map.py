"""Pool(3).map over range(5) and over a string; no close/join at exit."""

from polyproc import Pool, current_process


def test(x):
    print(current_process().pid, x)
    return x + 100


def test2(s):
    print(current_process().pid, s)


if __name__ == "__main__":
    p = Pool(3)

    print(p.map(test, range(5)))
    p.map(test2, "abc")
