"""lgssd's socket with a test at the other end: each test says what lgssd says."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from lgss_keyring.daemon import upcall_messages
from lgss_keyring.daemon.upcall_messages import Done, Reply, Upcall


class Connection:
    """One upcall's connection; ``upcall`` is its first message."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        first = self._unpack(5)
        assert isinstance(first, Upcall)
        self.upcall = first

    def say(self, message: bytes) -> None:
        """Send a message."""
        self._socket.send(message)

    def answer(self, number: int, payload: bytes, life: int = 30, patience: float = 1.0) -> int:
        """Send an A; returns the errno of the K that comes back."""
        self.say(upcall_messages.pack_answer(number, life, patience, payload))
        return self.done()

    def done(self) -> int:
        """The errno of a K, which must be the next message."""
        message = self._unpack(5)
        assert isinstance(message, Done), message
        return message.errno

    def reply(self) -> Reply:
        """An R, which must be the next message."""
        message = self._unpack(5)
        assert isinstance(message, Reply), message
        return message

    def has_ended(self, seconds: float = 5) -> bool:
        """Whether the other side closes the connection in that time, without another message."""
        return bool(select.select([self._socket], [], [], seconds)[0]) and not self._socket.recv(65536)

    def _unpack(self, seconds: float) -> Upcall | Reply | Done:
        assert select.select([self._socket], [], [], seconds)[0], "no message"
        return upcall_messages.unpack(self._socket.recv(65536))


class FakeLgssd:
    """A context manager: listens at ``path`` and gives each connection to ``script``, one after the
    other; at the end of the script the connection is closed.

    An exception of the script is raised at the end of the context.
    """

    def __init__(self, path: Path, script: Callable[[Connection], None]) -> None:
        self.path = path
        self._script = script
        self._error: BaseException | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self._wake, self._end = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            ready, _, _ = select.select([self._listener.fileno(), self._wake], [], [])
            if self._wake in ready:
                return
            connection, _ = self._listener.accept()
            with connection:
                try:
                    self._script(Connection(connection))
                except BaseException as error:
                    self._error = self._error or error

    def close(self) -> None:
        """Wait for the script's end, and take the socket away."""
        os.close(self._end)
        self._thread.join()
        os.close(self._wake)
        self._listener.close()
        self.path.unlink()
        if self._error:
            raise self._error

    def __enter__(self) -> FakeLgssd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
