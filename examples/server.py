#!/usr/bin/env python3
"""A server that speaks krb5p over TCP: it answers each sealed message, reversed.

usage: server.py KEYTAB DIRECTORY     prints: listening on CONTEXT_PORT MESSAGE_PORT

Clients make their contexts by RPCSEC_GSS at the one port (their upcalls do), and send
messages that these seal to the other. See client.py.
"""

import os
import socket
import sys
import threading
from pathlib import Path

from lgss_keyring.formats.errors import LgssError
from tests.support.server import MessageServer, receive, send


def answer(server: MessageServer, connection: socket.socket) -> None:
    with connection:
        while True:
            try:
                head, (header, token) = receive(connection)
                session, _ = server.session(head["handle"], "krb5p")
                message = session.unseal(header, token, head["length"])
                send(connection, {"length": len(message)}, header, session.seal(header, message[::-1]))
            except (OSError, LgssError, KeyError, ValueError) as error:
                print(f"client gone: {error}", file=sys.stderr)
                return


keytab, directory = sys.argv[1:]
os.environ["KRB5_KTNAME"] = keytab
contexts = MessageServer(Path(directory))
listener = socket.create_server(("127.0.0.1", 0))
print("listening on", contexts.port, listener.getsockname()[1], flush=True)
while True:
    threading.Thread(target=answer, args=(contexts, listener.accept()[0]), daemon=True).start()
