"""The server's side of messages: contexts of the acceptor in the same token code.

A :class:`MessageServer` accepts contexts by RPCSEC_GSS on one port, and messages that these
protect on another: signed, sealed and bulk, and calls back on a reverse context.  Frames:

    u32 length (big-endian), JSON: {.., "sizes": [..]}, then as many blobs of those sizes
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time
from pathlib import Path
from typing import Any

import click

from lgss_keyring.formats.errors import GSS_S_BAD_QOP, GSS_S_CONTEXT_EXPIRED, LgssError, MechanismError
from lgss_keyring.formats.payload import Krb5Context
from lgss_keyring.sptlrpc import Session, Target, create_policy, parse_flavor
from tests.support.acceptor import Acceptor

FRAME_LIMIT = 1 << 26
WINDOW = 2048


def send(connection: socket.socket, head: dict[str, Any], *blobs: bytes) -> None:
    """One frame."""
    text = json.dumps({**head, "sizes": [len(blob) for blob in blobs]}).encode()
    connection.sendall(b"".join((struct.pack(">I", len(text)), text, *blobs)))


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[bytes]]:
    """One frame; raises ConnectionError at the end, ValueError for what is none."""
    text = _exactly(connection, min(struct.unpack(">I", _exactly(connection, 4))[0], FRAME_LIMIT))
    head: dict[str, Any] = json.loads(text)
    sizes = head.pop("sizes")
    if sum(sizes) > FRAME_LIMIT:
        raise ValueError("a frame that is too long")
    return head, [_exactly(connection, size) for size in sizes]


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        chunk = connection.recv(min(length - len(data), 1 << 20))
        if not chunk:
            raise ConnectionError("the connection has ended")
        data += chunk
    return bytes(data)


class MessageServer:
    """Serves in threads from its making on; ``port`` for contexts, ``message_port`` for
    messages.  The environment variable KRB5_KTNAME names the keytab."""

    def __init__(self, directory: Path, program: int = 0x20004C47, version: int = 1) -> None:
        os.environ["KRB5RCACHENAME"] = "none:"
        self._contexts = directory / "contexts.jsonl"
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = listener.getsockname()[1]
        acceptor = Acceptor(listener, program, version, WINDOW, self._contexts)
        threading.Thread(target=acceptor.serve_forever, daemon=True).start()
        self._messages = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.message_port: int = self._messages.getsockname()[1]
        self._sessions: dict[str, tuple[Session, int]] = {}
        self._lock = threading.Lock()

    def serve_forever(self) -> None:
        """Accept connections for messages until the process ends."""
        while True:
            connection, _ = self._messages.accept()
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def session(self, handle: str, flavor: str) -> tuple[Session, int]:
        """The server's session and endtime of the context ``handle`` (hex); raises KeyError
        if there is none, MechanismError for one that has ended or has another flavor.

        There is one session for a handle: two would each have a replay window of their own.
        """
        with self._lock:
            if handle not in self._sessions:
                lines = map(json.loads, self._contexts.read_text().splitlines())
                (line,) = [line for line in lines if line["handle"] == handle] or [{}]
                context = Krb5Context.unpack(bytes.fromhex(line["context"]))
                session = Session(context, parse_flavor(flavor), WINDOW)
                self._sessions[handle] = session, context.endtime
            session, endtime = self._sessions[handle]
        if endtime <= time.time():
            raise MechanismError(f"context {handle} has ended", major=GSS_S_CONTEXT_EXPIRED)
        if session.flavor.name != flavor:
            raise MechanismError(f"context {handle} is for {session.flavor}", major=GSS_S_BAD_QOP)
        return session, endtime

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(60)
            while True:
                try:
                    head, blobs = receive(connection)
                except (OSError, ValueError):
                    return
                try:
                    session, endtime = self.session(head["handle"], head["flavor"])
                    self._answer(connection, session, endtime, head, blobs)
                except LgssError as error:
                    send(connection, {"error": error.major, "kind": error.kind})
                except (KeyError, ValueError) as error:
                    send(connection, {"error": -1, "kind": repr(error)})

    def _answer(
        self,
        connection: socket.socket,
        session: Session,
        endtime: int,
        head: dict[str, Any],
        blobs: list[bytes],
    ) -> None:
        kind = head["op"]
        if kind == "sign":
            *pieces, token = blobs
            session.verify(pieces, token)
            reply = [piece[::-1] for piece in pieces]
            send(connection, {}, *reply, session.sign(reply))
        elif kind == "seal":
            header, token = blobs
            message = session.unseal(header, token, head["length"])
            send(connection, {"length": len(message)}, header, session.seal(header, message[::-1]))
        elif kind == "bulk":
            token, *sealed = blobs
            pages = session.unwrap_bulk(token, sealed, head["lengths"])
            answer, texts = session.wrap_bulk([page[::-1] for page in pages])
            send(connection, {"lengths": [len(page) for page in pages]}, answer, *texts)
        elif kind == "callback":
            self._call_back(connection, session, endtime, head)
        else:
            raise ValueError(f"no operation {kind!r}")

    @staticmethod
    def _call_back(connection: socket.socket, session: Session, endtime: int, head: dict[str, Any]) -> None:
        with create_policy("keyring") as policy:
            sec = policy.create_sec(Target(0, 1, "callback"), session.flavor)
            with sec, sec.install_rctx(session, bytes.fromhex(head["handle"]), endtime) as context:
                pieces = [b"call", b"back"]
                send(connection, {}, *pieces, context.sign(pieces))
                _, (*answer, token) = receive(connection)
                context.verify(answer, token)
                send(connection, {"verified": True})


@click.command()
@click.option("--keytab", required=True, help="The services' keytab.")
@click.option("--directory", required=True, type=click.Path(path_type=Path), help="For the contexts' file.")
def main(keytab: str, directory: Path) -> None:
    """Serve messages for tests; prints `listening on PORT MESSAGE_PORT` when it is ready."""
    os.environ["KRB5_KTNAME"] = keytab
    server = MessageServer(directory)
    click.echo(f"listening on {server.port} {server.message_port}")
    server.serve_forever()


if __name__ == "__main__":
    main()
