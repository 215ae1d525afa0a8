"""Pipes on the engine: messages of any size arrive whole, with the handles that they contain.

The interface is that of `multiprocessing`. `Client` is the standard library's, and `Listener` speaks its protocol.
"""

import collections
import contextlib
import io
import os
import socket
import struct
import threading
from multiprocessing import connection as _standard

from . import _polyproc, reduction

# All names of the standard module, except those defined below.
globals().update((name, value) for name, value in vars(_standard).items() if not name.startswith("__"))

__all__ = ["Client", "Listener", "Pipe", "wait"]


class Connection(_standard.Connection):
    """One end of a pipe."""

    def __reduce__(self):
        return reduce_connection(self)

    def send(self, obj):
        """Sends a picklable object. Unlike in `multiprocessing`, it may contain locks, queues and connections."""
        self._check_closed()
        self._check_writable()
        _polyproc.send(self._handle, obj)

    def recv(self):
        """Blocks until an object arrives, and returns it. Raises `EOFError` if the other end is closed and none is left."""
        self._check_closed()
        self._check_readable()
        return _polyproc.recv(self._handle)

    def recv_bytes(self, maxlength=None):
        """Returns the next message as bytes; blocks until it arrives. Raises `EOFError` once the other end is closed.

        A message of more than `maxlength` bytes raises `OSError`, and no more messages can be received.
        """
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        message = _polyproc.recv_bytes(self._handle)
        if maxlength is not None and len(message) > maxlength:
            self._bad_message_length()
        return message

    def poll(self, timeout=0.0):
        """Returns whether a message has arrived, or the other end was closed, within `timeout` seconds; `None` is no limit."""
        self._check_closed()
        self._check_readable()
        return _polyproc.poll(self._handle, timeout)

    def _send_bytes(self, buf):
        _polyproc.send_bytes(self._handle, buf)

    def _recv_bytes(self, maxsize=None):
        message = io.BytesIO()
        message.write(_polyproc.recv_bytes(self._handle))
        return message


def Pipe(duplex=True):
    """Returns both ends of a pipe. Unless `duplex`, the first one only receives and the second one only sends."""
    a, b = _polyproc.pipe(duplex)
    return Connection(a, writable=duplex), Connection(b, readable=duplex)


# Timeout for each message of a peer that authenticates, in seconds.
_PROOF_SECONDS = 10
# Limit of peers that authenticate at the same time. At the limit, the oldest is disconnected to admit a new one.
_MOST_STRANGERS = 64


class Listener(_standard.Listener):
    """Waits for connections. With `authkey`, several peers authenticate at the same time: unlike in `multiprocessing`, a silent
    peer delays no other peer, and is disconnected after 10 seconds."""

    def __init__(self, address=None, family=None, backlog=1, authkey=None):
        super().__init__(address, family, backlog, authkey)
        self._strangers = collections.OrderedDict()
        self._known = collections.deque()
        self._lock = threading.Lock()
        if self._authkey:
            self._listener._socket.setblocking(False)
            self._bell, self._ring = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def accept(self):
        """Blocks until a peer has connected, and returns its connection. Raises `AuthenticationError` if it has another key."""
        if not self._authkey:
            return super().accept()
        while True:
            if self._listener is None:
                raise OSError("listener is closed")
            with contextlib.suppress(BlockingIOError):
                os.read(self._bell, 1)
            with contextlib.suppress(IndexError):  # another thread may have taken it
                connection, peer, error = self._known.popleft()
                if error is not None:
                    raise error
                self._listener._last_accepted = peer
                return connection
            with contextlib.suppress(BlockingIOError):
                connection = self._listener.accept()
                self._greet(connection, self._listener._last_accepted)
                continue
            _standard.wait([self._listener._socket, self._bell])

    def _greet(self, connection, peer):
        thread = threading.Thread(target=self._hear, args=(connection, peer), name="polyproc-listener", daemon=True)
        with self._lock:
            if len(self._strangers) >= _MOST_STRANGERS:
                _shut_down(self._strangers.popitem(last=False)[1])
            self._strangers[thread] = connection
        try:
            thread.start()
        except RuntimeError:  # the limit of threads is reached
            self._strangers.pop(thread, None)
            connection.close()

    def _hear(self, connection, peer):
        """Authenticates a peer, in a thread of its own."""
        known = None
        try:
            _set_timeout(connection, _PROOF_SECONDS)
            _standard.deliver_challenge(connection, self._authkey)
            _standard.answer_challenge(connection, self._authkey)
            _set_timeout(connection, 0)
            known = (connection, peer, None)
        except _standard.AuthenticationError as error:
            known = (None, None, error)
        except Exception:
            pass  # a timeout, a closed connection or an invalid message
        finally:
            with self._lock:
                self._strangers.pop(threading.current_thread(), None)
                if known is None or known[0] is None:
                    connection.close()
        if known is not None:
            self._known.append(known)
            with self._lock, contextlib.suppress(BlockingIOError):  # a full pipe wakes `accept`, too
                if self._listener is not None:
                    os.write(self._ring, b"1")

    def close(self):
        """Stops listening, and disconnects peers that have not authenticated yet."""
        with self._lock:
            listener, self._listener = self._listener, None
            if listener is None:
                return
            for stranger in self._strangers.values():
                _shut_down(stranger)
            if self._authkey:
                os.close(self._bell)
                os.close(self._ring)
        listener.close()


def _socket_of(connection):
    return socket.socket(fileno=os.dup(connection.fileno()))


def _set_timeout(connection, seconds):
    with _socket_of(connection) as own:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            own.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", seconds, 0))


def _shut_down(connection):
    with contextlib.suppress(OSError), _socket_of(connection) as own:
        own.shutdown(socket.SHUT_RDWR)


def reduce_connection(conn):
    return rebuild_connection, (reduction.DupFd(conn.fileno()), conn.readable, conn.writable)


def rebuild_connection(dup_fd, readable, writable):
    return Connection(dup_fd.detach(), readable, writable)


reduction.register(Connection, reduce_connection)
