"""Process subclass; __init__ runs in the parent, run() in the child."""

import os

from polyproc import Process


class MyProcess(Process):
    def __init__(self):
        print("init:", os.getpid())
        super().__init__()

    def run(self):
        print("run:", os.getpid())


if __name__ == "__main__":
    print("parent:", os.getpid())
    p = MyProcess()
    p.start()
    p.join()
