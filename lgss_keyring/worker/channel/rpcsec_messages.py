"""The messages of RPCSEC_GSS context creation (RFC 2203, 5.2.2) in ONC RPC (RFC 5531).

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
import struct

from lgss_keyring.formats.errors import BAD_VERIFIER_HINT, ChannelError, Kind
from lgss_keyring.worker.channel.interface import Reply
from lgss_keyring.worker.limits import HANDLE_BYTES, REPLY_BYTES, VERIFIER_BYTES

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


class Program:
    """One version of an RPC program of the server ``peer`` (ADDRESS:PORT): calls to it, and what its
    replies mean."""

    def __init__(self, peer: str, program: int, version: int) -> None:
        self._peer = peer
        self._program = program
        self._version = version

    def call(self, xid: bytes, token: bytes, handle: bytes) -> bytes:
        """The record that sends ``token`` by INIT, or by CONTINUE_INIT with a ``handle``."""
        procedure = RPCSEC_GSS_CONTINUE_INIT if handle else RPCSEC_GSS_INIT
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
        return struct.pack(">I", 1 << 31 | len(call)) + call

    def malformed(self, problem: str) -> ChannelError:
        """The error for what the server has sent and should not."""
        return ChannelError(
            f"{self._peer} sent {problem}",
            errno=errno.EPROTO,
            kind=Kind.MALFORMED_REPLY,
            hint="check that an RPCSEC_GSS server listens at this address and port",
        )

    def reply(self, record: bytes) -> Reply:
        """Decode a reply behind its xid (RFC 5531, 9; RFC 2203, 5.2.3.1); raises ChannelError."""
        reader = Reader(record[4:])
        try:
            if reader.u32() != REPLY:
                raise self.malformed("a call where a reply was due")
            state = reader.u32()
            if state == MSG_DENIED:
                raise self._denied(reader)
            if state != MSG_ACCEPTED:
                raise self.malformed(f"reply status {state}")
            flavor, verifier = reader.u32(), reader.opaque(VERIFIER_BYTES)
            accepted = reader.u32()
            if accepted:
                problem = ACCEPT_STATES.get(accepted, f"accept status {accepted} for program")
                raise ChannelError(
                    f"{self._peer} answered {problem} {self._program} version {self._version}",
                    errno=errno.EPROTONOSUPPORT,
                    kind=Kind.RPC_REFUSED,
                    hint="[rpcsec_gss] program and version must be the acceptor's",
                )
            handle = reader.opaque(HANDLE_BYTES)
            major, minor, window = reader.u32(), reader.u32(), reader.u32()
            token = reader.opaque(REPLY_BYTES)
            reader.end()
        except ValueError as error:
            raise self.malformed(f"a malformed reply ({error})") from error
        proof = None
        if major == GSS_S_COMPLETE:
            if flavor != RPCSEC_GSS:
                raise ChannelError(
                    f"{self._peer} sent no RPCSEC_GSS verifier with the last token",
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
                f"{self._peer} serves RPC versions {low} to {high} only",
                errno=errno.EPROTONOSUPPORT,
                kind=Kind.RPC_REFUSED,
                hint="another service listens there: [rpcsec_gss] port must be the acceptor's",
            )
        if reason != AUTH_ERROR:
            return self.malformed(f"reject status {reason}")
        state = reader.u32()
        reader.end()
        name = AUTH_STATES.get(state, f"auth status {state}")
        return ChannelError(
            f"{self._peer} denied the call: {name}",
            errno=errno.EACCES,
            kind=Kind.START_AGAIN if state in START_AGAIN else Kind.RPC_DENIED,
            hint="see the acceptor's log",
        )


def _opaque(data: bytes) -> bytes:
    """Variable-length opaque data (RFC 4506, 4.10)."""
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


class Records:
    """The records in a stream of bytes (RFC 5531, 11), of any number of fragments each; every length
    is checked before it is used."""

    def __init__(self) -> None:
        self._stream = bytearray()
        self._record = bytearray()

    def feed(self, data: bytes) -> None:
        """Add what has been received."""
        self._stream += data

    def next(self) -> bytes | None:
        """The next record, or None if it is not there in full; raises ValueError for one that is
        too long."""
        while len(self._stream) >= 4:
            mark = int.from_bytes(self._stream[:4], "big")
            length = mark & 0x7FFFFFFF
            if len(self._record) + length > REPLY_BYTES:
                raise ValueError(f"a record of more than {REPLY_BYTES} bytes")
            if len(self._stream) < 4 + length:
                return None
            self._record += self._stream[4 : 4 + length]
            del self._stream[: 4 + length]
            if mark >> 31:
                record, self._record = bytes(self._record), bytearray()
                return record
        return None


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
