"""Pipes."""

import os
import signal

import polyproc
import polyproc.connection
import pytest


def echo(connection):
    for value in iter(connection.recv, "end"):
        connection.send(value)


def test_there_and_back(mp):
    a, b = mp.Pipe()
    child = mp.Process(target=echo, args=(b,))
    child.start()
    b.close()
    for value in (None, 1, "text", b"x" * 5_000_000, {"a": [1, 2]}):
        a.send(value)
        assert a.poll(20)
        assert a.recv() == value
    a.send("end")
    child.join()
    assert child.exitcode == 0
    with pytest.raises(EOFError):
        a.recv()
    a.close()
    assert a.closed
    with pytest.raises(OSError, match="handle is closed"):
        a.send(1)


def test_bytes(mp):
    a, b = mp.Pipe()
    a.send_bytes(b"0123456789", 2, 5)
    assert b.recv_bytes() == b"23456"
    a.send_bytes(b"")
    assert b.recv_bytes() == b""
    place = bytearray(10)
    a.send_bytes(b"abc")
    assert b.recv_bytes_into(place, 2) == 3
    assert place == b"\0\0abc\0\0\0\0\0"
    a.send_bytes(b"x" * 20)
    with pytest.raises(polyproc.BufferTooShort) as raised:
        b.recv_bytes_into(place)
    assert raised.value.args == (b"x" * 20,)
    a.send_bytes(b"x" * 20)
    with pytest.raises(OSError, match="bad message length"):
        b.recv_bytes(10)
    for offset, size in ((-1, None), (11, None), (0, 11), (5, 6), (0, -1)):
        with pytest.raises(ValueError, match="negative|<"):
            a.send_bytes(b"0123456789", offset, size)


def test_one_way(mp):
    receiving, sending = mp.Pipe(duplex=False)
    sending.send(1)
    assert receiving.recv() == 1
    with pytest.raises(OSError, match="read-only"):
        receiving.send(1)
    with pytest.raises(OSError, match="write-only"):
        sending.recv()
    receiving.close()
    with pytest.raises(BrokenPipeError):
        sending.send(1)


def test_handles_travel_through_pipes(mp):
    a, b = mp.Pipe()
    inner, other = mp.Pipe()
    lock = mp.Lock()
    a.send((other, lock))
    other.close()
    received, same_lock = b.recv()
    received.send("through")
    assert inner.recv() == "through"
    with lock:
        assert not same_lock.acquire(block=False)


def send_forever(connection):
    number = 0
    while True:
        connection.send((number, b"x" * (number % 100_000)))
        number += 777


def test_a_sender_that_is_killed_leaves_whole_messages(mp):
    for _ in range(5):
        receiving, sending = mp.Pipe(duplex=False)
        child = mp.Process(target=send_forever, args=(sending,))
        child.start()
        sending.close()
        for _ in range(50):
            receiving.recv()
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises((EOFError, ConnectionResetError)):
            while True:
                number, data = receiving.recv()
                assert len(data) == number % 100_000
        child.join()


def test_listeners_and_clients_are_the_standard_librarys(mp):
    with polyproc.connection.Listener(authkey=b"secret") as listener:
        child = mp.Process(target=call, args=(listener.address,))
        child.start()
        with listener.accept() as connection:
            assert connection.recv() == "hello"
        child.join()


def call(address):
    with polyproc.connection.Client(address, authkey=b"secret") as connection:
        connection.send("hello")
