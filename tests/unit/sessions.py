"""Sessions for tests: both sides of one context."""

from __future__ import annotations

from lgss_keyring.formats.payload import KEY_SIZES, Krb5Context
from lgss_keyring.sptlrpc import Session, parse_flavor


def sides(flavor: str, enctype: int = 18) -> tuple[Session, Session]:
    """Initiator's and acceptor's session on the same keys."""
    size = KEY_SIZES[enctype]
    keys = [bytes([n]) * size for n in (1, 2, 3)]
    flavored = parse_flavor(flavor)
    client, server = (Session(Krb5Context(2**31, n | 2, 7, enctype, *keys), flavored, 128) for n in (1, 0))
    return client, server
