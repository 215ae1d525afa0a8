"""JoinableQueue, three consumers with get(timeout=2), q.join() in the parent."""

from queue import Empty

from polyproc import JoinableQueue, Process, current_process


def test(q):
    pid = current_process().pid

    while True:
        try:
            d = q.get(timeout=2)

            print(pid, d)
            q.task_done()
        except Empty:
            print(pid, "empty!")
            break


if __name__ == "__main__":
    q = JoinableQueue(maxsize=1000)

    list(map(q.put, range(5)))
    print("put over!")

    for _ in range(3):
        Process(target=test, args=(q,)).start()

    q.join()
    print("task done")
