#!/usr/bin/env python3
"""A server that speaks krb5p over TCP: it answers each sealed message, reversed.

usage: server.py KEYTAB     prints: listening on CONTEXT_PORT MESSAGE_PORT

The upcalls of clients make contexts by RPCSEC_GSS at the first port. To the second port clients
send the messages that they seal with these contexts. See client.py.
"""

import socket
import sys
import threading

from peer import Contexts, receive, send

from lgss_keyring.formats.errors import LgssError


def answer(contexts: Contexts, connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as stream:
        while True:
            try:
                handle, header, length, token = receive(stream, "handle", "header", "length", "token")
                session = contexts.session(handle)
                message = session.unseal(header, token, int.from_bytes(length))
                send(stream, header=header, length=length, token=session.seal(header, message[::-1]))
            except (OSError, LgssError, KeyError, ValueError) as error:
                print(f"client gone: {error}", file=sys.stderr)
                return


contexts = Contexts(keytab=sys.argv[1], flavor="krb5p")
listener = socket.create_server(("127.0.0.1", 0))
print("listening on", contexts.port, listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=answer, args=(contexts, listener.accept()[0]), daemon=True).start()
