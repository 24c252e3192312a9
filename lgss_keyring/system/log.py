"""One line for each event, where an administrator looks for it.

To the journal by its native protocol, with fields to filter by, where there is
one; else to syslog (authpriv) where there is one; and also to a file if the
configuration names one.  Neither :mod:`logging` nor :mod:`syslog`: the first costs
10 ms to import, and both block on a daemon that has stopped reading, which must not
stand between a negotiated context and the key.  Sends here give up at once instead, or,
when the key has its answer, after :data:`PATIENCE`.

What is logged may come from a hostile user (docs/security.md), so every value is reduced
to printable ASCII and cut: no value can forge a line or a field.
"""

from __future__ import annotations

import os
import socket
import time

JOURNAL = "/run/systemd/journal/socket"
SYSLOG = "/dev/log"
IDENTIFIER = "lgss_keyring"

# Seconds that the line about an answered key may wait for a journal that is busy with
# those of a hundred other upcalls.
PATIENCE = 2.0

# Names and syslog(3) priorities.
LEVELS = {"error": 3, "warning": 4, "info": 6, "debug": 7}
_AUTHPRIV = 10 << 3
_MESSAGE_LIMIT = 2000
_FIELD_LIMIT = 200


def printable(text: str, limit: int = _MESSAGE_LIMIT) -> str:
    """``text`` in printable ASCII, everything else escaped, at most ``limit`` long."""
    if not (text.isascii() and text.isprintable()):
        text = "".join(
            c if " " <= c <= "~" else c.encode("unicode_escape").decode("ascii") for c in text[:limit]
        )
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Log:
    """Where the events of one upcall go.

    ``level`` is the least urgent name of :data:`LEVELS` still written, ``path`` a
    file to append to (mode 0600; empty: none), ``started`` the time.monotonic() that events count
    from (default: now).  ``fields`` stand in every event;
    :meth:`bind` adds to them.  No method raises.
    """

    def __init__(
        self,
        level: str = "info",
        path: str = "",
        journal: str = JOURNAL,
        syslog: str = SYSLOG,
        started: float | None = None,
    ) -> None:
        self.level = LEVELS.get(level, 6)
        self.path = path
        self.fields: dict[str, str] = {}
        self.patience = 0.0
        """Seconds that an event may wait for a full journal or syslog."""
        self._journal = journal
        self._syslog = syslog
        self._started = time.monotonic() if started is None else started

    def bind(self, **fields: object) -> None:
        """Add fields, named without the ``LGSS_`` they get, to all later events."""
        for name, value in fields.items():
            self.fields[name] = str(value)

    def event(self, level: str, message: str, always: bool = False, **fields: object) -> None:
        """Log one line, with ``always`` at any level; ``LGSS_MS`` tells the milliseconds
        since ``started``."""
        priority = LEVELS[level]
        if priority > self.level and not always:
            return
        values = {name: str(value) for name, value in {**self.fields, **fields}.items()}
        values["ms"] = f"{(time.monotonic() - self._started) * 1000:.1f}"
        named = {f"LGSS_{name.upper()}": printable(value, _FIELD_LIMIT) for name, value in values.items()}
        message = printable(message)
        if not self._to_journal(priority, message, named):
            self._to_syslog(priority, message)
        if self.path:
            self._to_file(level, message, named)

    def _to_journal(self, priority: int, message: str, fields: dict[str, str]) -> bool:
        # One FIELD=value a line, as values hold no newline (systemd's "Native
        # Journal Protocol").
        lines = [f"MESSAGE={message}", f"PRIORITY={priority}", f"SYSLOG_IDENTIFIER={IDENTIFIER}"]
        lines += [f"{name}={value}" for name, value in fields.items()]
        return self._send(self._journal, "\n".join(lines) + "\n")

    def _to_syslog(self, priority: int, message: str) -> None:
        stamp = time.strftime("%b %e %H:%M:%S")
        self._send(self._syslog, f"<{_AUTHPRIV | priority}>{stamp} {IDENTIFIER}[{os.getpid()}]: {message}")

    def _to_file(self, level: str, message: str, fields: dict[str, str]) -> None:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now)) + f".{int(now * 1000) % 1000:03d}"
        tail = " ".join(f"{name}={value.replace(' ', '_')}" for name, value in fields.items())
        # The bar separates, so the message has none: the fields behind it are ours.
        message = message.replace("|", "\\x7c")
        line = f"{stamp} {IDENTIFIER}[{os.getpid()}] {level}: {message} | {tail}\n"
        try:
            # No link is followed: root writes here.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(self.path, flags, 0o600)
            try:
                os.write(descriptor, line.encode("ascii"))
            finally:
                os.close(descriptor)
        except OSError:
            pass  # nobody is left to be told

    def _send(self, path: str, text: str) -> bool:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(self.patience)
                sender.sendto(text.encode("ascii"), path)
        except (BlockingIOError, TimeoutError):
            return True  # it is there, but full: lost, rather than waited for
        except OSError:
            return False
        return True
