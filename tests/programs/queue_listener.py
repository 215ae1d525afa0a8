import logging
import logging.handlers
import multiprocessing
import sys


def work(queue, n):
    logger = logging.getLogger(f"worker.{n}")
    logger.addHandler(logging.handlers.QueueHandler(queue))
    logger.setLevel(logging.INFO)
    for step in range(3):
        logger.info("step %d", step)


if __name__ == "__main__":
    queue = multiprocessing.Queue()
    lines = []
    handler = logging.StreamHandler(sys.stdout)
    handler.emit = lambda record: lines.append(f"{record.name} {record.getMessage()} {record.processName.split('-')[0]}")
    listener = logging.handlers.QueueListener(queue, handler)
    listener.start()
    children = [multiprocessing.Process(target=work, args=(queue, n)) for n in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    listener.stop()
    print(*sorted(lines), sep="\n")
