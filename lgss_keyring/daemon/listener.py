"""Making the Unix sockets at which lgssd listens, and who is at the other end of a connection."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct

from lgss_keyring.monitor.worker_process import refuse_descriptors

ROOT_ALONE, EVERYBODY = 0o600, 0o666
"""The modes of a socket: who may connect."""
_CREDENTIALS = struct.Struct("=iII")


def listen(
    path: str, backlog: int, mode: int = ROOT_ALONE, kind: int = socket.SOCK_SEQPACKET
) -> socket.socket:
    """A non-blocking socket of type ``kind`` that listens at ``path``; ``backlog`` as in listen(2).

    A socket file at which no process listens any more is replaced, and nothing else is.  Raises
    OSError; EADDRINUSE where the path is taken.
    """
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            # connect(2) says ECONNREFUSED of a plain file, too.
            if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise
            with socket.socket(socket.AF_UNIX, kind) as probe:
                if probe.connect_ex(path) != errno.ECONNREFUSED:
                    raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, mode)
        if mode == EVERYBODY:
            # This comes before any peer can connect, so that no record waits in a queue that was
            # made without it.
            refuse_descriptors(listener)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def peer_of(connection: socket.socket) -> tuple[int, int, int]:
    """The pid, uid and gid of who has made ``connection``, by the kernel (SO_PEERCRED, unix(7))."""
    pid, uid, gid = _CREDENTIALS.unpack(
        connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    return pid, uid, gid
