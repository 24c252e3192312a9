"""The socket at which upcalls ask lgssd: the front sends the request, and the child says the rest."""

from __future__ import annotations

import os
import selectors
import socket

from lgss_keyring.daemon import descriptors, limits, listener, metrics, upcall_messages
from lgss_keyring.daemon.upcall import Upcall
from lgss_keyring.formats.errors import Kind
from lgss_keyring.front import lgssd_messages
from lgss_keyring.system import own_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.daemon.dispatcher import Dispatcher
    from lgss_keyring.system.log import Log

DEFAULT_SOCKET = "/run/lgss/upcall.sock"


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``, in a folder that is root's alone, which is made if need be.  Raises
    OSError."""
    own_folder.prepare(os.path.dirname(path))
    return listener.listen(path, limits.UPCALL_BACKLOG)


class Upcalls:
    """The connections of the children of upcalls."""

    def __init__(
        self,
        listening: socket.socket,
        dispatcher: Dispatcher,
        selector: selectors.BaseSelector,
        log: Log,
    ) -> None:
        self._listener = listening
        self._dispatcher = dispatcher
        self._selector = selector
        self._log = log
        self._upcalls: dict[int, Upcall] = {}
        """Those that have sent their request, by descriptor."""
        self._connections: dict[int, socket.socket] = {}
        self._most = descriptors.for_upcalls()
        self._is_listening = True
        selector.register(listening, selectors.EVENT_READ, self._accept)

    def close_in_child(self) -> None:
        """Close, in a process that was forked, what this one has open."""
        self._listener.close()
        for connection in self._connections.values():
            connection.close()

    def _accept(self) -> None:
        for _ in range(limits.ACCEPTED_AT_ONCE):
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setblocking(False)
            if listener.peer_of(connection)[1] != 0 or len(self._connections) >= self._most:
                connection.close()
                continue
            self._connections[connection.fileno()] = connection
            self._selector.register(
                connection, selectors.EVENT_READ, lambda connection=connection: self._read(connection)
            )
            self._read(connection)  # the request has come, as a rule

    def _read(self, connection: socket.socket) -> None:
        if connection.fileno() < 0:
            return  # closed in this round
        try:
            data = connection.recv(lgssd_messages.MESSAGE_LIMIT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        upcall = self._upcalls.get(connection.fileno())
        if not data:
            self._end(connection, upcall)
            return
        try:
            message = upcall_messages.unpack(data)
            if isinstance(message, upcall_messages.Upcall):
                if upcall is not None:
                    raise lgssd_messages.MessageError
                self._take(connection, message)
            elif upcall is None:
                raise lgssd_messages.MessageError
            else:
                upcall.heard(message)
        except lgssd_messages.MessageError:
            text = "a process of an upcall sent what none of ours sends: it is of another version"
            self._log.event("warning", text, error=Kind.UPCALL)
            self._end(connection, upcall)

    def _end(self, connection: socket.socket, upcall: Upcall | None) -> None:
        if upcall is None:
            self._drop(connection)
        else:
            upcall.gone()

    def _take(self, connection: socket.socket, message: upcall_messages.Upcall) -> None:
        """Take a new upcall."""
        upcall = Upcall(connection, message, self._dispatcher, lambda: self._drop(connection))
        self._upcalls[connection.fileno()] = upcall
        has_room = self._dispatcher.has_room(upcall.requestor)
        self._dispatcher.add(upcall)
        if not has_room:
            upcall.refuse(metrics.FULL)

    def _drop(self, connection: socket.socket) -> None:
        self._upcalls.pop(connection.fileno(), None)
        self._connections.pop(connection.fileno(), None)
        self._selector.unregister(connection)
        connection.close()

    def __len__(self) -> int:
        return len(self._connections)

    def stop_taking(self) -> None:
        """Take no new requests; those that have connected and sent none do without lgssd."""
        if self._is_listening:
            self._is_listening = False
            self._selector.unregister(self._listener)
        for descriptor, connection in list(self._connections.items()):
            if descriptor not in self._upcalls:
                self._drop(connection)

    def close(self) -> None:
        """Close what is left: each child does the work itself."""
        self.stop_taking()
        for connection in list(self._connections.values()):
            self._drop(connection)
