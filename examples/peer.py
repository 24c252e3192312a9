"""What client.py and server.py share: their messages, and the server's half of a context.

A message is a line of JSON whose byte strings are in hex. :class:`Contexts` accepts Kerberos
contexts by RPCSEC_GSS (RFC 2203, 5.2.2). It can do only what the upcall of a client needs: create
a context in one exchange, where each call is one record, and each record is one fragment.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
from io import BufferedRWPair
from typing import Any

import gssapi.raw as gss

from lgss_keyring.formats.crypto import rfc3961
from lgss_keyring.formats.payload import Krb5Context
from lgss_keyring.sptlrpc import Session, parse_flavor

WINDOW = 128
RECORD_LIMIT = 1 << 17
# The beginning of a call (RFC 5531, 9), up to the empty verifier of AUTH_NONE.
INIT_CALL = struct.Struct(">4s5I 2I 4I I 2I")
RPCSEC_GSS = 6


def send(stream: BufferedRWPair, **fields: Any) -> None:
    """Write a message."""
    line = json.dumps(
        {name: value.hex() if isinstance(value, bytes) else value for name, value in fields.items()}
    )
    stream.write(line.encode() + b"\n")
    stream.flush()


def receive(stream: BufferedRWPair, *names: str) -> list[bytes]:
    """Read a message and return the byte strings of these names. Raises ConnectionError at the
    end of the connection, KeyError and ValueError for anything that is not such a message."""
    line = stream.readline(1 << 20)
    if not line:
        raise ConnectionError("the connection has ended")
    fields = json.loads(line)
    return [bytes.fromhex(fields[name]) for name in names]


class Contexts:
    """Accepts contexts on the free port :attr:`port` of loopback, in threads of its own.

    ``keytab`` names the file with the service's keys. Each context is for messages of one
    flavor, ``flavor``.
    """

    def __init__(self, keytab: str, flavor: str) -> None:
        # Without a replay cache: it would be a file that is left behind, and would refuse
        # some of the clients that begin in the same second.
        os.environ.update(KRB5_KTNAME=keytab, KRB5RCACHENAME="none:")
        self._credential: Any = gss.acquire_cred(None, usage="accept").creds
        self._flavor = parse_flavor(flavor)
        self._sessions: dict[bytes, Session] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def session(self, handle: bytes) -> Session:
        """The keys of the context ``handle``; raises KeyError for an unknown one."""
        return self._sessions[handle]

    def _listen(self) -> None:
        while True:
            threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rwb") as stream:
            connection.settimeout(60)
            try:
                while mark := stream.read(4):
                    # Bit 31 marks the last fragment (RFC 5531, 11).
                    length = struct.unpack(">I", mark)[0] & 0x7FFFFFFF
                    if length > RECORD_LIMIT:
                        return
                    reply = self._create(stream.read(length))
                    stream.write(struct.pack(">I", 1 << 31 | len(reply)) + reply)
                    stream.flush()
            except (OSError, struct.error, gss.GSSError):
                return

    def _create(self, call: bytes) -> bytes:
        """The reply to a call that creates a context; raises struct.error for any other call."""
        xid, *numbers = INIT_CALL.unpack_from(call)
        assert isinstance(xid, bytes)
        # A call (0) of RPC 2 to procedure 0, with a credential of 20 bytes: version 1, INIT (1).
        if [*numbers[:2], *numbers[4:9]] != [0, 2, 0, RPCSEC_GSS, 20, 1, 1]:
            raise struct.error("not a call that creates a context")
        (length,) = struct.unpack_from(">I", call, INIT_CALL.size)
        start = INIT_CALL.size + 4
        major, minor, handle, token, mic = self._accept(call[start : start + length])
        verifier = struct.pack(">I", RPCSEC_GSS) + _opaque(mic) if mic else bytes(8)
        result = _opaque(handle) + struct.pack(">III", major, minor, WINDOW) + _opaque(token)
        # A reply (1) that accepts the call (0); after the verifier: success (0).
        return xid + struct.pack(">II", 1, 0) + verifier + struct.pack(">I", 0) + result

    def _accept(self, token: bytes) -> tuple[int, int, bytes, bytes, bytes]:
        """Major and minor status, handle, token, and the MIC of the window's size."""
        try:
            accepted: Any = gss.accept_sec_context(token, self._credential)
        except gss.GSSError as error:
            sent = getattr(error, "token", None) or b""
            return error.maj_code & 0xFFFFFFFF, error.min_code & 0xFFFFFFFF, b"", sent, b""
        handle = os.urandom(8)
        mic = gss.get_mic(accepted.context, struct.pack(">I", WINDOW))
        self._sessions[handle] = Session(_keys(accepted.context), self._flavor, WINDOW)
        return 0, 0, handle, accepted.token or b"", mic


def _keys(context: Any) -> Krb5Context:
    """The acceptor's side of ``context``, as a kernel would get it. ``context`` cannot be used
    afterwards."""
    lucid: Any = gss.krb5_export_lucid_sec_context(context, 1)
    base = lucid.cfx_kd
    key, enctype = base.ctx_key, base.ctx_key_type
    if base.acceptor_subkey:
        key, enctype = base.acceptor_subkey, base.acceptor_subkey_type
    keys = rfc3961.derive_lustre_keys(key, enctype)
    flags = 2 | (4 if base.acceptor_subkey else 0)
    return Krb5Context(lucid.endtime, flags, lucid.send_seq, enctype, keys.ke, keys.ki, keys.kc)


def _opaque(data: bytes) -> bytes:
    """Opaque data of variable length (RFC 4506, 4.10)."""
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)
