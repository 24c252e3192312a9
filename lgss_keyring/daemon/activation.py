"""Listening sockets that this process is started with (sd_listen_fds(3)).

systemd makes them by its socket units, and an lgssd that starts itself anew after an update hands
its own ones on.  They listen the whole time, so what connects meanwhile waits and is not lost.
"""

from __future__ import annotations

import fcntl
import os
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

UPCALL, PIPE = "upcall", "pipe"
"""The names of the two sockets, ``FileDescriptorName=`` in their units."""
OWN = "own-"
"""Before the name of a socket that lgssd has made itself."""
FIRST = 3
"""The first descriptor (SD_LISTEN_FDS_START)."""
_BEYOND = 64
"""Descriptors from here on are in nobody's way while others are put into their places."""


class ActivationError(Exception):
    """What is wrong with the sockets, in words."""


def take(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """The sockets by name, none if this process was started without any.

    Takes the variables out of ``environment``, and keeps the sockets from programs that are started
    later.  Raises ActivationError for a socket that is not what lgssd listens at.
    """
    pid, count, names = (
        environment.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")
    )  # for this process, or left over from the one that has started it
    if pid != str(os.getpid()):
        return {}
    if not count.isdecimal() or not 0 < int(count) < _BEYOND:
        raise ActivationError(f"LISTEN_FDS is {count!r}")
    words = names.split(":")
    if len(words) != int(count):
        raise ActivationError(f"LISTEN_FDNAMES={names!r} does not name {count} sockets")
    found: dict[str, socket.socket] = {}
    for descriptor, name in enumerate(words, FIRST):
        if name.removeprefix(OWN) not in (UPCALL, PIPE) or name in found:
            raise ActivationError(f"LISTEN_FDNAMES={names!r}: one {UPCALL!r} and one {PIPE!r} are known")
        found[name] = _listener(descriptor, name)
    return found


def _listener(descriptor: int, name: str) -> socket.socket:
    try:
        listener = socket.socket(fileno=descriptor)
        listener.set_inheritable(False)
        listens = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ActivationError(f"the socket {name!r}: {error.strerror}") from error
    if not listens or (listener.family, listener.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise ActivationError(f"the socket {name!r} does not listen, or is not ListenSequentialPacket=/PATH")
    listener.setblocking(False)
    return listener


def hand_on(listeners: Mapping[str, socket.socket], environment: MutableMapping[str, str]) -> None:
    """Put ``listeners``, by name, where the program finds them that this process executes next, and
    the variables into its ``environment``.  Other descriptors of this process may be overwritten."""
    aside = [fcntl.fcntl(each.fileno(), fcntl.F_DUPFD_CLOEXEC, _BEYOND) for each in listeners.values()]
    for place, descriptor in enumerate(aside, FIRST):
        os.dup2(descriptor, place)  # inherited, as a duplicate is
    environment["LISTEN_PID"] = str(os.getpid())
    environment["LISTEN_FDS"] = str(len(aside))
    environment["LISTEN_FDNAMES"] = ":".join(listeners)
