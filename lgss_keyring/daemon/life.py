"""When lgssd begins to end, and what a service manager is told about it."""

from __future__ import annotations

import os
import time

from lgss_keyring.daemon import limits
from lgss_keyring.system.log import LEVELS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lgss_keyring.daemon.notify import Notifier
    from lgss_keyring.daemon.program import Program
    from lgss_keyring.daemon.settings import Settings
    from lgss_keyring.daemon.sockets import Sockets
    from lgss_keyring.system.log import Log


class Life:
    """Whether lgssd goes on.  The server's loop calls :meth:`look` once in a while."""

    def __init__(
        self, sockets: Sockets, settings: Settings, log: Log, notifier: Notifier, program: Program
    ) -> None:
        self._sockets = sockets
        self._settings = settings
        self._log = log
        self._notifier = notifier
        self._program = program
        self._next_look = 0.0
        self._next_sign = 0.0
        self._busy_until = time.monotonic()
        self.begins_anew = False
        """Whether this process executes the new program when it has ended its work."""

    @property
    def timeout(self) -> float | None:
        """Seconds after which :meth:`look` has to be called again; None for no limit."""
        is_looking = self._program.is_watched or self._sockets.are_systemds
        seconds = limits.LOOK_SECONDS if is_looking else None
        sign = self._notifier.interval
        return sign if seconds is None or (sign is not None and sign < seconds) else seconds

    def begins(self) -> None:
        """The loop runs."""
        self._notifier.ready("waiting for upcalls")

    def look(self, now: float, is_idle: bool, status: str) -> str:
        """Look whether lgssd has to end; returns why, empty if it goes on.  ``is_idle``: it has no work,
        no workers and no peers; ``status`` is for people."""
        if now >= self._next_sign:
            self._next_sign = now + (self._notifier.interval or limits.LOOK_SECONDS) / 2
            self._notifier.alive()
        if not is_idle:
            self._busy_until = now
        if now < self._next_look:
            return ""
        self._next_look = now + limits.LOOK_SECONDS
        self._notifier.status(status)
        if self._program.is_replaced():
            # systemd starts the new one when the next upcall comes.
            self.begins_anew = not self._sockets.are_systemds and self._program.is_there()
            return "another program was installed"
        if self._sockets.are_systemds and now - self._busy_until > limits.IDLE_LIFE_SECONDS:
            return "there was nothing to do"
        return ""

    def reload(self) -> None:
        """Read the settings anew, because somebody asks for it."""
        self._notifier.reloading()
        problem = self._settings.reload()
        if problem:
            text = f"the configuration is wrong, so each upcall's own process works instead: {problem}"
            self._log.event("warning", text)
        else:
            settings = self._settings.current
            self._log.level, self._log.path = LEVELS[settings.log.level], settings.log.file
        self._notifier.ready("the configuration is wrong" if problem else "waiting for upcalls")

    def ends(self, why: str) -> None:
        """Take nothing new any more."""
        self._log.event("debug", f"lgssd ends: {why}")
        self._notifier.stopping(f"ending: {why}")
        if not self.begins_anew:
            self._sockets.let_go()

    def begin_anew(self, command: list[str], environment: dict[str, str]) -> None:
        """Execute the program that is installed now.  Returns only if that fails."""
        self._sockets.hand_on(environment)
        try:
            os.execve(command[0], command, environment)  # noqa: S606
        except OSError as error:
            self._log.event("error", f"cannot start {command[0]} anew: {error.strerror}")
