"""Handing a request over to the queue keeper of its uid.

The process that serves the upcall (the child) connects to the keeper's socket, and gets the serial
of the keeper's keyring.  It links its key into a new keyring, and that into the keeper's keyring.
An update needs possession of the key, and the keeper possesses it by these links.  Each request has
a keyring of its own, because a link replaces the link to another key of the same type and
description.  Then the child sends the request, and ends when the keeper has acknowledged it.

    keeper:  the serial, in decimal
    child:   key, keyring, started, forked, and the front's arguments; with NUL between them
    keeper:  one byte

Each upcall that may have to wait imports this.  So it does without :mod:`socket`, which takes 4 ms.
"""

from __future__ import annotations

import _socket
import os
import struct

from lgss_keyring.formats.errors import LgssError
from lgss_keyring.formats.record import Record
from lgss_keyring.front.arguments import Call
from lgss_keyring.monitor import slots
from lgss_keyring.monitor.limits import HAND_OVER_SECONDS, MARGIN, WORK_SHARE
from lgss_keyring.system import keyrings

MESSAGE_LIMIT = 1 << 15
"""Bytes; the kernel's callout info and description are 4 KiB each at most."""
SERIAL_LIMIT = 16
TAKEN = b"1"
_CREDENTIALS = struct.Struct("=iII")


class Request(Record):
    """A request that waits: ``keyring`` holds its key; ``started`` is of time.monotonic(),
    ``forked`` in clock ticks since the boot."""

    key: int
    keyring: int
    started: float
    forked: int
    call: Call


def turn_ends(call: Call, started: float) -> float:
    """Until when an upcall that began at ``started`` may wait for its turn (time.monotonic())."""
    # [upcall] timeout is not known before the configuration is read.
    return started + (call.timeout - MARGIN) * (1 - WORK_SHARE)


def path(uid: str) -> str:
    """The keeper's socket."""
    return f"{slots.FOLDER}/{uid}.queue"


def pack(request: Request) -> bytes:
    """The message of ``request``."""
    call = request.call
    # What --instantiated says is over; ``started`` has its time.
    options = [(name, value) for name, value in call.options.items() if name != "instantiated"]
    given = [word for name, value in options for word in (f"--{name}", value)]
    numbers = (request.key, request.keyring, request.started, request.forked)
    return os.fsencode("\0".join([*(repr(number) for number in numbers), *given, *call.arguments]))


def unpack(message: bytes) -> Request:
    """The request of a message; raises ValueError."""
    if len(message) > MESSAGE_LIMIT:
        raise ValueError("too long")
    key, keyring, started, forked, *given = os.fsdecode(message).split("\0")
    call = Call(given)
    if call.wrong() or call.serial != int(key) or call.is_machine:
        raise ValueError("not a user's request")
    return Request(int(key), int(keyring), float(started), int(forked), call)


def is_root(connection: _socket.socket) -> bool:
    """Whether root is at the other end."""
    found = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(found)[1] == 0)


def offer(key: int, call: Call, started: float, forked: int) -> bool:
    """Hand the request over to the queue keeper of its uid; False if there is none, or if it
    does not take it."""
    connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    try:
        connection.settimeout(HAND_OVER_SECONDS)
        connection.connect(path(call.requestor))
        if not is_root(connection):
            return False
        queue = int(connection.recv(SERIAL_LIMIT))
        keyring = keyrings.make(f"lgss-{key}", keyrings.THREAD)
        keyrings.link(key, keyring)
        keyrings.link(keyring, queue)
        try:
            connection.send(pack(Request(key, keyring, started, forked, call)))
            if connection.recv(1) == TAKEN:
                return True
        except OSError:
            pass  # the keeper has ended, or is too slow: the request stays with this process
        keyrings.unlink(keyring, queue)
        return False
    except (OSError, ValueError, LgssError):
        return False
    finally:
        connection.close()
