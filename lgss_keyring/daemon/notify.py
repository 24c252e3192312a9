"""What a service manager is told, by the datagrams of sd_notify(3)."""

from __future__ import annotations

import os
import socket
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import MutableMapping

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Tells the manager that started this process how it is; without one, nothing.  No method raises."""

    def __init__(self, environment: MutableMapping[str, str]) -> None:
        """Takes what is for this process out of ``environment``, so that no other process gets it."""
        values = {name: environment.pop(name, "") for name in VARIABLES}
        self._path = values["NOTIFY_SOCKET"]
        self.interval: float | None = None
        """Seconds between two calls of :meth:`alive`; None if nobody waits for them."""
        period = values["WATCHDOG_USEC"]
        is_for_us = values["WATCHDOG_PID"] in ("", str(os.getpid()))
        if period.isdecimal() and int(period) and is_for_us:
            self.interval = int(period) / 1e6 / 3
        self._last_status = ""

    def _send(self, *lines: str) -> None:
        # A path, or a name in the abstract name space, which systemd writes with "@" before it.
        if self._path[:1] not in ("/", "@"):
            return
        address = "\0" + self._path[1:] if self._path.startswith("@") else self._path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto("\n".join(lines).encode(errors="replace"), address)
        except OSError:
            pass  # the manager is gone, or reads nothing: nobody else could be told

    def ready(self, status: str) -> None:
        """It serves; ``status`` is for people."""
        self._last_status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It reads its settings; :meth:`ready` says when that is done."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, why: str) -> None:
        """It takes nothing new any more, and ends."""
        self._send("STOPPING=1", f"STATUS={why}")

    def alive(self) -> None:
        """Its loop runs."""
        if self.interval is not None:
            self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """What it does, for people."""
        if text != self._last_status:
            self._last_status = text
            self._send(f"STATUS={text}")
