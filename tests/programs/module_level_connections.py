import multiprocessing
import os
import socket
import sqlite3
import tempfile
import threading

PATH = os.path.join(tempfile.gettempdir(), f"polyproc-program-{os.environ.get('PROGRAM', os.getpid())}.db")
os.environ["PROGRAM"] = os.path.basename(PATH).removeprefix("polyproc-program-").removesuffix(".db")
database = sqlite3.connect(PATH, timeout=30)
database.execute("create table if not exists rows (n integer)")
database.commit()


def insert(n):
    with database:
        database.execute("insert into rows values (?)", (n,))
    return n


def echo(server):
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=lambda c=connection: c.sendall(c.recv(100)), daemon=True).start()


def ask(address, n):
    with socket.create_connection(address) as connection:
        connection.sendall(b"%d" % n)
        return int(connection.recv(100))


if __name__ == "__main__":
    with multiprocessing.Pool(3) as pool, socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=echo, args=(server,), daemon=True).start()
        print(sum(pool.map(insert, range(100), 5)))
        print(pool.starmap(ask, [(server.getsockname(), n) for n in range(20)]))
    print(database.execute("select count(*), sum(n) from rows").fetchall())
    database.close()
    os.unlink(PATH)
