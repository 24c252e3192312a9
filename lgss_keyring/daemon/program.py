"""The program that lgssd runs, and whether another one has taken its place on disk."""

from __future__ import annotations

import os

SCRIPT = "lgssd.py"
_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


class Program:
    """The installed program, which a link leads to.

    ``make install`` puts each installation into a folder of its own and switches one link
    (tools/install.py).  A process goes on with the one that it began with, until it looks here.
    """

    def __init__(self, command: str, folder: str = _HERE) -> None:
        """``command`` is the path that this process was started by, ``folder`` the one that its modules
        are from."""
        self._link = os.path.abspath(command)
        self._folder = os.path.realpath(folder)
        target = os.path.realpath(self._link)
        # A checkout and a virtual environment have no such link.
        self.is_watched = target != self._link and os.path.basename(target) == SCRIPT

    def is_replaced(self) -> bool:
        """Whether the link leads to another installation, or nowhere, now."""
        return self.is_watched and os.path.dirname(os.path.realpath(self._link)) != self._folder

    def is_there(self) -> bool:
        """Whether there is a program to be started."""
        return os.path.exists(self._link)
