#!/usr/bin/env python3
"""A client that speaks krb5p over TCP, with a context from a real upcall.

usage: client.py MESSAGE_PORT MESSAGE [PREFIX]

A request-key rule must lead keys named PREFIX (default `lgss:`) to lgss_keyring, with the
server's context port in its configuration; tests/integration/test_examples.py does all of it.
"""

import socket
import sys

from peer import receive, send

from lgss_keyring import sptlrpc
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.nid import Nid

port, text, prefix = int(sys.argv[1]), sys.argv[2].encode(), (sys.argv[3:] or ["lgss:"])[0]
target = sptlrpc.Target(Nid.parse("127.0.0.1@tcp").to_int(), 1, "example-MDT0000")
try:
    with (
        sptlrpc.create_policy("keyring", prefix=prefix) as policy,
        policy.create_sec(target, "krb5p", root_flags="") as sec,
        sec.lookup_ctx() as context,
        socket.create_connection(("127.0.0.1", port), 10) as connection,
    ):
        context.refresh(30)
        print(context.display(), file=sys.stderr)
        stream = connection.makefile("rwb")
        header, length = b"example", len(text).to_bytes(4)
        token = context.seal(header, text)
        send(stream, handle=context.handle, header=header, length=length, token=token)
        header, token = receive(stream, "header", "token")
        print(context.unseal(header, token, len(text)).decode())
except (LgssError, OSError) as error:
    sys.exit(f"client.py: {error}")
