"""The folders of our own files, /run/lgss and those in it: what is there may vanish at any time."""

from __future__ import annotations

import os
import stat


def prepare(folder: str) -> None:
    """Make ``folder`` (0700), or check that it is this user's alone.

    Raises OSError: it cannot be made, or is no folder, or others may write there.
    """
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    check(folder)


def check(folder: str) -> None:
    """Raise OSError unless ``folder`` is a folder, no link, that this user alone may write."""
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise NotADirectoryError(f"{folder} is no folder of this user's alone")
