"""Apply_async with and without a callback; AsyncResult.get; close + join."""

from time import sleep

from polyproc import Pool


def test(*args, **kwargs):
    print("in testing")
    print("sleeping...")
    sleep(2)

    print("test returning...")
    return 123


def callback(ret):
    print("callbacking...")
    sleep(2)
    print("return:", ret)


if __name__ == "__main__":
    pool = Pool()
    pool.apply_async(test, callback=callback)

    print("pooling...")
    print()
    print()

    ar = pool.apply_async(test)

    print()
    print(ar.get())

    pool.close()
    pool.join()
