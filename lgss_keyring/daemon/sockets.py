"""The sockets that lgssd listens at: its own ones, or those that systemd holds for it."""

from __future__ import annotations

import contextlib
import os

from lgss_keyring.daemon import activation, records, upcalls
from lgss_keyring.daemon.activation import OWN, PIPE, UPCALL
from lgss_keyring.front.lgssd import WORD_FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import MutableMapping


class Sockets:
    """Both sockets.  ``pipe`` or ``upcall`` is None if systemd holds the other one only."""

    def __init__(self, pipe_path: str, upcall_path: str, environment: MutableMapping[str, str]) -> None:
        """Takes those that this process was started with.  Raises ActivationError."""
        self._paths = {PIPE: pipe_path, UPCALL: upcall_path}
        self._all = activation.take(environment)
        self.are_systemds = bool(self._all) and not any(name.startswith(OWN) for name in self._all)
        """Whether systemd goes on to listen when lgssd has ended."""
        self.are_taken_over = bool(self._all)
        """Whether peers may have connected before this process was there."""

    def listen(self) -> None:
        """Make them, if this process was started without any.  Raises OSError."""
        if self._all:
            return
        try:
            self._all[OWN + PIPE] = records.listen(self._paths[PIPE])
            self._all[OWN + UPCALL] = upcalls.listen(self._paths[UPCALL])
        except BaseException:
            self.let_go()
            raise

    def _named(self, name: str) -> socket.socket | None:
        return self._all.get(name) or self._all.get(OWN + name)

    @property
    def pipe(self) -> socket.socket | None:
        """The socket for records of the pipe."""
        return self._named(PIPE)

    @property
    def upcall(self) -> socket.socket | None:
        """The socket for the children of upcalls."""
        return self._named(UPCALL)

    def __str__(self) -> str:
        if self.are_systemds:
            return " and ".join(str(each.getsockname()) for each in self._all.values())
        return self._paths[PIPE]

    def let_go(self) -> None:
        """Listen no more.  Those who wait at a socket of our own find the connection closed; at
        systemd's they wait for the next lgssd."""
        for name, each in self._all.items():
            # In this order: as long as this process listens, no other lgssd takes the path for that
            # of an lgssd that has ended.
            if name.startswith(OWN):
                path = self._paths[name.removeprefix(OWN)]
                os.unlink(path)
                with contextlib.suppress(OSError):
                    os.unlink(f"{path}{WORD_FILE}")
            each.close()
        self._all.clear()

    def send_away(self) -> None:
        """Accept all who wait, and serve none: this process is about to exit because it cannot serve them,
        and systemd would start it again at once for the same peers."""
        for each in self._all.values():
            try:
                while True:
                    each.accept()[0].detach()  # closed by the exit, which waits for no peer
            except OSError:
                pass

    def hand_on(self, environment: MutableMapping[str, str]) -> None:
        """Keep them for the program that this process executes next."""
        activation.hand_on(self._all, environment)
