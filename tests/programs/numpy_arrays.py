# needs: numpy
import multiprocessing

import numpy


def transform(array):
    array[..., 0] += 1
    return array.T


if __name__ == "__main__":
    arrays = [
        numpy.arange(500_000, dtype="f8").reshape(500, 1000),
        numpy.arange(24, dtype="i2").reshape(2, 3, 4),
        numpy.asfortranarray(numpy.arange(600_000, dtype="f4").reshape(1000, 600)),
        numpy.array([("a", 1), ("b", 2)], dtype=[("name", "U3"), ("size", "i4")]).reshape(2, 1)["size"],
    ]
    with multiprocessing.Pool(2) as pool:
        for array, result in zip(arrays, pool.map(transform, arrays)):
            print(array.dtype, result.dtype, result.shape, result.sum(), result.flags.writeable)
    memory = multiprocessing.Array("d", 1000)
    numpy.frombuffer(memory.get_obj())[:] = 2
    print(sum(memory))
