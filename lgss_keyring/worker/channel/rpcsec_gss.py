"""RPCSEC_GSS context creation (RFC 2203, 5.2.2) over ONC RPC on TCP (RFC 5531).

Written from the RFCs alone, for any acceptor that keeps to them.  A call is one record:

    u32 mark (RFC 5531, 11: bit 31 last fragment, 31 bits length)
    u32 xid, 0 = CALL, 2 = RPC version, program, version, 0 = NULLPROC
    u32 6 = RPCSEC_GSS, opaque<> credential:
        u32 1 = version, u32 procedure (1 INIT, 2 CONTINUE_INIT), u32 sequence,
        u32 service, opaque handle<>
    u32 0 = AUTH_NONE, opaque<> empty verifier
    opaque token<>

All integers are XDR's: big-endian; opaques are padded to 4 (RFC 4506).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from lgss_keyring.formats.errors import BAD_VERIFIER_HINT, ChannelError, Kind
from lgss_keyring.formats.nid import Nid, ip_address
from lgss_keyring.worker.channel.interface import Reply
from lgss_keyring.worker.limits import HANDLE_BYTES, REPLY_BYTES, STRAY_REPLIES, VERIFIER_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.formats.callout import UpcallRequest
    from lgss_keyring.formats.config import Config

CALL, REPLY = 0, 1
RPC_VERSION = 2
MSG_ACCEPTED, MSG_DENIED = 0, 1
RPC_MISMATCH, AUTH_ERROR = 0, 1
AUTH_NONE, RPCSEC_GSS = 0, 6
RPCSEC_GSS_VERSION = 1
RPCSEC_GSS_INIT, RPCSEC_GSS_CONTINUE_INIT = 1, 2
GSS_S_COMPLETE, GSS_S_CONTINUE_NEEDED = 0, 1

ACCEPT_STATES = {
    1: "PROG_UNAVAIL: it does not serve program",
    2: "PROG_MISMATCH: it does not serve this version of program",
    3: "PROC_UNAVAIL: it has no null procedure in program",
    4: "GARBAGE_ARGS: it could not decode the call to program",
    5: "SYSTEM_ERR: it had an error of its own in program",
}
AUTH_STATES = {
    1: "AUTH_BADCRED",
    2: "AUTH_REJECTEDCRED",
    3: "AUTH_BADVERF",
    4: "AUTH_REJECTEDVERF",
    5: "AUTH_TOOWEAK",
    6: "AUTH_INVALIDRESP",
    7: "AUTH_FAILED",
    13: "RPCSEC_GSS_CREDPROBLEM",
    14: "RPCSEC_GSS_CTXPROBLEM",
}
# With these the server asks for a new context (RFC 2203, 5.3.3.3) or session
# (RFC 5531, 8.2).
START_AGAIN = frozenset({2, 4, 13, 14})


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
        self._program = program
        self._version = version
        self._connect_timeout = connect_timeout
        self._reply_timeout = reply_timeout
        self._socket: socket.socket | None = None
        self._deadline = 0.0
        self.is_single_use = False

    @property
    def peer(self) -> str:
        """The server as ADDRESS:PORT."""
        return f"{self._peer[0]}:{self._peer[1]}"

    def connect(self) -> None:
        """See :class:`lgss_keyring.worker.channel.interface.Channel`."""
        self._connect()
        self.is_single_use = True

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, token: bytes, handle: bytes) -> Reply:
        """Send ``token`` by INIT, or by CONTINUE_INIT with a ``handle``; see
        :class:`lgss_keyring.worker.channel.interface.Channel`."""
        procedure = RPCSEC_GSS_CONTINUE_INIT if handle else RPCSEC_GSS_INIT
        xid = os.urandom(4)
        # Sequence number and service are undefined here (RFC 2203, 5.2.2). The service is 1,
        # as its enumeration has no zero.
        credential = struct.pack(">IIII", RPCSEC_GSS_VERSION, procedure, 0, 1) + _opaque(handle)
        call = (
            xid
            + struct.pack(">IIIII", CALL, RPC_VERSION, self._program, self._version, 0)
            + struct.pack(">I", RPCSEC_GSS)
            + _opaque(credential)
            + struct.pack(">II", AUTH_NONE, 0)
            + _opaque(token)
        )
        try:
            connection = self._connect()
            self._deadline = time.monotonic() + self._reply_timeout
            self._bound(connection)
            connection.sendall(struct.pack(">I", 1 << 31 | len(call)) + call)
            for _ in range(STRAY_REPLIES):
                record = self._record(connection)
                if record[:4] == xid:
                    return self._reply(Reader(record[4:]))
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
        raise self._malformed(f"{STRAY_REPLIES} records, none of them a reply to our call")

    def _connect(self) -> socket.socket:
        if self._socket is None:
            try:
                # Not create_connection: its getaddrinfo loads the IDNA tables (5 ms)
                # for what is a plain IPv4 address.
                self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                self._socket.settimeout(self._connect_timeout)
                self._socket.connect(self._peer)
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
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._socket

    def _bound(self, connection: socket.socket) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _receive(self, connection: socket.socket, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._bound(connection)
            chunk = connection.recv(length - len(data))
            if not chunk:
                raise ConnectionResetError(errno.ECONNRESET, "the acceptor closed it without a whole answer")
            data += chunk
        return bytes(data)

    def _record(self, connection: socket.socket) -> bytes:
        """One record of any number of fragments, its length checked before use."""
        record = bytearray()
        last = False
        while not last:
            (mark,) = struct.unpack(">I", self._receive(connection, 4))
            last, length = bool(mark >> 31), mark & 0x7FFFFFFF
            if len(record) + length > REPLY_BYTES:
                raise self._malformed(f"a record of more than {REPLY_BYTES} bytes")
            record += self._receive(connection, length)
        return bytes(record)

    def _malformed(self, problem: str) -> ChannelError:
        return ChannelError(
            f"{self.peer} sent {problem}",
            errno=errno.EPROTO,
            kind=Kind.MALFORMED_REPLY,
            hint="check that an RPCSEC_GSS server listens at this address and port",
        )

    def _reply(self, reader: Reader) -> Reply:
        """Decode a reply behind its xid (RFC 5531, 9; RFC 2203, 5.2.3.1)."""
        try:
            if reader.u32() != REPLY:
                raise self._malformed("a call where a reply was due")
            state = reader.u32()
            if state == MSG_DENIED:
                raise self._denied(reader)
            if state != MSG_ACCEPTED:
                raise self._malformed(f"reply status {state}")
            flavor, verifier = reader.u32(), reader.opaque(VERIFIER_BYTES)
            accepted = reader.u32()
            if accepted:
                problem = ACCEPT_STATES.get(accepted, f"accept status {accepted} for program")
                raise ChannelError(
                    f"{self.peer} answered {problem} {self._program} version {self._version}",
                    errno=errno.EPROTONOSUPPORT,
                    kind=Kind.RPC_REFUSED,
                    hint="[rpcsec_gss] program and version must be the acceptor's",
                )
            handle = reader.opaque(HANDLE_BYTES)
            major, minor, window = reader.u32(), reader.u32(), reader.u32()
            token = reader.opaque(REPLY_BYTES)
            reader.end()
        except ValueError as error:
            raise self._malformed(f"a malformed reply ({error})") from error
        proof = None
        if major == GSS_S_COMPLETE:
            if flavor != RPCSEC_GSS:
                raise ChannelError(
                    f"{self.peer} sent no RPCSEC_GSS verifier with the last token",
                    errno=errno.EPROTO,
                    kind=Kind.BAD_VERIFIER,
                    hint=BAD_VERIFIER_HINT,
                )
            # The MIC of the window, in network byte order (RFC 2203, 5.2.2.1).
            proof = (struct.pack(">I", window), verifier)
        return Reply(handle, major, minor, window, token, proof)

    def _denied(self, reader: Reader) -> ChannelError:
        reason = reader.u32()
        if reason == RPC_MISMATCH:
            low, high = reader.u32(), reader.u32()
            reader.end()
            return ChannelError(
                f"{self.peer} serves RPC versions {low} to {high} only",
                errno=errno.EPROTONOSUPPORT,
                kind=Kind.RPC_REFUSED,
                hint="another service listens there: [rpcsec_gss] port must be the acceptor's",
            )
        if reason != AUTH_ERROR:
            return self._malformed(f"reject status {reason}")
        state = reader.u32()
        reader.end()
        name = AUTH_STATES.get(state, f"auth status {state}")
        return ChannelError(
            f"{self.peer} denied the call: {name}",
            errno=errno.EACCES,
            kind=Kind.START_AGAIN if state in START_AGAIN else Kind.RPC_DENIED,
            hint="see the acceptor's log",
        )


def _opaque(data: bytes) -> bytes:
    """Variable-length opaque data (RFC 4506, 4.10)."""
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


class Reader:
    """XDR decoding with every length checked; raises ValueError on any doubt."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._offset = 0

    def _take(self, length: int) -> bytes:
        piece = self._data[self._offset : self._offset + length]
        if len(piece) != length:
            raise ValueError(f"{length} bytes wanted at offset {self._offset}, {len(piece)} left")
        self._offset += length
        return piece

    def u32(self) -> int:
        """An unsigned integer (RFC 4506, 4.2)."""
        return int.from_bytes(self._take(4), "big")

    def opaque(self, limit: int) -> bytes:
        """Variable-length opaque data of at most ``limit`` bytes, padding of zeros."""
        length = self.u32()
        if length > limit:
            raise ValueError(f"an opaque of {length} bytes where {limit} are allowed")
        data = self._take(length)
        if any(self._take(-length % 4)):
            raise ValueError("padding that is not zero")
        return data

    def end(self) -> None:
        """Nothing may be left."""
        if self._offset != len(self._data):
            raise ValueError(f"{len(self._data) - self._offset} bytes too many")
