"""A daemon child gets SIGTERM (and may handle it) when the parent exits."""

import os
from signal import SIGTERM, signal
from time import sleep

from polyproc import Process


def test():
    def handler(signum, frame):
        print("chid exit.", os.getpid())
        exit(0)

    signal(SIGTERM, handler)
    print("child start:", os.getpid())

    while True:
        print("sleeping...")
        sleep(1)


if __name__ == "__main__":
    p = Process(target=test)
    p.daemon = True
    p.start()

    sleep(2)
    print("parent exit.")
