# needs: pandas
import multiprocessing

import pandas


def summarize(frame):
    return frame.groupby("key").value.sum()


if __name__ == "__main__":
    frame = pandas.DataFrame({"key": [n % 7 for n in range(100_000)], "value": range(100_000)})
    frame["name"] = frame["key"].map(lambda n: f"category {n}")
    with multiprocessing.Pool(2) as pool:
        parts = pool.map(summarize, [frame[n::4] for n in range(4)])
        print(sum(parts).to_dict())
        print(pool.apply(pandas.DataFrame.describe, (frame,)).round(3).to_dict())
