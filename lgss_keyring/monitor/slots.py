"""Slots: how many upcalls of one uid are at work, counted by locks on files.

A slot is a file in /run/lgss/slots that is locked by flock(2).  Such a lock belongs to the open
file: when the last process of the upcall that has it open ends, by whatever signal, the kernel
drops the lock.  (A count in a file would stay wrong after a kill.)

Each upcall of an ordinary user imports this before anything heavy.
"""

from __future__ import annotations

import fcntl
import os

from lgss_keyring.front import arguments
from lgss_keyring.monitor.limits import LOCK_FILES
from lgss_keyring.system import own_folder

FOLDER = arguments.SLOTS


def prepare_folder() -> None:
    """Make the folder of the locks, or check that it is root's alone; raises OSError."""
    for folder in (arguments.NOTES, FOLDER):
        own_folder.prepare(folder)


def take(name: str, limit: int) -> tuple[int, int]:
    """The number and the descriptor of a free slot of the ``limit`` that are called ``name``, -1 and -1
    if all are taken.  The slot is free again when no process has the descriptor open any more.

    Raises OSError if slots cannot be had at all.
    """
    for number in range(limit):
        slot = take_file(f"{FOLDER}/{name}.{number}")
        if slot >= 0:
            return number, slot
    return -1, -1


def take_file(path: str) -> int:
    """The descriptor of ``path``, locked; -1 if somebody else has the lock.  Raises OSError."""
    while True:
        is_new = False
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            prepare_folder()
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_CREAT, 0o600)
            is_new = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_new:
                _sweep()
            # A sweep may have unlinked it between open and flock: a lock on it would count nothing.
            if os.fstat(file).st_nlink:
                return file
        except BlockingIOError:
            os.close(file)
            return -1
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _sweep() -> None:
    """Remove lock files that no process has locked, if there are many files."""
    names = os.listdir(FOLDER)
    if len(names) <= LOCK_FILES:
        return
    for name in names:
        try:
            file = os.open(f"{FOLDER}/{name}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # gone, or a keeper's socket
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(f"{FOLDER}/{name}")
        except OSError:
            pass  # taken, or gone
        finally:
            os.close(file)
