"""A Lustre server's GSS side, behind `lgss_testmod`: real Kerberos, the replies of docs/protocol.md 6."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gssapi.raw as gss
from testmod import Acceptor, TokenRequest

from lgss_keyring.formats.crypto import rfc3961

KEYTAB = Path("/etc/lustre-server.keytab")
WINDOW = 2048


def reply(
    major: int = 0, minor: int = 0, window: int = WINDOW, handle: bytes = b"", token: bytes = b""
) -> bytes:
    """The reply buffer of docs/protocol.md 6."""
    head = struct.pack("=IIIII", 0, major, minor, window, len(handle))
    return head + _padded(handle) + struct.pack("=I", len(token)) + _padded(token)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


@dataclass(frozen=True)
class Context:
    """One that this server has established."""

    request: TokenRequest
    initiator: str
    target: str
    keys: rfc3961.Krb5Keys | None


class LustreServer(Acceptor):
    """Accepts tokens as long as the `with` block lasts; `contexts` by their handle.

    `before` sees each token first: what it returns, if anything, is the answer. `after`
    is called when the token has been accepted, and may hold the answer back.
    """

    def __init__(
        self,
        keytab: Path = KEYTAB,
        before: Callable[[TokenRequest], int | bytes | None] = lambda request: None,
        after: Callable[[TokenRequest], object] = lambda request: None,
    ) -> None:
        super().__init__(self._accept)
        self.contexts: dict[bytes, Context] = {}
        self._before = before
        self._after = after
        self._lock = threading.Lock()
        self._credential: Any = gss.acquire_cred_from(
            {b"keytab": str(keytab).encode()}, mechs=[gss.MechType.kerberos], usage="accept"
        ).creds

    def _accept(self, request: TokenRequest) -> int | bytes:
        answer = self._before(request)
        if answer is None:
            answer = self._establish(request)
            self._after(request)
        return answer

    def _establish(self, request: TokenRequest) -> bytes:
        handle = os.urandom(8)
        if request.lustre_svc >> 16 == 1:
            self.contexts[handle] = Context(request, f"null {request.token.hex()}", "", None)
            # The kernel takes a context of 8 bytes and no other.
            return reply(handle=handle, token=request.token[::-1])
        try:
            result = gss.accept_sec_context(request.token, self._credential)
        except gss.GSSError as error:
            token = getattr(error, "token", None) or b""
            return reply(error.maj_code & 0xFFFFFFFF, error.min_code & 0xFFFFFFFF, 0, token=token)
        status: Any = gss.inquire_context(result.context)
        names = [gss.display_name(n).name.decode() for n in (status.initiator_name, status.target_name)]
        lucid: Any = gss.krb5_export_lucid_sec_context(result.context, 1)
        kd = lucid.cfx_kd
        keys = rfc3961.derive_lustre_keys(
            kd.acceptor_subkey or kd.ctx_key, kd.acceptor_subkey_type or kd.ctx_key_type
        )
        with self._lock:
            self.contexts[handle] = Context(request, names[0], names[1], keys)
        return reply(handle=handle, token=result.token or b"")
