"""The socket for the records of the older pipe upcall."""

from __future__ import annotations

import errno
import os
import socket
import stat

from lgss_keyring.daemon import limits
from lgss_keyring.monitor.worker_process import refuse_descriptors


def listen(path: str) -> socket.socket:
    """A listening socket at ``path``, open to every user: what each may ask for is checked.

    A socket file at which no process listens any more is replaced, and nothing else is.  Raises
    OSError; EADDRINUSE where the path is taken.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        try:
            listener.bind(path)
        except OSError as error:
            # connect(2) says ECONNREFUSED of a plain file, too.
            if error.errno != errno.EADDRINUSE or not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
                if probe.connect_ex(path) != errno.ECONNREFUSED:
                    raise
            os.unlink(path)
            listener.bind(path)
        os.chmod(path, 0o666)  # noqa: S103
        # This comes before any peer can connect, so that no record waits in a queue that was
        # made without it.
        refuse_descriptors(listener)
        listener.listen(limits.BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener
