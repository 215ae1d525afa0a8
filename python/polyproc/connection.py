"""Pipes on the engine: messages arrive whole, of any size, with the handles in them.

As in `multiprocessing`; `Listener` and `Client` are the standard library's and speak its protocol.
"""

import io
from multiprocessing import connection as _standard

from . import _polyproc, reduction

# All names of the standard library's, but for those below.
globals().update((name, value) for name, value in vars(_standard).items() if not name.startswith("__"))

__all__ = ["Client", "Listener", "Pipe", "wait"]


class Connection(_standard.Connection):
    """One end of a pipe."""

    def send(self, obj):
        """Sends an object."""
        self._check_closed()
        self._check_writable()
        _polyproc.send(self._handle, obj)

    def recv(self):
        """Gives the next object."""
        self._check_closed()
        self._check_readable()
        return _polyproc.recv(self._handle)

    def recv_bytes(self, maxlength=None):
        """Gives the next message, which was sent as bytes; one longer than `maxlength` ends the connection."""
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        message = _polyproc.recv_bytes(self._handle)
        if maxlength is not None and len(message) > maxlength:
            self._bad_message_length()
        return message

    def poll(self, timeout=0.0):
        """Whether there is a message, or the other end is closed."""
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
    """Returns both ends of a pipe; if not `duplex`, the one to receive from, then the one to send to."""
    a, b = _polyproc.pipe(duplex)
    return Connection(a, writable=duplex), Connection(b, readable=duplex)


def reduce_connection(conn):
    return rebuild_connection, (reduction.DupFd(conn.fileno()), conn.readable, conn.writable)


def rebuild_connection(dup_fd, readable, writable):
    return Connection(dup_fd.detach(), readable, writable)


reduction.register(Connection, reduce_connection)
