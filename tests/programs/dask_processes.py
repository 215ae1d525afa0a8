# needs: dask
import dask
import dask.bag


def is_even(n):
    return n % 2 == 0


if __name__ == "__main__":
    print(dask.bag.from_sequence(range(1000), npartitions=4).filter(is_even).sum().compute(scheduler="processes"))
    print(dask.compute(*[dask.delayed(pow)(n, 2) for n in range(10)], scheduler="processes", num_workers=2))
