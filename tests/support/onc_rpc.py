"""ONC RPC (RFC 5531) with RPCSEC_GSS credentials (RFC 2203), a server's side: records,
XDR (RFC 4506), calls and replies.

It shares no code with ``lgss_keyring.worker.channel``: see :mod:`tests.support.acceptor`.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

CALL, REPLY = 0, 1
MSG_ACCEPTED, MSG_DENIED = 0, 1
RPC_MISMATCH, AUTH_ERROR = 0, 1
SUCCESS, PROG_UNAVAIL, PROG_MISMATCH, PROC_UNAVAIL, GARBAGE_ARGS = range(5)
AUTH_BADCRED, AUTH_BADVERF, AUTH_TOOWEAK = 1, 3, 5
RPCSEC_GSS_CREDPROBLEM, RPCSEC_GSS_CTXPROBLEM = 13, 14
AUTH_NONE, RPCSEC_GSS = 0, 6
DATA, INIT, CONTINUE_INIT, DESTROY = range(4)
NONE, INTEGRITY, PRIVACY = 1, 2, 3
GSS_S_COMPLETE, GSS_S_CONTINUE_NEEDED, GSS_S_FAILURE = 0, 1, 13 << 16
MAXSEQ = 0x80000000  # RFC 2203, 5.3.3.1

RECORD_LIMIT = 1 << 18
AUTH_LIMIT = 400  # RFC 5531, 8.2


class Denied(Exception):
    """MSG_DENIED with AUTH_ERROR and this auth_stat."""

    def __init__(self, auth_stat: int) -> None:
        self.auth_stat = auth_stat


class NotAccepted(Exception):
    """MSG_ACCEPTED, but for this accept_stat, and what follows it."""

    def __init__(self, accept_stat: int, rest: bytes = b"") -> None:
        self.accept_stat = accept_stat
        self.rest = rest


class Decoder:
    """XDR (RFC 4506); raises ValueError when the data is not what is asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def fixed(self, length: int) -> bytes:
        """Opaque data of fixed length, without its padding."""
        end = self.offset + length
        if end > len(self.data):
            raise ValueError("data ends early")
        piece = self.data[self.offset : end]
        self.offset = end
        return piece

    def unsigned(self) -> int:
        """A 32-bit unsigned integer."""
        value: int = struct.unpack(">I", self.fixed(4))[0]
        return value

    def variable(self, limit: int = RECORD_LIMIT) -> bytes:
        """Opaque data of variable length, at most ``limit``."""
        length = self.unsigned()
        if length > limit:
            raise ValueError(f"{length} bytes of opaque data")
        value = self.fixed(length)
        self.fixed(-length & 3)
        return value

    def done(self) -> None:
        """Raise if anything is left."""
        if self.offset != len(self.data):
            raise ValueError("data is left over")


def xdr(data: bytes) -> bytes:
    """``data`` as variable-length opaque."""
    return struct.pack(">I", len(data)) + data + b"\0" * (-len(data) & 3)


@dataclass
class Call:
    """An RPC call with an RPCSEC_GSS credential, its arguments not yet decoded."""

    xid: bytes
    procedure: int
    gss_procedure: int
    sequence: int
    service: int
    handle: bytes
    verifier_flavor: int
    verifier: bytes
    signed: bytes
    arguments: bytes


def read_record(connection: socket.socket) -> bytes | None:
    """One record of any number of fragments (RFC 5531, 11); None at the end."""
    record = bytearray()  # bytes would copy all of it for each fragment of one byte
    while True:
        mark = _read(connection, 4)
        if mark is None:
            return None
        (value,) = struct.unpack(">I", mark)
        length = value & 0x7FFFFFFF
        if len(record) + length > RECORD_LIMIT:
            raise ValueError("a record over the limit")
        fragment = _read(connection, length)
        if fragment is None:
            return None
        record += fragment
        if value >> 31:
            return bytes(record)


def _read(connection: socket.socket, length: int) -> bytes | None:
    data = b""
    while len(data) < length:
        piece = connection.recv(min(length - len(data), 1 << 16))
        if not piece:
            return None
        data += piece
    return data


def decode_credential(
    credential: bytes,
    xid: bytes,
    procedure: int,
    verifier_flavor: int,
    verifier: bytes,
    signed: bytes,
    arguments: bytes,
) -> Call:
    """rpc_gss_cred_t (RFC 2203, 5)."""
    decoder = Decoder(credential)
    try:
        version = decoder.unsigned()
        gss_procedure, sequence, service = decoder.unsigned(), decoder.unsigned(), decoder.unsigned()
        handle = decoder.variable()
        decoder.done()
    except ValueError:
        raise Denied(AUTH_BADCRED) from None
    # Sequence number and service are to be ignored while a context is created (5.2.2).
    known_service = service in (NONE, INTEGRITY, PRIVACY) or gss_procedure in (INIT, CONTINUE_INIT)
    if version != 1 or gss_procedure not in (DATA, INIT, CONTINUE_INIT, DESTROY) or not known_service:
        raise Denied(AUTH_BADCRED)
    return Call(
        xid, procedure, gss_procedure, sequence, service, handle, verifier_flavor, verifier, signed, arguments
    )


def accepted(xid: bytes, flavor: int, verifier: bytes, accept_stat: int, rest: bytes = b"") -> bytes:
    return (
        xid
        + struct.pack(">III", REPLY, MSG_ACCEPTED, flavor)
        + xdr(verifier)
        + struct.pack(">I", accept_stat)
        + rest
    )
