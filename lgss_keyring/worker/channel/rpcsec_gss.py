"""RPCSEC_GSS context creation over TCP: the connection, and the time that it may take.

:mod:`lgss_keyring.worker.channel.rpcsec_messages` has the messages.  The channel itself never waits:
:meth:`RpcsecGssChannel.go_on` does what can be done at once, so that a resident worker can wait for many
servers at a time.  :meth:`RpcsecGssChannel.exchange` waits between these steps.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time

from lgss_keyring.formats.errors import ChannelError, Kind
from lgss_keyring.formats.nid import Nid, ip_address
from lgss_keyring.worker.channel.rpcsec_messages import Program, Records
from lgss_keyring.worker.limits import RECEIVE_BYTES, STRAY_REPLIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config
    from lgss_keyring.worker.channel.interface import Reply

_UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)


def open_channel(request: UpcallRequest, config: Config) -> RpcsecGssChannel:
    """The channel to the NID of ``request``; raises ResolutionError."""
    rpc = config.rpcsec_gss
    address = ip_address(Nid.from_int(request.target_nid))
    return RpcsecGssChannel(
        address, rpc.port, rpc.program, rpc.version, rpc.connect_timeout, rpc.reply_timeout
    )


class RpcsecGssChannel:
    """A TCP connection to one RPCSEC_GSS server, made by the first exchange.

    ``connect_timeout`` and ``reply_timeout`` (seconds) bound the connection and
    each exchange as a whole, however slowly bytes come.
    """

    def __init__(
        self,
        address: str,
        port: int,
        program: int,
        version: int,
        connect_timeout: float,
        reply_timeout: float,
    ) -> None:
        self._peer = (address, port)
        self._program = Program(self.peer, program, version)
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._socket: socket.socket | None = None
        self._is_connected = False
        self._records = Records()
        self._xid = self._unsent = b""
        self._strays = 0
        self.deadline = 0.0
        """When the server must have answered, of time.monotonic()."""
        self.is_single_use = False

    @property
    def peer(self) -> str:
        """The server as ADDRESS:PORT."""
        return f"{self._peer[0]}:{self._peer[1]}"

    def connect(self) -> None:
        """See :class:`lgss_keyring.worker.channel.interface.Channel`."""
        while not self._connect():
            self._wait()
        self.is_single_use = True

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._is_connected = False
        self._records = Records()
        self._unsent = b""

    def exchange(self, token: bytes, handle: bytes) -> Reply:
        """Send ``token`` by INIT, or by CONTINUE_INIT with a ``handle``; see
        :class:`lgss_keyring.worker.channel.interface.Channel`."""
        self.begin(token, handle)
        while (reply := self.go_on()) is None:
            self._wait()
        return reply

    def begin(self, token: bytes, handle: bytes) -> None:
        """Begin an exchange, without sending anything yet."""
        self._xid = os.urandom(4)
        self._unsent = self._program.call(self._xid, token, handle)
        self._strays = 0
        self.deadline = time.monotonic() + self._reply_timeout

    def go_on(self) -> Reply | None:
        """Do what can be done for the exchange without waiting.  Returns the reply, or None if the
        socket has to be waited for (:meth:`fileno`, :attr:`events`), until :attr:`deadline` at the
        latest.  Raises ChannelError."""
        if not self._is_connected:
            if not self._connect():
                return None
            self.deadline = time.monotonic() + self._reply_timeout
        try:
            if time.monotonic() >= self.deadline:
                raise TimeoutError
            return self._transfer()
        except TimeoutError as error:
            raise ChannelError(
                f"{self.peer} did not answer within {self._reply_timeout} s",
                errno=errno.ETIMEDOUT,
                kind=Kind.ACCEPTOR_SILENT,
                hint="check the acceptor's service; [rpcsec_gss] reply_timeout sets this limit",
            ) from error
        except OSError as error:
            raise ChannelError(
                f"connection to {self.peer} failed: {error.strerror or error}",
                errno=error.errno or errno.ECONNRESET,
                kind=Kind.ACCEPTOR_CLOSED,
                hint="check that the acceptor runs at this address and see its log",
            ) from error

    def fileno(self) -> int:
        """The descriptor to wait for; -1 before the first :meth:`go_on`."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def events(self) -> int:
        """What to wait for, as poll(2) names it."""
        return select.POLLIN if self._is_connected and not self._unsent else select.POLLOUT

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self.fileno(), self.events)
        poll.poll(max(0, self.deadline - time.monotonic()) * 1000)

    def _connect(self) -> bool:
        """Connect without waiting; returns whether the connection is there."""
        try:
            if self._socket is None:
                kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
                self._socket = socket.socket(socket.AF_INET, kind)
                self.deadline = time.monotonic() + self._connect_timeout
                self._socket.connect_ex(self._peer)
            # A second connect(2) tells how the first has ended, or 0 once if it went well.
            number = self._socket.connect_ex(self._peer)
            if number in _UNDER_WAY:
                if time.monotonic() < self.deadline:
                    return False
                raise TimeoutError
            if number not in (0, errno.EISCONN):
                raise OSError(number, os.strerror(number))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except TimeoutError as error:
            raise ChannelError(
                f"no connection to {self.peer} within {self._connect_timeout} s",
                errno=errno.ETIMEDOUT,
                kind=Kind.ACCEPTOR_UNREACHABLE,
                hint="check network and firewall; [rpcsec_gss] connect_timeout sets this limit",
            ) from error
        except OSError as error:
            raise ChannelError(
                f"cannot connect to {self.peer}: {error.strerror or error}",
                errno=error.errno or errno.ECONNREFUSED,
                kind=Kind.ACCEPTOR_UNREACHABLE,
                hint="check that the acceptor runs there; [rpcsec_gss] port sets the port",
            ) from error
        self._is_connected = True
        return True

    def _transfer(self) -> Reply | None:
        """Send what is unsent, or receive once.  Raises OSError, ChannelError."""
        assert self._socket is not None
        try:
            if self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                return None
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the acceptor closed it without a whole answer")
        self._records.feed(data)
        return self._next_reply()

    def _next_reply(self) -> Reply | None:
        try:
            while (record := self._records.next()) is not None:
                if record[:4] == self._xid:
                    return self._program.reply(record)
                self._strays += 1
                if self._strays == STRAY_REPLIES:
                    raise ValueError(f"{STRAY_REPLIES} records, none of them a reply to our call")
        except ValueError as error:
            raise self._program.malformed(str(error)) from error
        return None
