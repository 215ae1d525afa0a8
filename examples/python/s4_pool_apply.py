"""Pool.apply, args from a range, kwargs from a dict; terminate + join."""

from polyproc import Pool


def test(*args, **kwargs):
    print(args)
    print(kwargs)
    return 123


if __name__ == "__main__":
    pool = Pool()
    print(pool.apply(test, range(3), dict(a=1, b=2)))

    pool.terminate()
    pool.join()
