# needs: tqdm
import os

from tqdm.contrib.concurrent import process_map


def double(n):
    return n * 2


if __name__ == "__main__":
    print(process_map(double, range(100), max_workers=2, chunksize=10, file=open(os.devnull, "w")))
