"""Looking at files as root where users can mount file systems of their own.

fusermount(1) lets a user mount a file system (FUSE) on any file or folder of theirs, for example on
/tmp/krb5cc_0 while root has no cache.  With the option allow_other root sees it, too.  A system call
that asks it for anything waits for that user's process, and SIGKILL does not end that wait.
"""

from __future__ import annotations

import errno
import os

OPEN = os.O_PATH | os.O_CLOEXEC


def open_path(name: str) -> int:
    """A descriptor by O_PATH, the caller's, of ``name``; of a link itself if that is one.

    Raises OSError: it is not there, or it or its folder is in a FUSE file system (EXDEV).
    Asks no such file system for anything.
    """
    folder = os.open(os.path.dirname(name) or ".", OPEN | os.O_DIRECTORY)
    try:
        _check(folder)
        file = os.open(os.path.basename(name), OPEN | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
    try:
        _check(file)
    except BaseException:
        os.close(file)
        raise
    return file


def _check(descriptor: int) -> None:
    """Raise OSError (EXDEV) if the descriptor, by O_PATH, is of a FUSE file system."""
    with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
        mount = next((line for line in file if line.startswith(b"mnt_id:")), b"mnt_id: 0").split()[1]
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            if line.startswith(mount + b" "):
                if line.partition(b" - ")[2].startswith(b"fuse"):
                    raise OSError(errno.EXDEV, "it is in a file system of a user's (FUSE)")
                return
