#!/usr/bin/env python3
"""A client that speaks krb5p over TCP, with a context from a real upcall.

usage: client.py MESSAGE_PORT MESSAGE [PREFIX]

A request-key rule must lead keys named PREFIX (default `lgss:`) to lgss_keyring, with the
server's context port in its configuration; tests/integration/test_examples.py does all of it.
"""

import socket
import sys

from lgss_keyring import sptlrpc
from lgss_keyring.formats.errors import LgssError
from lgss_keyring.worker.nid import Nid
from tests.support.server import receive, send

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
        header = b"example"
        names = {"handle": context.handle.hex(), "length": len(text)}
        send(connection, names, header, context.seal(header, text))
        head, (header, token) = receive(connection)
        print(context.unseal(header, token, head["length"]).decode())
except LgssError as error:
    sys.exit(f"client.py: {error.reason}; {error.hint}")
except OSError as error:
    sys.exit(f"client.py: {error}")
