"""Whether a file or folder is still what it was."""

from __future__ import annotations

import os

NO_FILE = "-"


def of(path: str) -> str:
    """What differs as soon as what is at ``path`` does, with no blank in it; :data:`NO_FILE` if nothing is
    there that this process may look at.  Raises nothing."""
    try:
        return of_status(os.stat(path))
    except (OSError, ValueError):
        return NO_FILE


def of_status(status: os.stat_result) -> str:
    """The same by what stat(2) has said: ``device.inode:size:mtime:ctime``, the times in ns."""
    return f"{status.st_dev}.{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
