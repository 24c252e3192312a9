"""Closing connections whose queues may hold descriptors.

To drop the last reference of a descriptor can take as long as its owner likes (SO_LINGER, FUSE).  Only a
process that exits does not linger.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket


class Departing:
    """The processes that close connections."""

    def __init__(self) -> None:
        self._closing: set[int] = set()

    def __len__(self) -> int:
        return len(self._closing)

    def close(self, connection: socket.socket) -> None:
        """Close ``connection``; a process that exits drops what is in its queue."""
        reader, writer = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            # This process has the last reference as soon as the server has closed its own, and
            # the server says so by closing the pipe.
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        if pid > 0:
            self._closing.add(pid)
        connection.close()
        os.close(reader)
        os.close(writer)

    def reap(self) -> bool:
        """Wait for those that have ended; returns whether there are any left."""
        self._closing = {pid for pid in self._closing if not os.waitpid(pid, os.WNOHANG)[0]}
        return bool(self._closing)
