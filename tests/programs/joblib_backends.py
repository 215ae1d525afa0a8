# needs: joblib, numpy
import math

import joblib
import numpy


def total(array, n):
    return float(array.sum()) + n


if __name__ == "__main__":
    array = numpy.arange(200_000.0)
    for backend in ("loky", "multiprocessing"):
        with joblib.Parallel(n_jobs=2, backend=backend) as parallel:
            print(backend, parallel(joblib.delayed(math.sqrt)(n * n) for n in range(10)))
            # Workers receive large arrays as memory maps.
            print(parallel(joblib.delayed(total)(array, n) for n in range(4)))
