"""``python -m lgss_keyring.cli.payload``: print a key's payload for a person."""

from __future__ import annotations

import errno
import os
import sys
import time

import click

from lgss_keyring.formats.errors import LgssError, PayloadError
from lgss_keyring.formats.payload import (
    ENCTYPES,
    PLACEHOLDER,
    FailurePayload,
    Krb5Context,
    unpack,
)
from lgss_keyring.system import keys

STDIN_LIMIT = 1 << 16
"""Bytes that are read from standard input; a payload in hex has at most 10264."""


def describe(data: bytes, show_keys: bool = False) -> list[str]:
    """The lines that explain the payload ``data`` to a person.

    ``show_keys``: with the key material, which is a secret.  Raises PayloadError.
    """
    if data == PLACEHOLDER:
        return ["pending: no answer of the negotiation yet"]
    decoded = unpack(data)
    if isinstance(decoded, FailurePayload):
        name = errno.errorcode.get(decoded.rpc_error, "?")
        return [
            "failure",
            f"error       {decoded.rpc_error} {name} ({os.strerror(decoded.rpc_error)})",
            f"GSS major   0x{decoded.gss_major:08x}",
        ]
    lines = ["context", f"seq window  {decoded.seq_win}", f"handle      {decoded.handle.hex()}"]
    try:
        context = Krb5Context.unpack(decoded.context)
    except PayloadError as error:
        return [*lines, f"ctx         {len(decoded.context)} bytes, no krb5 context ({error.reason})"]
    left = context.endtime - int(time.time())
    life = f"in {left // 3600} h {left % 3600 // 60} min" if left > 0 else "over"
    names = ("initiator", "CFX (RFC 4121)", "acceptor's subkey")
    flags = ", ".join(name for bit, name in enumerate(names) if context.flags >> bit & 1)
    lines += [
        f"endtime     {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(context.endtime))} ({life})",
        f"flags       {flags or 'none'}",
        f"send seq    {context.send_seq}",
        f"enctype     {context.enctype} {ENCTYPES[context.enctype]}",
    ]
    for name, key in (("Ke", context.ke), ("Ki", context.ki), ("Kc", context.kc)):
        lines.append(f"{name:11} {key.hex() if show_keys else f'{len(key)} bytes (--show-keys shows them)'}")
    return lines


@click.command()
@click.argument("source", required=False)
@click.option("--key", type=click.IntRange(1, 2**31 - 1), help="Read the payload of the key of this serial.")
@click.option("--show-keys", is_flag=True, help="Print the key material as well. It is a secret.")
def main(source: str | None, key: int | None, show_keys: bool) -> None:
    """Print the payload of an lgss key for a person.

    SOURCE is the payload in hex, or - for standard input, in hex or raw, as from
    `keyctl pipe KEY`.
    """
    if (source is None) == (key is None):
        raise click.UsageError("give either the payload or --key")
    try:
        if key is not None:
            data = keys.read(key)
        elif source == "-":
            data = _from_hex_or_raw(sys.stdin.buffer.read(STDIN_LIMIT))
        else:
            data = _from_hex((source or "").encode())
        lines = describe(data, show_keys)
    except LgssError as error:
        prefix = "not a payload: " if isinstance(error, PayloadError) else ""
        click.echo(f"{prefix}{error.reason}", err=True)
        sys.exit(1)
    for line in lines:
        click.echo(line)


def _from_hex(text: bytes) -> bytes:
    """The bytes that ``text`` stands for; `:hex:` of keyctl(1) may stand before them."""
    try:
        return bytes.fromhex("".join(text.decode("ascii").removeprefix(":hex:").split()))
    except ValueError as error:
        raise PayloadError("it is not hexadecimal") from error


def _from_hex_or_raw(text: bytes) -> bytes:
    try:
        return _from_hex(text)
    except PayloadError:
        return text


if __name__ == "__main__":
    main(prog_name="python -m lgss_keyring.cli.payload")
