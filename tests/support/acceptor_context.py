"""A context of the acceptor's: its sequence window, its keys, what it protects."""

from __future__ import annotations

import json
import os
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gssapi.raw as gss

from lgss_keyring.formats.crypto import rfc3961
from lgss_keyring.formats.payload import KEY_SIZES, Krb5Context
from tests.support.onc_rpc import INTEGRITY, NONE, Call, Decoder, xdr


@dataclass
class Context:
    """A context by its handle, half-open or established."""

    gss: Any
    begun: float = field(default_factory=time.monotonic)
    established: bool = False
    highest: int = 0
    seen: set[int] = field(default_factory=set)
    # Two legs at once on one half-open context would both hand it to the library.
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fresh(self, number: int, window: int) -> bool:
        """Whether a sequence number is in the window and new (RFC 2203, 5.3.3.1)."""
        if number <= self.highest - window or number in self.seen:
            return False
        self.highest = max(self.highest, number)
        self.seen = {old for old in self.seen if old > self.highest - window} | {number}
        return True

    def prove(self, handle: bytes, contexts_file: Path | None) -> None:
        """Append the context's own derived keys to ``contexts_file``, if there is one: a line
        of JSON as :class:`tests.support.acceptor.Acceptor` describes it.

        The lucid export destroys what it exports, and DATA needs a context still: so
        it is serialised, and taken in again twice.
        """
        status: Any = gss.inquire_context(self.gss)
        serialised = gss.export_sec_context(self.gss)
        self.gss = gss.import_sec_context(serialised)
        if contexts_file is None:
            return
        lucid: Any = gss.krb5_export_lucid_sec_context(gss.import_sec_context(serialised), 1)
        keys = lucid.cfx_kd
        key, enctype = (
            (keys.acceptor_subkey, keys.acceptor_subkey_type)
            if keys.acceptor_subkey
            else (keys.ctx_key, keys.ctx_key_type)
        )
        line = {
            "handle": handle.hex(),
            "initiator": gss.display_name(status.initiator_name).name.decode(),
            "target": gss.display_name(status.target_name).name.decode(),
            "enctype": enctype,
            "endtime": lucid.endtime,
        }
        if enctype in KEY_SIZES:
            derived = rfc3961.derive_lustre_keys(key, enctype)
            flags = 2 | (4 if keys.acceptor_subkey else 0)
            packed = Krb5Context(
                lucid.endtime, flags, lucid.send_seq, enctype, derived.ke, derived.ki, derived.kc
            ).pack()
            line["context"] = packed.hex()
        descriptor = os.open(contexts_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(line) + "\n")


def unprotect(context: Any, call: Call) -> bytes:
    """The call's arguments out of their service's wrapping (RFC 2203, 5.3.2)."""
    if call.service == NONE:
        return call.arguments
    decoder = Decoder(call.arguments)
    body = decoder.variable()
    if call.service == INTEGRITY:
        gss.verify_mic(context, body, decoder.variable())
    else:
        unwrapped = gss.unwrap(context, body)
        if not unwrapped.encrypted:
            raise ValueError("not encrypted")
        body = unwrapped.message
    decoder.done()
    inner = Decoder(body)
    if inner.unsigned() != call.sequence:
        raise ValueError("another sequence number inside")
    return body[4:]


def protect(context: Any, call: Call, result: bytes) -> bytes:
    """A result in its service's wrapping."""
    if call.service == NONE:
        return result
    body = struct.pack(">I", call.sequence) + result
    if call.service == INTEGRITY:
        return xdr(body) + xdr(gss.get_mic(context, body))
    return xdr(gss.wrap(context, body).message)
